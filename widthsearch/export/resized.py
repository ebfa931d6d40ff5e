"""``widthsearch.resize``: a network at other widths, for scripts that do without a study."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from widthsearch.errors import UsageError, describe_error
from widthsearch.space import trace


def resize(
    model: nn.Module,
    widths: Mapping[str, int] | str | os.PathLike[str],
    example: Any,
    *,
    init: Callable[[nn.Module], object] | None = None,
    keep_heads: bool = False,
) -> nn.Module:
    """A copy of ``model`` at these widths, wider or narrower, freshly initialised from torch's global RNG.

    ``widths``: width variable -> units, or the path of a ``widths.json`` that ``widthsearch export`` wrote;
    variables that are not named keep their width (``widthsearch widths`` lists them).  ``example``: a batch
    of two samples, like your data, that the model is traced with: a tensor, a tuple or a dict of its
    arguments.  ``init`` and ``keep_heads``: as in :class:`Study`.  The model itself stays as it is.

    Weights are distributed like those of ``model``, which should be fresh, too.  Raises :class:`UsageError`
    for a variable that the model does not have, a width that is no whole number of at least 1, a file that
    holds no widths, and a model that does not run on the example.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"resize: the model is {model!r:.60}; give a torch.nn.Module")
    given = widths if isinstance(widths, Mapping) else read_widths(widths)
    space = trace(model, example, init=init, keep_heads=keep_heads)
    if unknown := [name for name in given if name not in space.widths]:
        there = ", ".join(space.widths) or "none"
        raise UsageError(f"{type(model).__name__} has no width variable {unknown[0]!r}; there are: {there}")
    return space.resize({**space.widths, **given})


def read_widths(file: str | os.PathLike[str]) -> dict[str, int]:
    """The widths in a ``widths.json``; :class:`UsageError` if it holds none."""
    try:
        widths = json.loads(Path(file).read_text())["widths"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"widths {file!r:.200} cannot be read: {describe_error(error)}; give a dictionary of widths, or "
            "the path of a widths.json made by widthsearch export"
        ) from None
    if not isinstance(widths, dict):
        raise UsageError(f"{file}: its widths are {widths!r:.60}; they must be an object: variable -> units")
    return widths

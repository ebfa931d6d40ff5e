"""Numbers that were made from a width and stay as they are: nobody can tell, so the user is told.

``self.scale = width ** 0.5`` in a user's constructor is a plain 4.0 by the time of the trace.  Where it is
seen to scale a tensor that has the 16 units, or that was summed over them, it is most likely theirs.
"""

from __future__ import annotations

import math
from collections import Counter

from torch import nn

from widthsearch.space.factors import POWERS
from widthsearch.space.labels import Dim, ids_in, size_of_dim
from widthsearch.space.recorder import Applied, Place, Trace
from widthsearch.space.variables import Variables

LEAST = 8  # units: 0.5 and 2.0, the roots of fewer, may be anything


def stale_lines(model: nn.Module, trace: Trace, variables: Variables) -> list[str]:
    """A line per attribute of a kind of module that does not follow a width as it should."""
    found: dict[Place, tuple[str, str]] = {}
    for applied, dims in trace.applied:
        if applied.place not in trace.stated and applied.place not in trace.scales:
            meaning = _meaning(applied, dims, trace, variables)
            if meaning is not None:
                found.setdefault(applied.place, meaning)
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for (module, path), (formula, name) in found.items():
        kind = f"{type(model.get_submodule(module)).__name__}.{'.'.join(map(str, path))}"
        counts[kind, formula] += 1
        first.setdefault((kind, formula), name)
    return [
        f"{kind} = {formula}{f' in {count} modules' if count > 1 else ''} does not follow the width of "
        f"{first[kind, formula]}: if it was made from that, compute it in forward() from x.shape, which "
        "keeps the width as it is, or use what follows (x.mean(), F.rms_norm, F.scaled_dot_product_attention)"
        for (kind, formula), count in counts.items()
    ]


def _meaning(applied: Applied, dims: list[Dim], trace: Trace, variables: Variables) -> tuple[str, str] | None:
    """The formula that gives a number, and the variable in it; None where no or another size explains it."""
    whole = applied.place in trace.sizes
    meaning = None
    for dim in dims:
        size = size_of_dim(dim)
        powers = [
            p for p in ((1.0,) if whole else POWERS) if math.isclose(applied.value, size**p, rel_tol=1e-6)
        ]
        if size < LEAST or not powers or not ids_in(dim):
            continue
        names = {name for ids in ids_in(dim) for name in variables.among(ids)}
        if not names:  # a size that stays has the same one
            return None
        formula = f"{applied.value:.6g}"
        if not whole:
            formula += f" = 1 / {size}" if powers[0] == -1 else f" = {size} ** {powers[0]:g}"
        meaning = meaning or (formula, min(names, key=variables.names.index))
    return meaning

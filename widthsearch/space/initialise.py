"""Fresh weights that are distributed like those of the user's own fresh model.

``reset_parameters`` is not how most models initialise themselves: torchvision's ResNet-50 is 2.45 times as
spread out.  So the trace records, for every parameter, how the user's values relate to what
``reset_parameters`` gives at the same size, and every resized model is corrected by it.
"""

from __future__ import annotations

import fnmatch
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from widthsearch.errors import UsageError, describe_error
from widthsearch.space.copies import by_part, copy_with, named_tensors

#: How to fill one tensor anew, after ``reset_parameters``: an in-place method of a tensor, and its arguments;
#: or ``blocks``, a dimension, and of each of its equal parts how to fill that.
Fill = tuple[Literal["fill_", "mul_", "normal_", "copy_", "blocks"], tuple[Any, ...]]
LEAST = 16  # values whose mean says something
SURE = 8.0  # standard errors that no draw of one distribution is away from another

Table = Callable[[tuple[int, ...]], Tensor]  # a buffer of any shape


class Reset(NamedTuple):
    """The modules whose ``reset_parameters`` works, and the values that it leaves; NaN: none."""

    modules: tuple[str, ...]
    values: Mapping[str, Tensor]


@dataclass(frozen=True)
class Initialisation:
    """``resets``: modules whose ``reset_parameters`` is called; ``fills``: what follows, per tensor.

    A tensor without a fill keeps the user's values; it cannot be resized.  ``tables``: buffer -> a function
    of the user's that makes one of any shape.  ``own``: another that is called on the model at the end.
    ``patterns``: fills that come in the place of those, for weights whose values are more than a draw;
    ``lost``: weights whose values, these, have a pattern that other widths do not define: they are drawn.
    """

    resets: tuple[str, ...]
    fills: dict[str, Fill]
    own: Callable[[nn.Module], object] | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)
    patterns: Mapping[str, Fill] = field(default_factory=dict)
    lost: Mapping[str, Tensor] = field(default_factory=dict)

    def can_fill(self, name: str, dim: int) -> bool:
        """Whether the tensor of this name can have another size along this dimension."""
        method, values = self.fills.get(name, (None, ()))
        fills = method != "copy_" or values[0].shape[dim] == 1
        return name in self.tables or method is not None and fills


@contextmanager
def isolated_random_numbers(seed: int = 0) -> Iterator[None]:
    """Random numbers by this seed inside, the global generators untouched outside."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=list(devices)):
            # Not torch.manual_seed: it would also queue a seed for a GPU that is not initialised yet.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def record(
    model: nn.Module,
    after: Reset,
    own: Callable[[nn.Module], object] | None = None,
    tables: Mapping[str, Table] | None = None,
) -> Initialisation:
    """Read the initialisation off a model, fresh as the user's factory gave it.

    ``after``: of :func:`reset`; ``own``: see the class; ``tables``: likewise, but from patterns.  Raises
    UsageError for one that no buffer matches.
    """
    found: dict[str, Table] = {}
    buffers = [name for name, _ in model.named_buffers()]
    for pattern, make in (tables or {}).items():
        names = fnmatch.filter(buffers, pattern)
        if not names:
            there = ", ".join(buffers) or "none"
            raise UsageError(
                f"buffers={{{pattern!r}: ...}}: the model has no such buffer; there are: {there}"
            )
        found.update(dict.fromkeys(names, make))
    fills = {
        name: fill
        for name, t in named_tensors(model).items()
        if is_drawn(t) and (fill := compare(t, values_of(t), after.values[name])) is not None
    }
    return Initialisation(after.modules, fills, own, found)


def reset(model: nn.Module) -> Reset:
    """Call ``reset_parameters`` of every module, in a copy."""
    with isolated_random_numbers(), torch.no_grad():
        # Weights that are still NaN afterwards, reset_parameters does not fill; it may read a table.
        probe = copy_with(model, {name: _unfilled(t) for name, t in named_tensors(model).items()})
        resets = tuple(name for name, module in probe.named_modules() if _reset(module))
        values = {name: values_of(t) for name, t in named_tensors(probe).items() if is_drawn(t)}
    return Reset(resets, values)


def is_drawn(tensor: Tensor) -> bool:
    """Whether it has numbers that can be drawn."""
    return (tensor.is_floating_point() or tensor.is_complex()) and not tensor.is_meta and tensor.numel() > 0


def values_of(tensor: Tensor) -> Tensor:
    """The values as real numbers on the CPU; complex ones have a last dimension for their two parts."""
    return by_part(tensor.detach().cpu())


def _unfilled(tensor: Tensor) -> Tensor:
    drawn = tensor.is_floating_point() or tensor.is_complex()
    if drawn and isinstance(tensor, nn.Parameter):
        nothing = complex(math.nan, math.nan) if tensor.is_complex() else math.nan
        return torch.full(tensor.shape, nothing, dtype=tensor.dtype)
    return tensor.detach().to("cpu", copy=True)


def _reset(module: nn.Module) -> bool:
    """Call the module's own ``reset_parameters``, if it has tensors and the method works."""
    reset = getattr(module, "reset_parameters", None)
    if reset is None or not [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        return False
    try:
        reset()
    except Exception:  # a user's own method, on values that are NaN: then it does not count as one
        return False
    return True


def compare(tensor: Tensor, own: Tensor, reset: Tensor) -> Fill | None:
    """How to make what ``reset_parameters`` left (of a weight NaN: nothing) distributed like ``own``.

    ``own``: the values of this tensor, or those of a part of it.
    """
    own, reset = own.float(), reset.float()
    first = own.flatten()[0]
    if bool((own == first).all()):
        return "fill_", (float(first),)
    spread = float(own.std())
    touched = isinstance(tensor, nn.Parameter) or not torch.equal(own, reset)
    covered = touched and not bool(reset.isnan().any())
    base = float(reset.std()) if covered else 0.0
    if base > 0.0:
        ratio = spread / base
        shift = own.mean() - ratio * reset.mean()
        if not (tensor.requires_grad and far(shift, spread, own.numel())):
            within_noise = abs(ratio - 1.0) < 4.0 / math.sqrt(2 * own.numel())
            return "mul_", (1.0 if within_noise else ratio,)
    if tensor.requires_grad:
        return "normal_", (float(own.mean()), spread)
    if own.ndim == 1 and math.isclose(float(own.norm()), 1.0, rel_tol=1e-4):
        return "normal_", (0.0, len(own) ** -0.5)  # a direction: power iterations start anywhere
    # Running statistics start anew; values that no reset explains (a filter, a table) mean something, but
    # are known for other sizes along the dimensions where they are all the same.
    if covered:
        return "mul_", (1.0,)
    table = repeated(own)
    return None if table is None else ("copy_", (table,))


def far(distance: Tensor | float, spread: float, count: int) -> bool:
    """Whether the means of two draws of so many values are too far apart to be of one distribution."""
    return count >= LEAST and abs(float(distance)) > SURE * spread * math.sqrt(2 / count)


def repeated(own: Tensor) -> Tensor | None:
    """The values without those that repeat along a dimension, which has size 1 then; None if none do."""
    less = own
    for dim in range(own.ndim):
        first = less.narrow(dim, 0, 1)
        less = first if torch.equal(less, first.expand_as(less)) else less
    return less.clone() if less.shape != own.shape else None


def initialise(model: nn.Module, initialisation: Initialisation) -> None:
    """Fill a (resized) model with fresh values, from torch's global random numbers."""
    modules = dict(model.named_modules())
    tensors = named_tensors(model)
    made = {name: make(tuple(tensors[name].shape)) for name, make in initialisation.tables.items()}
    fills = {**initialisation.fills, **initialisation.patterns}
    fills |= {name: ("copy_", (table,)) for name, table in made.items()}
    with torch.no_grad():
        for name, fill in fills.items():
            if fill[0] == "copy_":  # a table, that reset_parameters may read
                _fill(tensors[name], fill)
        for name in initialisation.resets:
            try:
                modules[name].reset_parameters()
            except Exception as error:
                said = describe_error(error)
                raise UsageError(f"reset_parameters of {name!r} fails at other widths: {said}") from error
        for name, fill in fills.items():
            if fill[0] != "copy_" or isinstance(tensors[name], nn.Parameter):
                _fill(tensors[name], fill)
    if initialisation.own is not None:
        initialisation.own(model)


def _fill(tensor: Tensor, fill: Fill) -> None:
    method, values = fill
    if not (method == "copy_" and values[0].is_complex()):
        tensor = by_part(tensor)
    if method != "blocks":
        getattr(tensor, method)(*values)
        return
    dim, fills = values
    for part, own in zip(tensor.chunk(len(fills), dim), fills, strict=True):
        _fill(part, own)

"""Initial values that are no random numbers: a forget gate's ones, an identity, a table of decays.

A parameter may hold a pattern that its mean and spread do not tell.  Where the trace knows how the pattern
goes on at other widths (parts of a fused layer, rows that repeat, a size without a width) it is kept; where
it does not, the parameter is named.  What has no pattern is drawn as before: see :mod:`.initialise`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from widthsearch.space.copies import named_tensors
from widthsearch.space.initialise import (
    Fill,
    Initialisation,
    Reset,
    compare,
    far,
    is_drawn,
    repeated,
    values_of,
)
from widthsearch.space.labels import Ids
from widthsearch.space.recorder import Trace
from widthsearch.space.variables import Variables

LOOKED_AT = 4096  # values of a large parameter
OFTEN = 1 / 8  # the share of one value that no continuous distribution repeats so often
FEW = 1 / 8  # the share of different values that draws of a continuous distribution never are
LEAST_EQUAL = 8  # of numbers of half precision, which are equal now and then
SPACED = 4  # evenly spaced values that are no chance
SORTED = 10  # sorted values that are none: 2 / 10! is below one in a million


def with_structure(
    initialisation: Initialisation, after: Reset, model: nn.Module, trace: Trace, variables: Variables
) -> Initialisation:
    """The initialisation with the patterns in the model's parameters kept, or named as ``lost``.

    ``after``: what its ``reset_parameters`` leave.
    """
    patterns: dict[str, Fill] = {}
    lost: dict[str, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        plain = initialisation.fills.get(name)
        if plain is None or plain[0] in ("fill_", "copy_"):
            continue
        if not (tensor.requires_grad and is_drawn(tensor) and isinstance(tensor, nn.Parameter)):
            continue
        own = values_of(tensor)
        fill = _Values(tensor, own, after.values[name]).fill(plain, _parts(name, trace, variables))
        if fill is None:
            lost[name] = own.clone()
        elif fill is not plain:
            patterns[name] = fill
    return dataclasses.replace(initialisation, patterns=patterns, lost=lost)


def settled(initialisation: Initialisation, trace: Trace, variables: Variables) -> Initialisation:
    """The same where fewer variables are left: what has none of them any more keeps its values."""
    kept: dict[str, Fill] = {
        name: ("copy_", (own,))
        for name, own in initialisation.lost.items()
        if not _parts(name, trace, variables) and _is_nothing_else(own)
    }
    lost = {name: own for name, own in initialisation.lost.items() if name not in kept}
    return dataclasses.replace(initialisation, patterns={**initialisation.patterns, **kept}, lost=lost)


def _parts(name: str, trace: Trace, variables: Variables) -> dict[int, int]:
    """Of each dimension of a parameter that has a width, of how many equal parts it is made."""
    axes = {dim: ids for (owner, dim), ids in trace.axes.items() if owner == name}
    return {dim: _equal_parts(ids, variables) for dim, ids in axes.items() if variables.among(ids)}


def _equal_parts(ids: Ids, variables: Variables) -> int:
    """How many times in a row an axis has all units of one variable, as the gates of an LSTM; else 1."""
    position = variables.position[ids]
    if (position < 0).any() or len(variables.among(ids)) != 1:
        return 1
    units = len(np.unique(position))
    for parts in range(len(position) // units, 1, -1):
        if len(position) % (parts * units) == 0:
            rows = position.reshape(parts, -1)
            if (rows == rows[0]).all() and (np.diff(rows[0]) >= 0).all():
                return parts
    return 1


@dataclasses.dataclass(frozen=True, eq=False)
class _Values:
    """A parameter or a part of it: its own values, and those after ``reset_parameters``."""

    tensor: Tensor
    own: Tensor
    reset: Tensor

    def fill(self, plain: Fill, parts: Mapping[int, int]) -> Fill | None:
        """How to fill it, ``plain`` where it has no pattern; None where it has one that cannot be kept.

        ``parts``: see :func:`_parts`.
        """
        patterned = self._is_patterned()
        if not parts and not patterned:
            return plain
        if not parts and _is_nothing_else(self.own):  # of the same size in all networks
            return "copy_", (self.own.clone(),)
        table = repeated(self.own) if patterned else None
        if table is not None and all(table.shape[d] == 1 for d in parts):
            return "copy_", (table,)
        complex_parts = {self.own.ndim - 1: 2} if self.tensor.is_complex() else {}
        for dim, count in {**parts, **complex_parts}.items():
            if count > 1 and any(part.differs(plain) for part in self._chunks(count, dim)):
                blocks = [part.block() for part in self._chunks(count, dim)]
                return None if None in blocks else ("blocks", (dim, tuple(blocks)))
        return None if patterned else plain

    def block(self) -> Fill | None:
        """How to fill it as a part of a parameter; None where it has a pattern of its own."""
        fill = compare(self.tensor, self.own, self.reset)
        return None if fill is None or fill[0] != "fill_" and self._is_patterned() else fill

    def differs(self, plain: Fill) -> bool:
        """Whether ``plain``, which fills the whole, gives this part other values than it has."""
        own, made, factor = self.own.float(), self.reset.float(), plain[1][-1]
        if plain[0] == "mul_":
            mean, spread = float(made.mean()) * factor, float(made.std()) * factor
        else:
            mean, spread = plain[1]
        if _is_constant(own):
            return not (spread == 0.0 and math.isclose(mean, float(own.flatten()[0]), rel_tol=1e-5))
        return (
            far(own.mean() - mean, max(spread, float(own.std())), own.numel())
            or far(own.std() - spread, max(spread, float(own.std())), 2 * own.numel())
        )  # fmt: skip

    def _chunks(self, count: int, dim: int) -> list[_Values]:
        pairs = zip(self.own.chunk(count, dim), self.reset.chunk(count, dim), strict=True)
        return [_Values(self.tensor, own, made) for own, made in pairs]

    def _is_patterned(self) -> bool:
        """Whether no continuous distribution gives such values; those that a reset gives are its affair."""
        if _is_constant(self.own) or torch.equal(self.own, self.reset):
            return False
        if repeated(self.own) is not None or _in_steps(self.own):
            return True
        some, made = (t.flatten()[:LOOKED_AT] for t in (self.own, self.reset))
        some = some[some != made]
        if len(some) < 2:
            return False
        _, counts = some.unique(return_counts=True)  # type: ignore[no-untyped-call]
        precise = torch.finfo(some.dtype).eps < 1e-6
        often = int(counts.max()) >= max(2 if precise else LEAST_EQUAL, OFTEN * len(some))
        return often or bool((some == some.round()).all())


def _is_nothing_else(values: Tensor) -> bool:
    """Whether values with a pattern have no random part, which every network must draw anew."""
    if repeated(values) is not None or _in_steps(values):
        return True
    return len(values.unique()) <= max(2, FEW * values.numel())  # type: ignore[no-untyped-call]


def _is_constant(values: Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def _in_steps(values: Tensor) -> bool:
    """Whether they are a row of evenly spaced values, or one that only rises or only falls."""
    row = values.flatten()
    if len(row) != max(values.shape) or len(row) < SPACED:
        return False
    steps = row.double().diff()
    even = float((steps - steps.mean()).abs().max()) <= 1e-4 * abs(float(steps.mean()))
    return even or len(row) >= SORTED and bool((steps > 0).all() or (steps < 0).all())

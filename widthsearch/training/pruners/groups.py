"""The weights that stand for each unit, so that a score of weights becomes one of units."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from widthsearch.space import WidthSpace
from widthsearch.space.copies import by_part


def squares(weight: Tensor) -> Tensor:
    """The squared magnitude of every weight."""
    return by_part(weight).square().sum(-1) if weight.is_complex() else weight.square()


class Groups:
    """One group of weights per unit, U of them, in the order of ``space.widths``.

    A unit's group is the weights that read it: without them it is gone, whatever lies between producer and
    consumer (the weights that make it would not do: a BatchNorm undoes their scale).  With ``scales``,
    units that have a BatchNorm scale of their own are grouped by that instead.  Units that no weight reads
    (the size of an attention head) have the weights that make them.
    """

    def __init__(self, space: WidthSpace, *, scales: bool = False) -> None:
        self.variable = np.repeat(np.arange(len(space.widths)), list(space.widths.values()))  # (U,)
        self._weights = dict(space.model.named_parameters())
        every = space.unit_axes()
        reading = {(axis.parameter, axis.dim): axis.unit for axis in space.consumers}
        of_norms = {
            (f"{name}.weight", 0): every[f"{name}.weight", 0]
            for name, module in space.model.named_modules()
            if isinstance(module, _BatchNorm) and (f"{name}.weight", 0) in every
        }
        self._axes: list[tuple[str, int, Tensor]] = []
        left = np.ones(len(self.variable), dtype=bool)  # units that have no group yet
        for axes in (of_norms, reading, every) if scales else (reading, every):
            grouped = np.zeros_like(left)
            for (name, dim), unit in axes.items():
                own = np.where((unit >= 0) & left[unit], unit, -1)
                if (own >= 0).any():
                    grouped[own[own >= 0]] = True
                    device = self._weights[name].device
                    self._axes.append((name, dim, torch.from_numpy(own).to(device)))
            left &= ~grouped

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """The sum over each group, (U,), of values that have the shapes of the weights of those names."""
        sums = torch.zeros(len(self.variable) + 1, device=next(iter(self._weights.values())).device)
        for name, dim, unit in self._axes:
            others = [d for d in range(values[name].ndim) if d != dim]
            along = values[name].sum(others) if others else values[name]
            sums.index_add_(0, unit % len(sums), along.to(sums.dtype))  # -1, no unit: the last entry
        return sums[:-1]

    @torch.no_grad()
    def norms(self) -> Tensor:
        """The Euclidean norm of each group, (U,)."""
        return self.total({name: squares(self._weights[name]) for name, _, _ in self._axes}).sqrt()

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiply the weights of each group by its factor, (U,), in place."""
        padded = torch.cat([factors, factors.new_ones(1)])  # -1, no unit: 1
        for name, dim, unit in self._axes:
            weight: nn.Parameter = self._weights[name]
            weight.mul_(padded[unit].view(-1, *[1] * (weight.ndim - dim - 1)).to(weight.dtype))

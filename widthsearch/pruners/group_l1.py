"""Group-L1: a price on the norm of each unit's weights, which takes whole units to exactly zero.

The group lasso (Yuan and Lin, JRSS B 2006) on the units of a width space: on BatchNorm scales where the
units have them, which is network slimming (Liu et al., ICCV 2017), else on the weights that read the unit
(Wen et al., NeurIPS 2016).  It is trimmed (Yun et al., "Trimming the l1 regularizer", ICML 2019): the largest
groups, as many as the budget allows, pay nothing.  A penalty on all of them shrinks whatever a BatchNorm
follows as one, since that costs nothing, long before single units are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widthsearch.controller import cut, target
from widthsearch.cost import Cost
from widthsearch.gates import Vector
from widthsearch.pruners.groups import Groups
from widthsearch.rule import Constraints
from widthsearch.space import WidthSpace

#: The share of the steps in which a unit of typical norm falls to zero.
FALL = 0.1


def shrunk(norms: Tensor, threshold: Tensor) -> Tensor:
    """By which factor the proximal operator of ``threshold * norm`` scales each group, (G,) in and out.

    ``max(0, 1 - threshold / norm)`` (Yuan and Lin, equation 2.6): exactly 0 up to the threshold.
    """
    return (1 - threshold / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)


class GroupL1:
    """After each step of the optimizer a proximal step on the units that the target of the moment has no
    room for, those of the smallest norms; it falls from the over-wide cost to the budget as for gates.

    Norms are relative to ``typical``, (U,), the mean norm over the units of the variable at the start: so
    layers of any scale and fan-out are treated alike.
    """

    def __init__(self, space: WidthSpace, cost: Cost, constraints: Constraints, *, steps: int) -> None:
        self.groups, self.steps, self.taken = Groups(space, scales=True), steps, 0
        self._widths, self._constraints = space.widths, constraints
        counts = np.array(list(space.widths.values()), dtype=np.float64)
        self._start = cost.values(counts)
        norms = self.groups.norms()
        mean = np.bincount(self.groups.variable, weights=norms.cpu().numpy()) / counts
        typical = np.maximum(mean, np.finfo(np.float32).tiny)[self.groups.variable]
        self.typical = torch.from_numpy(typical).to(norms)

    def after_step(self, rate: float = 0.0) -> None:
        """The proximal step that follows a step of the optimizer."""
        self.taken += 1
        done = self.taken / self.steps
        limits = {r: target(self._start[r], limit, done) for r, limit in self._constraints.budget.items()}
        norms = self.groups.norms()
        keep = cut(self._relative(norms), self._widths, replace(self._constraints, budget=limits))
        dropped = torch.from_numpy(~np.concatenate(list(keep.values()))).to(norms)
        self.groups.scale_(shrunk(norms, dropped * self.typical / (FALL * self.steps)))

    def scores(self) -> Vector:
        """The relative norm of each unit, (U,)."""
        return self._relative(self.groups.norms())

    def _relative(self, norms: Tensor) -> Vector:
        relative: Vector = (norms / self.typical).cpu().numpy()
        return relative

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, apart from the weights."""
        return {"taken": self.taken, "typical": self.typical.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.taken, self.typical = state["taken"], state["typical"].to(self.typical.device)

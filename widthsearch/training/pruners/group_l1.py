"""Group-L1: a price on the norm of each unit's weights, which takes whole units to exactly zero.

The group lasso (Yuan and Lin, JRSS B 2006) on the units of a width space: on BatchNorm scales where the
units have them, which is network slimming (Liu et al., ICCV 2017), else on the weights that read the unit
(Wen et al., NeurIPS 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widthsearch.maths.cost import Cost
from widthsearch.space import WidthSpace
from widthsearch.training.controller import Price
from widthsearch.training.gates import Vector
from widthsearch.training.pruners.groups import Groups


def shrunk(norms: Tensor, threshold: Tensor) -> Tensor:
    """By which factor the proximal operator of ``threshold * norm`` scales each group, (G,) in and out.

    ``max(0, 1 - threshold / norm)`` (Yuan and Lin, equation 2.6): exactly 0 up to the threshold.
    """
    return (1 - threshold / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)


class GroupL1:
    """The penalty ``sum over units of pays * norm / typical norm``, by a proximal step after each of SGD's.

    ``typical``, (U,): the mean norm over the units of the variable at the start, so that layers of any scale
    and fan-out pay alike.  What a unit pays, nobody tunes: its :class:`Price` follows the cost of the units
    that are not zero, as for gates.  Where a BatchNorm without scales undoes the size of what it gets, groups
    shrink together and few are zero at the end: units are cut by rank, whether their groups are or not.
    (With AdamW the step has the learning rate, without the preconditioning.)
    """

    def __init__(
        self, space: WidthSpace, cost: Cost, budget: Mapping[str, float], *, steps: int, pressure: str
    ) -> None:
        self.groups = Groups(space, scales=True)
        counts = np.array(list(space.widths.values()), dtype=np.float64)
        self.price = Price(counts, cost, budget, steps=steps, pressure=pressure)
        norms = self.groups.norms()
        mean = np.bincount(self.groups.variable, weights=norms.cpu().numpy()) / counts
        typical = np.maximum(mean, np.finfo(np.float32).tiny)[self.groups.variable]
        self.typical = torch.from_numpy(typical).to(norms)

    def after_step(self, rate: float) -> None:
        """The proximal step that follows an optimizer step of this learning rate."""
        norms = self.groups.norms()
        open_ = np.bincount(self.groups.variable, weights=(norms > 0).cpu().numpy())
        pays = self.price.step(np.maximum(open_, 1.0))  # (V,)
        threshold = rate * torch.from_numpy(pays[self.groups.variable]).to(norms) / self.typical
        self.groups.scale_(shrunk(norms, threshold))

    def scores(self) -> Vector:
        """The units' norms relative to the typical one, (U,)."""
        scores: Vector = (self.groups.norms() / self.typical).cpu().numpy()
        return scores

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, apart from the weights."""
        return {**self.price.state_dict(), "typical": self.typical.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.price.load_state_dict(state)
        self.typical = state["typical"].to(self.typical.device)

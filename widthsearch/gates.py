"""Gates under a budget: which neurons does an over-wide network give up first?

Hard-concrete gates (Louizos, Welling, Kingma: "Learning sparse neural networks through L0
regularization", ICLR 2018, equations 10 to 13), one per unit, on a whole width space:

    u ~ U(0, 1)
    s = sigmoid((log u - log(1 - u) + log_alpha) / TEMPERATURE)
    z = clamp(s * (HIGH - LOW) + LOW, 0, 1)
    P(z > 0) = sigmoid(log_alpha - TEMPERATURE * log(-LOW / HIGH))

The gate of a unit scales the input axis of every weight that consumes it.  That is exact whatever lies
between producer and consumer (bias, BatchNorm, activation, depthwise convolution, residual sum), where a
gate before a BatchNorm would be undone by it, and nearly free: weights are smaller than activations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from widthsearch.cost import Cost
from widthsearch.rule import Constraints
from widthsearch.space import WidthSpace

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1
START = 2.0  # log_alpha of a fresh gate: open with probability 0.96
_OPEN_SHIFT = TEMPERATURE * math.log(-LOW / HIGH)


def sample(log_alpha: Tensor) -> Tensor:
    """One hard-concrete sample per gate (equations 10 and 11).  Shape (U,) in, (U,) out."""
    noise = torch.empty_like(log_alpha).uniform_(1e-6, 1 - 1e-6).logit_()
    s = torch.sigmoid((noise + log_alpha) / TEMPERATURE)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def expected(log_alpha: Tensor) -> Tensor:
    """The gates used at test time (equation 13).  Shape (U,) in, (U,) out."""
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


class Gated(nn.Module):
    """A network with a gate on every unit of its width space.

    Owns one vector ``log_alpha`` (U,), the gates of all variables one after the other, and runs the user's
    model with gated weights through ``functional_call``: its modules, hooks and ``state_dict`` stay as they
    are.  In training mode every forward pass draws one sample; in eval mode the gates are
    :func:`expected`, times ``mask`` (U,) once that is set.
    """

    def __init__(self, space: WidthSpace) -> None:
        super().__init__()
        self.model = space.model
        units = sum(space.widths.values())
        device = next(space.model.parameters()).device
        self.log_alpha = nn.Parameter(torch.full((units,), START, device=device))
        self.mask: Tensor | None = None
        parameters = dict(space.model.named_parameters(remove_duplicate=False))
        # Per gated weight and axis: the gate positions of its indices, and the shape that broadcasts them.
        self._axes: list[tuple[str, Tensor | slice, list[int]]] = []
        for axis in space.consumers:
            shape = [1] * parameters[axis.parameter].ndim
            shape[axis.dim] = len(axis.unit)
            # Position U, appended to the gates, is the constant 1 of indices that belong to no unit.
            position = np.where(axis.unit >= 0, axis.unit, units)
            self._axes.append((axis.parameter, _as_slice(position, units, device), shape))

    def gates(self) -> Tensor:
        """The gate values of one forward pass, shape (U,), each in [0, 1]."""
        if self.training:
            return sample(self.log_alpha)
        z = expected(self.log_alpha)
        return z if self.mask is None else z * self.mask

    def forward(self, *inputs: Tensor) -> Tensor:
        """The user's model on ``inputs``, every consuming weight scaled by the gates of what it consumes."""
        z = self.gates()
        padded = torch.cat([z, z.new_ones(1)])
        weights: dict[str, Tensor] = {}
        for name, position, shape in self._axes:
            weight = weights[name] if name in weights else self.model.get_parameter(name)
            weights[name] = weight * padded[position].view(shape)
        # tie_weights=False: of tied weights only the consuming side is gated.
        output: Tensor = functional_call(self.model, weights, inputs, tie_weights=False)
        return output


def _as_slice(position: NDArray[np.int64], units: int, device: torch.device) -> Tensor | slice:
    """A slice where the positions are consecutive (the usual case): cheaper than an index, both ways."""
    start = int(position[0])
    if np.array_equal(position, np.arange(start, start + len(position))) and position[-1] < units:
        return slice(start, start + len(position))
    return torch.from_numpy(position).to(device)


@dataclass
class BudgetController:
    """The price of open gates, so that the expected cost follows a falling target and nobody tunes a lambda.

    Penalty ``price * log E[cost]`` (pressure ``cost``) or ``price * log E[number of open units]``
    (``neurons``).  The target falls geometrically from the over-wide cost to the budget over the first
    ``DESCENT`` of the steps; the price is a PI controller on ``log(E[cost] / target)``, of the resource that
    is most over its target, and never negative.

    :meth:`price_gates` adds the penalty's gradient to ``log_alpha.grad``.  It is written out by hand rather
    than left to autograd: on small networks the graph of the cost would cost more than the gates.
    """

    gated: Gated
    widths: Mapping[str, int]
    cost: Cost
    budget: Mapping[str, float]
    steps: int
    pressure: str = "neurons"

    PROPORTIONAL = 3.0
    INTEGRAL = 0.06  # per step of a run of REFERENCE_STEPS
    REFERENCE_STEPS = 550
    DESCENT = 0.6

    def __post_init__(self) -> None:
        """Start at the over-wide cost."""
        counts = np.array([self.widths[v] for v in self.cost.variables])
        self._variable = np.repeat(np.arange(len(counts)), counts)  # (U,): the variable of each unit
        self._start = self.cost({v: float(w) for v, w in self.widths.items()})
        self._integral = 0.0
        self._step = 0
        self.price = 0.0

    def price_gates(self) -> None:
        """One controller step; call it between ``backward()`` and the gates' optimizer step."""
        log_alpha = self.gated.log_alpha
        # float64 on the CPU: U numbers, microseconds, and the same result on every device
        a = log_alpha.detach().to("cpu", torch.float64).numpy()
        open_ = 1 / (1 + np.exp(_OPEN_SHIFT - a))  # P(z > 0), equation 12; shape (U,)
        units = np.bincount(self._variable, weights=open_)  # expected open units per variable, (V,)
        resource, error, gradient = self._most_over(units)
        self._integral = max(0.0, self._integral + error * self.REFERENCE_STEPS / self.steps)
        self.price = max(0.0, self.PROPORTIONAL * error + self.INTEGRAL * self._integral)
        self._step += 1
        slope = open_ * (1 - open_)  # d P(z > 0) / d log_alpha
        by_unit = gradient[self._variable] if self.pressure == "cost" else 1 / units.sum()
        penalty = torch.from_numpy(self.price * by_unit * slope).to(log_alpha)
        log_alpha.grad = penalty if log_alpha.grad is None else log_alpha.grad.add_(penalty)

    def _most_over(self, units: NDArray[np.float64]) -> tuple[str, float, NDArray[np.float64]]:
        """The resource most over its target: name, log(E[cost] / target), gradient of log E[cost] (V,)."""
        descent = min(1.0, self._step / (self.DESCENT * self.steps))
        found = []
        for resource, limit in self.budget.items():
            value, gradient = self.cost.gradient(resource, units)
            target = self._start[resource] ** (1 - descent) * limit**descent
            found.append((resource, math.log(value / target), gradient / value))
        return max(found, key=lambda f: f[1])


def cut(
    log_alpha: NDArray[np.float64], widths: Mapping[str, int], constraints: Constraints
) -> dict[str, NDArray[np.bool_]]:
    """Cut the gates by rank to the budget: per variable, which units stay.

    The longest prefix of the units in falling order of their logits that fits; the first ``minimum`` units
    of every variable stay in any case.  (A threshold on the gates would miss the budget by factors.)
    ``log_alpha``: (U,).  The constraints must allow the minimum.
    """
    smallest = {v: min(constraints.minimum[v], w) for v, w in widths.items()}
    rank = np.empty(len(log_alpha), dtype=np.int64)
    rank[np.argsort(-log_alpha, kind="stable")] = np.arange(len(log_alpha))
    ranks = np.split(rank, np.cumsum(list(widths.values()))[:-1])
    # The best units of a variable come first whatever their rank among all.
    for own, least in zip(ranks, smallest.values(), strict=True):
        own[np.argsort(own)[:least]] = -1

    def kept(prefix: int) -> dict[str, float]:
        return {v: float((own < prefix).sum()) for v, own in zip(widths, ranks, strict=True)}

    low, high = 0, len(log_alpha) + 1  # kept(low) fits, kept(high) is treated as if it did not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if constraints.allow(kept(middle)) else (low, middle)
    return {v: own < low for v, own in zip(widths, ranks, strict=True)}

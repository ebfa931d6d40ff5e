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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from widthsearch.cost import Cost
from widthsearch.rule import Constraints
from widthsearch.space import ConsumerAxis, WidthSpace

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1
START = 2.0  # log_alpha of a fresh gate: open with probability 0.96
_OPEN_SHIFT = TEMPERATURE * math.log(-LOW / HIGH)


def sample(log_alpha: Tensor) -> Tensor:
    """One hard-concrete sample per gate (equations 10 and 11).  Shape (U,) in, (U,) out."""
    noise = torch.empty_like(log_alpha, requires_grad=False).uniform_(1e-6, 1 - 1e-6).logit_()
    z: Tensor = _HardConcrete.apply(log_alpha, noise)  # type: ignore[no-untyped-call]
    return z


def expected(log_alpha: Tensor) -> Tensor:
    """The gates used at test time (equation 13).  Shape (U,) in, (U,) out."""
    return (torch.sigmoid(log_alpha) * (HIGH - LOW) + LOW).clamp(0, 1)


class Gated(nn.Module):
    """A network with a gate on every unit of its width space.

    Owns one vector ``log_alpha`` (U,), the gates of all variables one after the other, and runs the user's
    model with gated weights through ``functional_call``: its modules, hooks and ``state_dict`` stay as they
    are.  In training mode every forward pass draws one sample; in eval mode the gates are
    :func:`expected`, times ``mask`` (U,) once that is set.

    Where a linear layer's weight is larger than the batch that it is multiplied with (an MLP), the batch is
    scaled instead: the same product for less work.
    """

    def __init__(self, space: WidthSpace) -> None:
        super().__init__()
        self.model = space.model
        device = next(space.model.parameters()).device
        units = sum(space.widths.values())
        self.log_alpha = nn.Parameter(torch.full((units,), START, device=device))
        self.mask: Tensor | None = None
        self._axes = [_GatedAxis.of(axis, space, device) for axis in space.consumers]

    def gates(self) -> Tensor:
        """The gate values of one forward pass, shape (U,), each in [0, 1]."""
        if self.training:
            return sample(self.log_alpha)
        z = expected(self.log_alpha)
        return z if self.mask is None else z * self.mask

    def forward(self, *inputs: Tensor) -> Tensor:
        """The user's model on ``inputs``, every consuming weight scaled by the gates of what it consumes."""
        by_input = [axis.is_cheaper_on_input(len(inputs[0])) for axis in self._axes]
        weights = [
            None if cheaper else axis.weight for axis, cheaper in zip(self._axes, by_input, strict=True)
        ]
        products = _Products.apply(self.gates(), self._axes, *weights)  # type: ignore[no-untyped-call]
        replaced: dict[str, Tensor] = {}
        hooks = []
        try:
            for axis, product, weight in zip(self._axes, products, weights, strict=True):
                if weight is None and axis.linear is not None:
                    hooks.append(axis.linear.register_forward_pre_hook(_scale_input(product)))
                elif axis.parameter in replaced:  # it consumes on two of its axes
                    replaced[axis.parameter] = replaced[axis.parameter] * product
                else:
                    replaced[axis.parameter] = product
            # tie_weights=False: of tied weights only the consuming side is gated.
            output: Tensor = functional_call(self.model, replaced, inputs, tie_weights=False)
        finally:
            for hook in hooks:
                hook.remove()
        return output


def _scale_input(gate: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, inputs: (inputs[0] * gate, *inputs[1:])


@dataclass(frozen=True, eq=False)
class _GatedAxis:
    """One consuming weight axis: how to find its gates and what to multiply them with."""

    parameter: str
    weight: nn.Parameter | None  # None for the second axis of a weight that consumes on two
    shape: list[int]  # that broadcasts the gates of the axis against the weight
    others: list[int]  # the weight's other dimensions
    part: slice | None  # of all gates: where the axis is one whole variable in order, the usual case
    index: Tensor | None  # else the position of each index among all gates; U is the constant 1
    linear: nn.Linear | None  # the one module that reads the weight, if it is a plain linear layer
    inputs_per_sample: int

    @classmethod
    def of(cls, axis: ConsumerAxis, space: WidthSpace, device: torch.device) -> _GatedAxis:
        weight = space.model.get_parameter(axis.parameter)
        units, size = sum(space.widths.values()), len(axis.unit)
        position = np.where(axis.unit >= 0, axis.unit, units)
        start = int(position[0])
        in_order = np.array_equal(position, np.arange(start, start + size)) and start + size <= units
        same = [other for other in space.consumers if other.parameter == axis.parameter]
        owner_name = axis.parameter.rpartition(".")[0]
        owner = space.model.get_submodule(owner_name)
        plain = type(owner) is nn.Linear and axis.modules == {owner_name} and len(same) == 1
        return cls(
            parameter=axis.parameter,
            weight=weight if same[0] is axis else None,
            shape=[size if d == axis.dim else 1 for d in range(weight.ndim)],
            others=[d for d in range(weight.ndim) if d != axis.dim],
            part=slice(start, start + size) if in_order else None,
            index=None if in_order else torch.from_numpy(position).to(device),
            linear=owner if isinstance(owner, nn.Linear) and plain else None,
            inputs_per_sample=axis.elements_per_sample,
        )

    def is_cheaper_on_input(self, batch: int) -> bool:
        """Whether scaling what the weight is multiplied with is less work than scaling the weight."""
        if self.linear is None or self.weight is None:
            return False
        return batch * self.inputs_per_sample < self.weight.numel()


# The two functions below do by hand what autograd would do operation by operation.  A small network has
# many weights and little to do with each: there the graph would cost more than the gates.


class _HardConcrete(torch.autograd.Function):
    """``clamp(sigmoid((noise + log_alpha) / TEMPERATURE) * (HIGH - LOW) + LOW, 0, 1)``."""

    @staticmethod
    def forward(ctx: Any, log_alpha: Tensor, noise: Tensor) -> Tensor:
        s = noise.add_(log_alpha).div_(TEMPERATURE).sigmoid_()
        z = torch.add(LOW, s, alpha=HIGH - LOW).clamp_(0, 1)
        ctx.save_for_backward(s, z)
        return z

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        s, z = ctx.saved_tensors
        inside = (z > 0) & (z < 1)
        return gradient * inside * s * (1 - s) * ((HIGH - LOW) / TEMPERATURE), None


class _Products(torch.autograd.Function):
    """Per axis, its weight times its gates, or its gates alone where there is no weight.

    ``z``: (U,), all gates.  In one node of the graph, whose backward pass sums over each weight's other
    dimensions and collects the gradient of all gates.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, axes: list[_GatedAxis], *weights: Tensor | None) -> tuple[Tensor, ...]:
        padded = None
        products, gates = [], []
        for axis, weight in zip(axes, weights, strict=True):
            if axis.part is not None:
                gate = z[axis.part]
            else:
                padded = torch.cat([z, z.new_ones(1)]) if padded is None else padded
                gate = padded[axis.index]
            shaped = gate.view(axis.shape)
            alone = gate.clone() if axis.linear is not None else shaped.clone()
            products.append(alone if weight is None else weight * shaped)
            gates.append(shaped)
        ctx.axes, ctx.units = axes, len(z)
        ctx.save_for_backward(*gates, *weights)
        return tuple(products)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        n = len(ctx.axes)
        gates, weights = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        by_z = gradients[0].new_zeros(ctx.units + 1)
        by_weight: list[Tensor | None] = []
        for axis, g, gate, weight in zip(ctx.axes, gradients, gates, weights, strict=True):
            by_weight.append(None if weight is None else g * gate)
            by_gate = g.flatten() if weight is None else (g * weight).sum(axis.others)
            if axis.part is not None:
                by_z[axis.part] += by_gate
            else:
                by_z.index_add_(0, axis.index, by_gate)
        return by_z[:-1], None, *by_weight


class BudgetController:
    """Trains the gates under a budget, at a price that it sets itself, so that nobody tunes a lambda.

    Penalty ``price * log E[cost]`` (pressure ``cost``) or ``price * log E[number of open units]``
    (``neurons``).  The target falls geometrically from the over-wide cost to the budget over the first
    ``DESCENT`` of the ``steps``; the price is a PI controller on ``log(E[cost] / target)``, of the resource
    that is most over its target, and never negative.

    Call :meth:`step` after ``backward()``, beside the optimizer of the weights.  The gates have an Adam of
    their own and no weight decay, which would pull them to half open.  All of it is a few vectors of U
    numbers, in float64 on the CPU: the same on every device, and quicker than a graph of small kernels.
    """

    PROPORTIONAL = 3.0
    INTEGRAL = 0.06  # per step of a run of REFERENCE_STEPS
    LEARNING_RATE = (
        0.05  # likewise: gates start at +2 and must be able to get below -2 in any number of steps
    )
    REFERENCE_STEPS = 550
    DESCENT = 0.6
    BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's (Kingma and Ba 2015)

    def __init__(
        self,
        gated: Gated,
        widths: Mapping[str, int],
        cost: Cost,
        budget: Mapping[str, float],
        *,
        steps: int,
        pressure: str = "neurons",
    ) -> None:
        self.gated, self.cost, self.budget = gated, cost, budget
        self.steps, self.pressure = steps, pressure
        self.price = 0.0
        counts = np.array([widths[v] for v in cost.variables])
        self._variable = np.repeat(np.arange(len(counts)), counts)  # (U,): the variable of each unit
        self._start = cost.values(counts.astype(np.float64))
        self._scale = self.REFERENCE_STEPS / steps
        self._integral = 0.0
        self._step = 0
        self._mean = np.zeros(len(self._variable))  # Adam's first and second moment
        self._square = np.zeros(len(self._variable))

    def step(self) -> None:
        """Set the price, and move the gates by the gradient of loss and penalty."""
        log_alpha = self.gated.log_alpha
        a = log_alpha.detach().to("cpu", torch.float64).numpy()  # (U,)
        g = self.penalty_gradient(a)
        if log_alpha.grad is not None:
            g += log_alpha.grad.to("cpu", torch.float64).numpy()
        beta1, beta2 = self.BETAS
        self._mean += (1 - beta1) * (g - self._mean)
        self._square += (1 - beta2) * (g * g - self._square)
        rate = self.LEARNING_RATE * self._scale / (1 - beta1**self._step)
        move = rate * self._mean / (np.sqrt(self._square / (1 - beta2**self._step)) + self.EPSILON)
        with torch.no_grad():
            log_alpha.copy_(torch.from_numpy(a - move))

    def penalty_gradient(self, log_alpha: NDArray[np.float64]) -> NDArray[np.float64]:
        """One step of the controller: sets the price; the gradient of the penalty, shape (U,)."""
        open_ = 1 / (1 + np.exp(_OPEN_SHIFT - log_alpha))  # P(z > 0), equation 12
        units = np.bincount(self._variable, weights=open_)  # expected open units per variable, (V,)
        resource, error = self._most_over(units)
        self._step += 1
        self._integral = max(0.0, self._integral + error * self._scale)
        self.price = max(0.0, self.PROPORTIONAL * error + self.INTEGRAL * self._integral)
        by_unit: float | NDArray[np.float64] = 1 / units.sum()  # d log E[.] / d P(z > 0)
        if self.pressure == "cost":
            value, gradient = self.cost.gradient(resource, units)
            by_unit = gradient[self._variable] / value
        result: NDArray[np.float64] = self.price * by_unit * open_ * (1 - open_)
        return result

    def _most_over(self, units: NDArray[np.float64]) -> tuple[str, float]:
        """The resource that is most over its target, and ``log(E[cost] / target)``."""
        descent = min(1.0, self._step / (self.DESCENT * self.steps))
        cost = self.cost.values(units)
        errors = {
            resource: math.log(cost[resource] / (self._start[resource] ** (1 - descent) * limit**descent))
            for resource, limit in self.budget.items()
        }
        worst = max(errors, key=lambda resource: errors[resource])
        return worst, errors[worst]


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

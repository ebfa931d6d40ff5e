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

All gates of a network are a few hundred or thousand numbers.  They live in NumPy on the CPU, and what is
done with them is written out by hand: on small networks autograd's graph of it, or a second torch optimizer,
would take longer than the gates do.  Only their products with the weights are torch.
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

from widthsearch.cost import Cost
from widthsearch.rule import Constraints
from widthsearch.space import ConsumerAxis, WidthSpace

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1
START = 2.0  # log_alpha of a fresh gate: open with probability 0.96
_OPEN_SHIFT = TEMPERATURE * math.log(-LOW / HIGH)

Vector = NDArray[np.floating[Any]]


def sample(log_alpha: Vector, uniform: Vector) -> tuple[Vector, Vector]:
    """One hard-concrete sample per gate from ``uniform`` numbers in (0, 1) (equations 10 and 11).

    Returns the gates z and their derivatives dz / d log_alpha.  All shapes are (U,).
    """
    s = 1 / (1 + np.exp((np.log(1 / uniform - 1) - log_alpha) / TEMPERATURE))
    z = np.clip(s * (HIGH - LOW) + LOW, 0, 1)
    slope = (z - LOW) * (HIGH - z) / ((HIGH - LOW) * TEMPERATURE)  # s (1 - s) (HIGH - LOW) / TEMPERATURE
    return z, slope * ((z > 0) & (z < 1))


def expected(log_alpha: Vector) -> Vector:
    """The gates used at test time (equation 13).  Shape (U,) in, (U,) out."""
    z: Vector = np.clip((HIGH - LOW) / (1 + np.exp(-log_alpha)) + LOW, 0, 1)
    return z


def open_probability(log_alpha: Vector) -> Vector:
    """P(z > 0) (equation 12).  Shape (U,) in, (U,) out."""
    p: Vector = 1 / (1 + np.exp(_OPEN_SHIFT - log_alpha))
    return p


class Gated(nn.Module):
    """A network with a gate on every unit of its width space.

    Owns one vector ``log_alpha`` (U,), the gates of all variables one after the other.  For the time of a
    forward pass the gated weights stand in for the user's parameters, as ``torch.func.functional_call``
    would put them there (which is slower); after it modules, hooks and ``state_dict`` are as they were.  Of
    tied weights only the consuming side is gated.

    In training mode every forward pass draws one sample from torch's global generator, and
    :meth:`take_gradient` gives what ``backward`` found; in eval mode the gates are :func:`expected`, times
    ``mask`` (bool, (U,)) once that is set.

    Where a linear layer's weight is larger than the batch that it is multiplied with (an MLP), the batch is
    scaled instead: the same product for less work.
    """

    def __init__(self, space: WidthSpace) -> None:
        super().__init__()
        self.model = space.model
        self.device = next(space.model.parameters()).device
        self.log_alpha: Vector = np.full(sum(space.widths.values()), START, dtype=np.float32)
        self.mask: NDArray[np.bool_] | None = None
        self._widths = list(space.widths.values())
        self._axes = [_GatedAxis.of(axis, space, self.device) for axis in space.consumers]
        self._drawn: list[tuple[Tensor, Vector]] = []  # gates of training passes and their derivatives

    def gates(self) -> Tensor:
        """The gate values of one forward pass, shape (U,), each in [0, 1]."""
        if not self.training:
            closed = 1 if self.mask is None else self.mask
            return torch.from_numpy((expected(self.log_alpha) * closed).astype(np.float32)).to(self.device)
        uniform = torch.rand(len(self.log_alpha)).numpy().clip(1e-6, 1 - 1e-6)
        values, slope = sample(self.log_alpha, uniform)
        z = torch.from_numpy(values).to(self.device).requires_grad_()
        self._drawn.append((z, slope))
        return z

    def take_gradient(self) -> Vector:
        """d loss / d log_alpha, shape (U,), summed over the passes since it was last taken."""
        gradient = np.zeros_like(self.log_alpha)
        for z, slope in self._drawn:
            if z.grad is not None:
                gradient += z.grad.cpu().numpy() * slope
        self._drawn.clear()
        return gradient

    def forward(self, *inputs: Tensor) -> Tensor:
        """The user's model on ``inputs``, every consuming weight scaled by the gates of what it consumes."""
        z = self.gates()
        # The usual axis is one whole variable: one node of the graph for all of these.
        variables = z.split(self._widths)  # type: ignore[no-untyped-call]
        hooks = []
        try:
            for axis in self._axes:
                gate = variables[axis.variable] if axis.index is None else _padded(z)[axis.index]
                if axis.is_cheaper_on_input(len(inputs[0])):
                    hooks.append(axis.module.register_forward_pre_hook(_scale_input(gate)))
                else:
                    for parameters, leaf in axis.places:
                        parameters[leaf] = parameters[leaf] * gate.view(axis.shape)
            output: Tensor = self.model(*inputs)
        finally:
            for axis in self._axes:
                for parameters, leaf in axis.places:
                    parameters[leaf] = axis.weight
            for hook in hooks:
                hook.remove()
        return output


def _padded(z: Tensor) -> Tensor:
    return torch.cat([z, z.new_ones(1)])


def _scale_input(gate: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, inputs: (inputs[0] * gate, *inputs[1:])


@dataclass(frozen=True, eq=False)
class _GatedAxis:
    """One consuming weight axis: how to find its gates and what to multiply them with."""

    weight: nn.Parameter
    places: list[
        tuple[dict[str, Any], str]
    ]  # the parameters of each module that reads it, and its name there
    shape: list[int]  # that broadcasts the gates of the axis against the weight
    variable: int  # if ``index`` is None (the usual case), the axis is this whole variable in order
    index: Tensor | None  # else the position of each index among all gates; U is the constant 1
    module: nn.Module  # that has the weight
    on_input: bool  # whether that is a plain linear layer, and the only reader of the weight
    inputs_per_sample: int

    @classmethod
    def of(cls, axis: ConsumerAxis, space: WidthSpace, device: torch.device) -> _GatedAxis:
        weight = space.model.get_parameter(axis.parameter)
        starts = np.cumsum([0, *space.widths.values()])
        position = np.where(axis.unit >= 0, axis.unit, starts[-1])
        variable = int(np.searchsorted(starts[1:-1], position[0], side="right"))
        whole = np.array_equal(position, np.arange(starts[variable], starts[variable + 1]))
        owner_name = axis.parameter.rpartition(".")[0]
        owner = space.model.get_submodule(owner_name)
        have_it = [
            (name, (module._parameters, leaf))
            for name, module in space.model.named_modules()
            for leaf, parameter in module._parameters.items()
            if parameter is weight
        ]
        # Of tied weights, where one module may produce what another consumes, those that consume.  If it is
        # read by a module that does not have it (a functional call), wherever it is.
        reading = [place for name, place in have_it if name in axis.modules]
        alone = sum(other.parameter == axis.parameter for other in space.consumers) == 1
        return cls(
            weight=weight,
            places=reading or [place for _, place in have_it],
            shape=[len(axis.unit) if d == axis.dim else 1 for d in range(weight.ndim)],
            variable=variable,
            index=None if whole else torch.from_numpy(position).to(device),
            module=owner,
            on_input=type(owner) is nn.Linear and axis.modules == {owner_name} and alone,
            inputs_per_sample=axis.elements_per_sample,
        )

    def is_cheaper_on_input(self, batch: int) -> bool:
        """Whether scaling what the weight is multiplied with is less work than scaling the weight."""
        return self.on_input and batch * self.inputs_per_sample < self.weight.numel()


class BudgetController:
    """Trains the gates under a budget, at a price that it sets itself, so that nobody tunes a lambda.

    Penalty ``price * log E[cost]`` (pressure ``cost``) or ``price * log E[number of open units]``
    (``neurons``).  The target falls geometrically from the over-wide cost to the budget over the first
    ``DESCENT`` of the ``steps``; the price is a PI controller on ``log(E[cost] / target)``, of the resource
    that is most over its target, and never negative.

    Call :meth:`step` after ``backward()``, beside the optimizer of the weights.  The gates have an Adam of
    their own (Kingma and Ba 2015) and no weight decay, which would pull them to half open.
    """

    PROPORTIONAL = 3.0
    INTEGRAL = 0.06  # per step of a run of REFERENCE_STEPS
    LEARNING_RATE = 0.05  # likewise: in any number of steps a gate must be able to get from +2 below -2
    REFERENCE_STEPS = 550
    DESCENT = 0.6
    BETAS, EPSILON = (0.9, 0.999), 1e-8

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
        self._mean = np.zeros_like(gated.log_alpha)  # Adam's first and second moment
        self._square = np.zeros_like(gated.log_alpha)

    def step(self) -> None:
        """Set the price, and move the gates by the gradient of loss and penalty."""
        log_alpha = self.gated.log_alpha
        g = self.gated.take_gradient() + self.penalty_gradient(log_alpha)
        beta1, beta2 = self.BETAS
        self._mean += (1 - beta1) * (g - self._mean)
        self._square += (1 - beta2) * (g * g - self._square)
        rate = self.LEARNING_RATE * self._scale / (1 - beta1**self._step)
        root = np.sqrt(self._square / (1 - beta2**self._step)) + self.EPSILON
        log_alpha -= np.float32(rate) * self._mean / root

    def penalty_gradient(self, log_alpha: Vector) -> Vector:
        """One step of the controller: sets the price; the gradient of the penalty, shape (U,)."""
        open_ = open_probability(log_alpha)
        # The expected open units per variable, (V,).  (bincount with weights is float64 already.)
        units = np.bincount(self._variable, weights=open_).astype(np.float64, copy=False)
        resource, error = self._most_over(units)
        self._step += 1
        self._integral = max(0.0, self._integral + error * self._scale)
        self.price = max(0.0, self.PROPORTIONAL * error + self.INTEGRAL * self._integral)
        slope = open_ * (1 - open_)  # d P(z > 0) / d log_alpha
        if self.pressure == "neurons":
            return slope * log_alpha.dtype.type(self.price / units.sum())
        value, by_variable = self.cost.gradient(resource, units)
        return slope * (self.price / value * by_variable).astype(log_alpha.dtype)[self._variable]

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
    log_alpha: Vector, widths: Mapping[str, int], constraints: Constraints
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

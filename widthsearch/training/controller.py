"""The budget: what gates cost, and which units stay in the end.

All gates of a network are a few hundred or thousand numbers.  They live in NumPy on the CPU, and what is
done with them is written out by hand: on small networks autograd's graph of it, or a second torch optimizer,
would take longer than the gates do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from widthsearch.maths.cost import Cost
from widthsearch.maths.rule import Constraints
from widthsearch.training.gates import Vector, open_probability


def per_unit(cost: Cost, resource: str, units: NDArray[np.float64], pressure: str) -> NDArray[np.float64]:
    """What one more unit of each variable adds, (V,): the gradient of what ``pressure`` has a price on.

    ``cost``: the logarithm of the cost in this resource, without what no width changes; ``neurons``: the
    logarithm of the number of units.  ``units``: how many there are, (V,).
    """
    if pressure == "neurons":
        return np.full(len(units), 1 / units.sum())
    value, by_variable = cost.gradient(resource, units)
    return by_variable / (value - cost.overhead(resource))


class Price:
    """The price of open units, set so that their cost follows a target: nobody tunes a lambda.

    The target falls geometrically from the over-wide cost to the budget over the first ``steps`` of the
    training, and stays there; the price is a PI controller on ``log(cost / target)``, of the resource that is
    most over its target, and never negative.  ``counts``: the widths at the start, (V,).
    """

    PROPORTIONAL = 3.0
    INTEGRAL = 0.06  # per step where the target falls for REFERENCE_STEPS
    REFERENCE_STEPS = 330

    def __init__(
        self,
        counts: NDArray[np.float64],
        cost: Cost,
        budget: Mapping[str, float],
        *,
        steps: int,
        pressure: str,
    ) -> None:
        self.cost, self.budget, self.steps, self.pressure = cost, budget, steps, pressure
        self.value = 0.0
        self.taken = 0  # steps
        self.scale = self.REFERENCE_STEPS / steps
        self._start = cost.values(counts)
        self._fixed = {resource: cost.overhead(resource) for resource in budget}
        self._integral = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"integral": self._integral, "taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._integral, self.taken = state["integral"], state["taken"]

    def step(self, units: NDArray[np.float64], steps: int = 1) -> NDArray[np.float64]:
        """Set the price for so many units per variable, (V,), and so many steps; what a unit pays, (V,)."""
        resource, error = self._most_over(units)
        self.taken += steps
        self._integral = max(0.0, self._integral + error * self.scale * steps)
        self.value = max(0.0, self.PROPORTIONAL * error + self.INTEGRAL * self._integral)
        return self.value * per_unit(self.cost, resource, units, self.pressure)

    def outcome(self, units: NDArray[np.float64]) -> tuple[float, dict[str, float]]:
        """At the end: the price, and the cost of so many units relative to the budget, per resource."""
        cost, (_, error) = self.cost.values(units), self._most_over(units)
        price = max(0.0, self.PROPORTIONAL * error + self.INTEGRAL * self._integral)
        return price, {resource: cost[resource] / limit for resource, limit in self.budget.items()}

    def _most_over(self, units: NDArray[np.float64]) -> tuple[str, float]:
        """The resource that is most over its target, and ``log(cost / target)``."""
        descent = min(1.0, self.taken / self.steps)
        cost = self.cost.values(units)
        errors = {}
        for resource, limit in self.budget.items():
            fixed = self._fixed[resource]
            target = (self._start[resource] - fixed) ** (1 - descent) * (limit - fixed) ** descent
            errors[resource] = math.log((cost[resource] - fixed) / target)
        worst = max(errors, key=lambda resource: errors[resource])
        return worst, errors[worst]


class BudgetController:
    """Trains the gates under a budget: each open one pays its :class:`Price`.

    Penalty ``price * log E[cost]`` (pressure ``cost``) or ``price * log E[number of open units]``
    (``neurons``).

    Call :meth:`step` with what each ``backward()`` finds, or attach it: ``gates.attached(controller.step)``.
    The gates have an Adam of their own (Kingma and Ba 2015) and no weight decay, which would pull them to
    half open.
    """

    LEARNING_RATE = 0.05  # per step of Price.REFERENCE_STEPS: a gate must get from +2 below -2
    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(
        self,
        log_alpha: Vector,
        widths: Mapping[str, int],
        cost: Cost,
        budget: Mapping[str, float],
        *,
        steps: int,
        pressure: str = "neurons",
    ) -> None:
        self.log_alpha = log_alpha
        counts = np.array([widths[v] for v in cost.variables])
        self._variable = np.repeat(np.arange(len(counts)), counts)  # (U,): the variable of each unit
        self.price = Price(counts.astype(np.float64), cost, budget, steps=steps, pressure=pressure)
        self._mean = np.zeros_like(log_alpha)  # Adam's first and second moment
        self._square = np.zeros_like(log_alpha)

    @property
    def taken(self) -> int:
        """Steps so far."""
        return self.price.taken

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, apart from the logits (the gates have these)."""
        moments = {
            "mean": torch.from_numpy(self._mean.copy()),
            "square": torch.from_numpy(self._square.copy()),
        }
        return {**moments, **self.price.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._mean, self._square = state["mean"].numpy().copy(), state["square"].numpy().copy()
        self.price.load_state_dict(state)

    def step(self, gradient: Vector) -> None:
        """Set the price, and move the gates, in place; ``gradient``: d loss / d log_alpha, shape (U,)."""
        log_alpha = self.log_alpha
        g = gradient + self.penalty_gradient(log_alpha)
        beta1, beta2 = self.BETAS
        self._mean += (1 - beta1) * (g - self._mean)
        self._square += (1 - beta2) * (g * g - self._square)
        rate = self.LEARNING_RATE * self.price.scale / (1 - beta1**self.taken)
        root = np.sqrt(self._square / (1 - beta2**self.taken)) + self.EPSILON
        log_alpha -= np.float32(rate) * self._mean / root

    def penalty_gradient(self, log_alpha: Vector) -> Vector:
        """One step of the controller: sets the price; the gradient of the penalty, shape (U,)."""
        open_ = open_probability(log_alpha)
        pays = self.price.step(self._units(open_))
        slope = open_ * (1 - open_)  # d P(z > 0) / d log_alpha
        return slope * pays.astype(log_alpha.dtype)[self._variable]

    def outcome(self) -> tuple[float, dict[str, float]]:
        """At the end: the price, and the expected cost of each resource relative to its budget."""
        return self.price.outcome(self._units(open_probability(self.log_alpha)))

    def _units(self, open_: Vector) -> NDArray[np.float64]:
        """The expected open units per variable, (V,).  (bincount with weights is float64 already.)"""
        return np.bincount(self._variable, weights=open_).astype(np.float64, copy=False)


def best_units(
    log_alpha: Vector, widths: Mapping[str, int], kept: Mapping[str, int]
) -> dict[str, NDArray[np.bool_]]:
    """Per variable, its ``kept`` units with the largest logits; ``log_alpha``: (U,)."""
    parts = np.split(log_alpha, np.cumsum(list(widths.values()))[:-1])
    return {
        v: np.argsort(np.argsort(-own, kind="stable")) < kept[v] for v, own in zip(widths, parts, strict=True)
    }


def cut(scores: Vector, widths: Mapping[str, int], constraints: Constraints) -> dict[str, NDArray[np.bool_]]:
    """Cut by rank to the budget: per variable, which units stay.

    The longest prefix of the units in falling order of their scores (logits of gates, or a pruner's) that
    fits; the first ``minimum`` units of every variable stay in any case.  (A threshold on the gates would
    miss the budget by factors.)  ``scores``: (U,).  The constraints must allow the minimum.
    """
    smallest = {v: min(constraints.minimum[v], w) for v, w in widths.items()}
    rank = np.empty(len(scores), dtype=np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    ranks = np.split(rank, np.cumsum(list(widths.values()))[:-1])
    # The best units of a variable come first whatever their rank among all.
    for own, least in zip(ranks, smallest.values(), strict=True):
        own[np.argsort(own)[:least]] = -1

    def kept(prefix: int) -> dict[str, float]:
        return {v: float((own < prefix).sum()) for v, own in zip(widths, ranks, strict=True)}

    low, high = 0, len(scores) + 1  # kept(low) fits, kept(high) is treated as if it did not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if constraints.allow(kept(middle)) else (low, middle)
    return {v: own < low for v, own in zip(widths, ranks, strict=True)}

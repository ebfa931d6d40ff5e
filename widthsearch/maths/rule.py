"""The rule: from prune ratios to the next widths.  Pure functions of numbers; no torch, no files.

Symbols, for the V width variables i and the R replicas r of one measure:

    w_i        width of the over-wide network
    p_ri       prune ratio, 1 - kept_ri / w_i
    p_i        merged prune ratio: 1 - geometric mean over r of (1 - p_ri)
    spread     standard deviation over i of the replica mean of p_ri
    x_i        log((1 - p_i) / g), with g the geometric mean over i of (1 - p_i): the direction
    w'_i       w_i * exp(s * d * x_i / standard deviation of x), a proposal at the step size s
    d          :func:`damping`, by what the replicas differ

A layer that keeps more of its neurons than the typical layer grows, one that keeps less shrinks; where
all layers prune by the same share, nothing moves (the fixed point, "balanced").  ``w'`` has no scale of
its own: :func:`scale_to_budget` gives it one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Widths = Mapping[str, int]
CostFunction = Callable[[Mapping[str, float]], Mapping[str, float]]

#: Largest factor by which one round may move a width against the others: a wild measure (a layer that
#: lost nearly all of its gates by accident) must not be able to wreck the next network.
MAX_STEP = 8.0
#: Differences of log-kept shares that are due to rounding, and no direction.
ROUNDING = 1e-9


class BudgetTooSmallError(ValueError):
    """Not even the minimum widths fit the budget."""


@dataclass(frozen=True)
class Constraints:
    """What widths must obey: a budget per resource, and per variable a minimum and a step.

    ``multiple_of`` and ``minimum`` have one entry per variable; a minimum that is no multiple is rounded up.
    """

    cost: CostFunction
    budget: Mapping[str, float]
    minimum: Mapping[str, int]
    multiple_of: Mapping[str, int]

    def smallest(self) -> dict[str, int]:
        """The narrowest network allowed."""
        return {v: -(-self.minimum[v] // step) * step for v, step in self.multiple_of.items()}

    def allow(self, widths: Mapping[str, float]) -> bool:
        """Whether ``widths`` fit the budget in every resource."""
        cost = self.cost(widths)
        return all(cost[resource] <= limit for resource, limit in self.budget.items())


def merge(prune_ratios: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Merge the replicas of one measure by the geometric mean of the shares they kept."""
    return {v: 1 - float(np.exp(np.mean([np.log1p(-p[v]) for p in prune_ratios]))) for v in prune_ratios[0]}


def grow_shrink(
    widths: Mapping[str, float],
    prune_ratio: Mapping[str, float],
    *,
    damping: float = 1.0,
    max_step: float = MAX_STEP,
) -> dict[str, float]:
    """Relative widths of the next network: take from layers that prune easily, give to those that do not.

    Every factor lies in ``[1 / max_step, max_step]``, is 1 where all ratios are equal, and falls when the
    layer's own prune ratio rises.  ``damping`` 0 leaves the widths alone, 1 is the full step.
    """
    log_kept = np.array([np.log1p(-prune_ratio[v]) for v in widths])
    log_step = np.clip(damping * (log_kept - log_kept.mean()), -np.log(max_step), np.log(max_step))
    return {v: w * float(np.exp(s)) for (v, w), s in zip(widths.items(), log_step, strict=True)}


def length(prune_ratio: Mapping[str, float]) -> float:
    """How far the full step goes: the standard deviation over the variables of its change in log width."""
    return float(np.std([np.log1p(-p) for p in prune_ratio.values()]))


def damping(prune_ratios: Sequence[Mapping[str, float]]) -> float:
    """How much of the full step the replicas justify, in [0, 1].

    The positive-part James-Stein factor ``1 - noise variance / observed variance`` of the log-kept shares:
    near 1 while layers differ by much more than replicas do, 0 once replica noise explains all of the
    difference.  Without it the late rounds are a random walk.  One replica tells nothing of the noise: 1.
    """
    log_kept = np.array([[np.log1p(-p[v]) for v in prune_ratios[0]] for p in prune_ratios])  # (R, V)
    r, v = log_kept.shape
    if r < 2 or v < 2:
        return 1.0
    noise = log_kept.var(axis=0, ddof=1).mean() / r  # variance of a replica mean
    observed = log_kept.mean(axis=0).var(ddof=1)
    return float(max(0.0, 1.0 - noise / observed)) if observed > 0 else 0.0


def proposal(
    widths: Mapping[str, float], prune_ratios: Sequence[Mapping[str, float]], step: float
) -> dict[str, float]:
    """Relative widths at a distance of ``step`` in the direction that the replicas of a measure give.

    The distance is the standard deviation of the change in log width, times :func:`damping`.  Where all
    layers prune by the same share there is no direction, and nothing moves.
    """
    merged = merge(prune_ratios)
    full = length(merged)
    factor = damping(prune_ratios) * step / full if full > ROUNDING else 0.0
    return grow_shrink(widths, merged, damping=factor)


def standard_error(prune_ratios: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Standard error over replicas of each variable's mean prune ratio; ``None`` with one replica."""
    if len(prune_ratios) < 2:
        return None
    n = len(prune_ratios)
    return {v: float(np.std([p[v] for p in prune_ratios], ddof=1) / np.sqrt(n)) for v in prune_ratios[0]}


def spread(prune_ratios: Sequence[Mapping[str, float]]) -> float:
    """Standard deviation over the width variables of the replica-mean prune ratio (0 for one variable)."""
    means = [np.mean([p[v] for p in prune_ratios]) for v in prune_ratios[0]]
    return float(np.std(means, ddof=1)) if len(means) > 1 else 0.0


def balanced(
    prune_ratios: Sequence[Mapping[str, float]], *, tolerance: float = 0.02, level: float = 0.05
) -> bool:
    """Whether all layers prune by the same share, as far as the replicas can tell.

    True if the spread is at most ``tolerance``, or if a one-way analysis of variance (layers as groups,
    replicas as repeats) does not reject "all layers have the same mean ratio" at ``level``.
    """
    s = spread(prune_ratios)
    if s <= tolerance:
        return True
    ratios = np.array([list(p.values()) for p in prune_ratios])  # (R, V)
    r, v = ratios.shape
    if r < 2:
        return False
    within = float(ratios.var(axis=0, ddof=1).mean())
    if within == 0:
        return False
    from scipy.special import fdtrc  # imported here: `widthsearch show` should start fast

    p_value = float(fdtrc(v - 1, v * (r - 1), r * s**2 / within))
    return p_value > level


def scale_to_budget(relative: Mapping[str, float], constraints: Constraints) -> dict[str, int]:
    """The widest whole widths in the proportions ``relative`` that fit the budget.

    Bisection on one multiplier m over ``floor(m * relative)``; then what the floors left over goes to the
    variables in the order of their rounding deficit, one step each, wherever it still fits.

    Raises :class:`BudgetTooSmallError` if the minimum widths already cost too much.
    """
    smallest, step = constraints.smallest(), constraints.multiple_of
    if not constraints.allow(smallest):
        raise BudgetTooSmallError(f"the minimum widths cost {dict(constraints.cost(smallest))}")

    def floored(m: float) -> dict[str, int]:
        return {v: max(smallest[v], int(m * x / step[v]) * step[v]) for v, x in relative.items()}

    low, high = 0.0, 1.0
    widths = smallest  # at low
    while constraints.allow(too_wide := floored(high)):
        low, high, widths = high, 2 * high, too_wide
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        found = floored(middle)  # soon one of the two that are known: an asking driver scales all the time
        if found == widths or (found != too_wide and constraints.allow(found)):
            low, widths = middle, found
        else:
            high, too_wide = middle, found

    def deficit(v: str) -> float:
        return (high * relative[v] - widths[v]) / step[v]

    for v in sorted(relative, key=deficit, reverse=True):
        wider = {**widths, v: widths[v] + step[v]}
        if deficit(v) > 0 and constraints.allow(wider):
            widths = wider
    return widths


def largest_widths(constraints: Constraints) -> dict[str, int]:
    """Per variable, the largest width that fits the budget while all others are at their minimum."""
    smallest = constraints.smallest()
    largest = {}
    for v in smallest:
        low, high = smallest[v], 2 * smallest[v]
        while constraints.allow({**smallest, v: high}):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if constraints.allow({**smallest, v: middle}) else (low, middle)
        largest[v] = low
    return largest

"""Cost-aware widths: what to choose before anything is trained, from the cost alone.

Under a budget for each resource r, the widths w of the V variables i with which the layers are least narrow:

    minimise over w   sum over layers l of 1 / outputs_l     subject to   cost_r(w) <= budget_r

``outputs_l`` is how many outputs layer l has: k_li w_i, with so many per unit of its variable (k is 1, and of
a head many).  The narrowest layers count most: what does not get through them is lost.  A layer is wide where
that costs little; a width that many layers share, as in a residual stage, is wider.

In the logarithms of the widths this is convex (a geometric program; Boyd, Kim, Vandenberghe and Hassibi, "A
tutorial on geometric programming", 2007), with one solution, where each layer pays for what its width brings:

    many_i / w_i = sum over r of price_r * share_ri

    many_i = sum over the layers l of variable i of 1 / k_li,     share_ri = d log cost_r / d log w_i

Whole widths: from somewhat narrower ones, one step of the width that brings most for its price, repeatedly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from widthsearch.maths import rule
from widthsearch.maths.cost import Cost
from widthsearch.maths.rule import BudgetTooSmallError, Constraints

STEPS = 400  # of the iteration for real widths, some 0.02 s: to a thousandth and better
RATE, PRICE_RATE = 0.25, 0.3  # how far a step goes towards the condition above, and the prices with it
#: A layer that costs a smaller share than this of the whole pays as much all the same, or it would never end.
LEAST_SHARE = 1e-3
OPEN = 0.2  # the share of the budget that is filled step by step
MOST_OPEN = 400  # steps in which it is, about

Vector = NDArray[np.float64]


def cost_aware(
    outputs: Mapping[str, Sequence[float]], cost: Cost, constraints: Constraints
) -> dict[str, int]:
    """Whole widths at the budget under which the layers are least narrow, per variable of ``cost``.

    ``outputs``: per variable, of each of its layers the outputs per unit (nothing: one layer with one);
    ``cost``: that of the constraints.
    Raises :class:`BudgetTooSmallError` if the minimum widths already cost too much.
    """
    many = np.array([sum(1 / k for k in outputs.get(v) or [1.0]) for v in cost.variables])  # (V,)
    fixed = np.array([cost.overhead(r) for r in constraints.budget])  # (R,): what no width changes
    limit = np.array(list(constraints.budget.values()), dtype=float)
    real, price = _real(many, cost, tuple(constraints.budget), limit, fixed)
    step = np.array([constraints.multiple_of[v] for v in cost.variables])
    open_ = min(OPEN, MOST_OPEN / float((real / step).sum()))
    tight = dict(zip(constraints.budget, limit - open_ * (limit - fixed), strict=True))
    relative = dict(zip(cost.variables, real.tolist(), strict=True))
    try:
        start = rule.scale_to_budget(relative, replace(constraints, budget=tight))
    except BudgetTooSmallError:
        start = rule.scale_to_budget(relative, constraints)
    w = np.array([start[v] for v in cost.variables], dtype=float)
    for _ in range(2 * MOST_OPEN):
        now, wider = cost.values(w), cost.many(w + np.diag(step))  # of each variable one step more: (V,)
        amount = np.array([wider[r] for r in constraints.budget])  # (R, V)
        more = amount - np.array([now[r] for r in constraints.budget])[:, None]
        fits = (amount <= limit[:, None]).all(axis=0) & (more > 0).any(axis=0)
        if not fits.any():
            break
        pays = np.maximum(price @ (more / (limit - fixed)[:, None]), LEAST_SHARE * price.sum() * step / w)
        brings = many * (1 / w - 1 / (w + step))
        worth = np.where(fits, brings / pays, 0.0)
        # Of layers that are alike the first one, on any machine.
        best = int(np.argmax(np.round(worth / worth.max(), 9)))
        w[best] += step[best]
    return {v: int(n) for v, n in zip(cost.variables, w, strict=True)}


def _real(
    many: Vector, cost: Cost, resources: Sequence[str], limit: Vector, fixed: Vector
) -> tuple[Vector, Vector]:
    """Real widths (V,) and the prices (R,).

    Every step moves the log widths towards the condition above at the present prices, and the log prices by
    how far the cost is over the budget: that of a resource that is not scarce falls to nothing.
    """
    log_w = np.zeros(len(many))
    price = np.ones(len(resources))
    for _ in range(STEPS):
        w = np.exp(log_w)
        gradients = [cost.gradient(r, w) for r in resources]
        value = np.array([v for v, _ in gradients]) - fixed  # (R,)
        share = np.array([g for _, g in gradients]) * w / value[:, None]  # (R, V)
        pays = np.maximum(price @ share, LEAST_SHARE * price.sum())
        log_w += RATE * (np.log(many / pays) - log_w)
        price *= (value / (limit - fixed)) ** PRICE_RATE
    return np.exp(log_w).round(6), price  # layers that are alike are equal now, on any machine

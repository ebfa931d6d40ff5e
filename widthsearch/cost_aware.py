"""Cost-aware widths: what to choose before anything is trained, from the cost alone.

Under a budget for each resource r, the widths w of the V variables i with which the layers are least narrow:

    minimise over w   sum over layers l of outputs_l ** -EXPONENT   subject to   cost_r(w) <= budget_r

``outputs_l`` is how many outputs layer l has, k_li w_i with so many outputs per unit of its variable (k is 1,
and of a head many).  The narrowest layers count most: what does not get through them is lost.  A layer is
wide where that costs little; a width that many layers share, as in a residual stage, is wider.

In the logarithms of the widths this is convex (a geometric program; Boyd, Kim, Vandenberghe and Hassibi, "A
tutorial on geometric programming", 2007), with one solution, where each layer pays for what its width brings:

    many_i w_i ** -EXPONENT = sum over r of price_r * share_ri

    many_i = sum over the layers l of variable i of k_li ** -EXPONENT,     share_ri = d log cost_r / d log w_i
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from widthsearch.cost import Cost

#: Of 1, 1/2 and 2, which were tried on four networks, 1/2 was the best or equally good (studies/README.md).
EXPONENT = 0.5
STEPS = 1000  # of the iteration below, some 0.1 s: widths to a thousandth
RATE, PRICE_RATE = 0.2, 0.08  # how far a step goes towards the condition above, and the prices with it
#: A layer that costs a smaller share than this of the whole pays as much all the same, or it would never end.
LEAST_SHARE = 1e-3


def cost_aware(
    outputs: Mapping[str, Sequence[float]], cost: Cost, budget: Mapping[str, float]
) -> dict[str, float]:
    """Real widths at the budget under which the layers are least narrow, per variable of ``cost``.

    ``outputs``: per variable, of each of its layers the outputs per unit; ``budget``: per resource.  Every
    step moves the log widths towards the condition above at the present prices, and the log prices by how far
    the cost is over the budget: that of a resource that is not scarce falls to nothing.
    """
    many = np.array([sum(k**-EXPONENT for k in outputs[v]) for v in cost.variables])  # (V,)
    fixed = np.array([cost.overhead(r) for r in budget])  # (R,): what no width changes
    limit = np.array(list(budget.values())) - fixed
    log_w = np.zeros(len(many))
    price = np.ones(len(budget))
    for _ in range(STEPS):
        w = np.exp(log_w)
        found = [cost.gradient(r, w) for r in budget]
        value = np.array([v for v, _ in found]) - fixed  # (R,)
        share = np.array([g for _, g in found]) * w / value[:, None]  # (R, V)
        pays = np.maximum(price @ share, LEAST_SHARE * price.sum())
        log_w += RATE * (np.log(many / pays) / EXPONENT - log_w)
        price *= (value / limit) ** PRICE_RATE
    return dict(zip(cost.variables, np.exp(log_w).tolist(), strict=True))

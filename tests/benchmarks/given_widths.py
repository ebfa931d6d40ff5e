"""Which of these networks is better?  Plain trainings of given widths under one budget, on the same seeds.

    python tests/benchmarks/given_widths.py studies/mnist1d_conv.py uniform cost-aware 8-6-9-7-8-11-45 --seeds 16
    python tests/benchmarks/given_widths.py studies/lenet5_mnist.py:reduced 4-10-70 4-9-147 --budget macs=1/16x,params=1/16x

Prints of each its cost, its mean and median loss, the accuracy on test data, if there are any (else on validation
data), and the gain in loss over the first one, paired by seed, with standard errors.
"""

from __future__ import annotations

from multiprocessing import get_context

import numpy as np
from trainings import FIRST_SEED, begin, gain_of, interval, load, losses_of, parser_of, train, widths_of

from widthsearch.driver.prepare import prepare
from widthsearch.plans.plan import Plan, Slot
from widthsearch.plans.words import amounts, joined


def network(plan: Plan, name: str) -> dict[str, int]:
    """``uniform``, ``constant``, ``cost-aware``, or the widths themselves, which must fit the budget."""
    known = {"uniform": plan.baseline, "constant": plan.constant, "cost-aware": plan.cost_aware}
    if name in known:
        return dict(known[name])
    widths = widths_of(plan, name)
    if not plan.constraints().allow(widths):
        raise SystemExit(f"{name} costs {plan.cost.at(widths)}, more than {plan.budget}")
    return widths


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("widths", nargs="+")
    parser.add_argument("--budget")
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    plan = prepare(load(args.study, args.budget)).plan
    networks = {name: network(plan, name) for name in args.widths}
    first = None
    with get_context("spawn").Pool(args.workers, begin, (args.study, args.budget)) as pool:
        for name, widths in networks.items():
            slots = [Slot("report", -1, FIRST_SEED + k, widths) for k in range(args.seeds)]
            outcomes = pool.map(train, slots, 1)
            losses = losses_of(outcomes)
            first = losses if first is None else first
            good = [100 * a for o in outcomes if (a := o.get("test_accuracy", o.get("accuracy"))) is not None]
            print(
                f"{name:12} {joined(widths):40} {amounts(plan.cost.at(widths))}  {interval(losses[~np.isnan(losses)])}"
                f"  median {np.nanmedian(losses):.4f}  {gain_of(first, losses)}"
                + (f"  accuracy {interval(good, 2)} %" if good else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()

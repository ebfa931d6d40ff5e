"""How far along the rule's direction does the loss fall?  One measure, then plain trainings at several step sizes.

    python tests/benchmarks/step_sizes.py studies/mnist1d_conv.py --set pressure=cost --set over=2 --seeds 16

Prints, per step size, the widths, the mean and median loss over seeds, and the gain over the start (step 0), which
is the uniform widths or, with ``--start cost-aware``, those, paired by seed, with its standard error.  ``--set``
changes a field of the study.  It is what the defaults of the rule were chosen by (studies/README.md).
"""

from __future__ import annotations

from multiprocessing import get_context
from statistics import median

import numpy as np
from trainings import add_changes, begin, gain_of, load, losses_of, parser_of, train

from widthsearch.driver.prepare import prepare
from widthsearch.maths import rule
from widthsearch.plans.plan import Slot
from widthsearch.plans.words import joined


def main() -> None:
    parser = parser_of(__doc__)
    add_changes(parser)
    parser.add_argument("--steps", type=float, nargs="+", default=[0.15, 0.3, 0.6, 1.2])
    parser.add_argument("--start", choices=("uniform", "cost-aware"), default="uniform")
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    changes = dict(args.set)
    plan = prepare(load(args.study, args.budget, **changes)).plan
    start = plan.cost_aware if args.start == "cost-aware" else plan.baseline
    over_wide = plan.over_wide(start if args.start == "cost-aware" else plan.widths)
    with get_context("spawn").Pool(args.workers, begin, (args.study, args.budget, changes)) as pool:
        measures = pool.map(train, [Slot("measure", 0, k, over_wide) for k in range(plan.replicas)], 1)
        ratios = [m["prune_ratio"] for m in measures if "prune_ratio" in m]
        full = rule.length(rule.merge(ratios))
        print(f"length of the rule's full step {full:.2f}, damping {rule.damping(ratios):.2f}", flush=True)
        first = None
        for step in (0.0, *args.steps):
            relative = rule.proposal(over_wide, ratios, step)
            widths = rule.scale_to_budget(relative, plan.constraints()) if step else start
            found = pool.map(train, [Slot("report", 0, k, widths) for k in range(args.seeds)], 1)
            losses = losses_of(found)
            first = losses if first is None else first
            print(
                f"step {step:4g}  {joined(widths)}  loss {np.nanmean(losses):.4f}  "
                f"median {median(losses[~np.isnan(losses)]):.4f}  "
                f"{gain_of(first, losses)}",
                flush=True,
            )


if __name__ == "__main__":
    main()

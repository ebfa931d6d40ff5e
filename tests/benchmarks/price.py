"""What whole searches recommend, and what they cost: searches with random numbers of their own, as `launch` makes them.

    python tests/benchmarks/price.py studies/digits_mlp.py --searches 12 --set seeds=6 -o price.json

What each recommends, and both starts, are trained on ``--seeds`` fresh seeds, which all searches share.  Prints the
mean loss over the searches, their worst, their cost in uniform trainings (the verdict's are not counted), and the
gain over the cost-aware start, paired by seed; writes all of it as JSON.  (A search per process; no database.)
"""

from __future__ import annotations

import json
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from trainings import FIRST_SEED, add_changes, begin, interval, load, losses_of, parser_of, run, train

from widthsearch.driver.prepare import prepare
from widthsearch.plans.arm import ArmSearch
from widthsearch.plans.history import History
from widthsearch.plans.plan import Branch, Run, Slot
from widthsearch.plans.search import SearchPlan, next_step
from widthsearch.plans.words import joined
from widthsearch.training.trial import TrialRunner


def search(file: str, budget: str | None, changes: dict[str, Any], repeat: int) -> dict[str, Any]:
    """One search until its verdict: what it recommends, after how many rounds, for how much."""
    found = load(file, budget, **changes)
    plan = prepare(found).plan.repeated(repeat)
    runner = TrialRunner(found.study, SearchPlan(plan))
    runs: list[Run] = []
    spent = dict.fromkeys(("measure", "plain"), 0.0)
    price = ArmSearch(Branch(0, repeat, "grow-shrink"), plan, 0.0).cost_of
    while isinstance(slot := next_step(plan, runs), Slot):
        if slot.kind != "measure" and slot.replica in plan.fresh:
            break  # the verdict
        spent["measure" if slot.kind == "measure" else "plain"] += price(slot)
        runs.append(run(runner, slot))
    best = History(plan, runs).recommended(plan.rounds)
    assert best is not None
    rounds = 1 + max(r.key[1] for r in runs)
    return {"widths": dict(best.widths), "round": best.round, "rounds": rounds, "spent": spent}


def main() -> None:
    parser = parser_of(__doc__)
    add_changes(parser)
    parser.add_argument("--searches", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    given = (args.study, args.budget, dict(args.set))
    plan = prepare(load(args.study, args.budget, **given[2])).plan
    starts = {"uniform": plan.baseline, "cost-aware": plan.cost_aware}
    with get_context("spawn").Pool(args.workers, begin, given) as pool:
        searches = []
        for found in pool.imap(partial(search, *given), range(args.searches)):
            searches.append(found)
            cost = sum(found["spent"].values())
            print(
                f"{len(searches) - 1}: {joined(found['widths'])}, {found['rounds']} rounds, {cost:.1f}",
                flush=True,
            )
        networks = {joined(w): w for w in (*starts.values(), *(s["widths"] for s in searches))}
        seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
        slots = [Slot("report", -1, k, widths) for widths in networks.values() for k in seeds]
        losses = dict(
            zip(networks, losses_of(pool.map(train, slots, 1)).reshape(len(networks), -1), strict=True)
        )
    for s in searches:
        s["losses"] = losses[joined(s["widths"])].tolist()
    known = {name: losses[joined(widths)].tolist() for name, widths in starts.items()}
    Path(args.output).write_text(json.dumps({"starts": known, "searches": searches}))
    own = np.array([s["losses"] for s in searches])
    costs = [sum(s["spent"].values()) for s in searches]
    measures = np.mean([s["spent"]["measure"] for s in searches])
    print(", ".join(f"{name} {interval(of)}" for name, of in known.items()))
    print(f"searches {interval(np.nanmean(own, axis=1))}, worst {np.nanmean(own, axis=1).max():.4f}")
    print(
        f"gain over cost-aware {interval(np.nanmean(np.array(known['cost-aware']) - own, axis=0))} (by seed)"
    )
    print(
        f"cost {interval(costs)}, of it measures {measures:.1f}; n = {len(searches)} searches, {args.seeds} seeds"
    )


if __name__ == "__main__":
    main()

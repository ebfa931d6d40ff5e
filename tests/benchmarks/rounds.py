"""Do rounds after the first pay, and what may end a search?  Searches that nothing ends before ``--rounds``.

    python tests/benchmarks/rounds.py studies/digits_mlp.py --searches 12 --budget macs=1/8x,params=1/8x -o rounds.json

The best network at the start and after every round, by the scores alone and by a run-off then, is trained on
``--seeds`` fresh seeds, which all searches share.  Prints what each further round brings, and where rules that end a
search would have ended these; writes all of it as JSON.  (In this process's pool, a search per process; no database.)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from trainings import FIRST_SEED, begin, load, losses_of, parser_of, run, train

from widthsearch.driver.prepare import prepare
from widthsearch.maths import rule
from widthsearch.plans.arm import ArmSearch
from widthsearch.plans.history import History
from widthsearch.plans.plan import Branch, Plan, Run, Slot
from widthsearch.plans.search import SearchPlan, next_step
from widthsearch.plans.words import joined
from widthsearch.training.trial import TrialRunner

CHOICES = ("best", "recommended")  # by the scores, by the run-off


def search(file: str, budget: str | None, rounds: int, repeat: int) -> dict[str, Any]:
    """One search with random numbers of its own: what it would recommend after no, one, two... rounds."""
    found = load(file, budget)
    plan = prepare(found).plan.repeated(repeat).going_on(rounds)
    runner = TrialRunner(found.study, SearchPlan(plan))
    runs: list[Run] = []
    spent = dict.fromkeys(range(-1, rounds), 0.0)
    price = ArmSearch(Branch(0, repeat, "grow-shrink"), plan, 0.0).cost_of
    while isinstance(slot := next_step(plan, runs), Slot):
        if slot.kind != "measure" and slot.replica in plan.fresh:
            break  # the verdict
        if slot.replica < plan.seeds or slot.kind == "measure":
            spent[slot.round] += price(slot)
        runs.append(run(runner, slot))
    made = [r for r in range(rounds) if History(plan, runs).prune_ratios(r)]
    for r in (0, *(r + 1 for r in made)):  # a run-off after every round, not only the last
        while more := [
            slot
            for phase in History(plan, runs).run_off(r)
            for slot in phase
            if slot.key not in {ended.key for ended in runs}
        ]:
            runs += [run(runner, slot) for slot in more]
    return course_of(History(plan, runs), made, spent, price)


def course_of(
    history: History, made: list[int], spent: dict[int, float], price: Callable[[Slot], float]
) -> dict[str, Any]:
    """``best``, ``recommended`` and what they cost after no, one, two... rounds; of every round its prune ratios."""
    after = (0, *(r + 1 for r in made))
    best = [history.best(r) or history.baseline for r in after]
    return {
        "best": [dict(c.widths) for c in best],
        "recommended": [dict((history.recommended(r) or history.baseline).widths) for r in after],
        "round": [c.round for c in best],
        "cost": np.cumsum([spent[r] for r in (-1, *made)]).tolist(),
        "run_off": [sum(price(slot) for phase in history.run_off(r) for slot in phase) for r in after],
        "prune_ratios": [history.prune_ratios(r) for r in made],
    }


def balanced(found: dict[str, Any], level: float, tolerance: float, r: int) -> bool:
    """Whether round r is balanced, by a test at this level."""
    return rule.balanced(found["prune_ratios"][r], tolerance=tolerance, level=level)


def end_of(found: dict[str, Any], ends: Callable[[int], bool]) -> int:
    """The number of rounds after which a search ends: ``ends(r)``, or no better network in round r."""
    last = len(found["prune_ratios"])
    return next((r + 1 for r in range(last) if ends(r) or found["round"][r + 1] < r), last)


def print_table(searches: list[dict[str, Any]], tolerance: float) -> None:
    """Mean loss and cost over the searches, by rounds and by what ends them."""

    def row(name: str, ends: list[int]) -> None:
        print(f"{name:38} rounds {np.mean(ends):.2f}", end="")
        for which, more in (("best", 0), ("recommended", 1)):
            chosen = list(zip(searches, ends, strict=True))
            losses = np.array([np.nanmean(s["losses"][which][e]) for s, e in chosen])
            cost = np.mean([s["cost"][e] + more * s["run_off"][e] for s, e in chosen])
            error = losses.std(ddof=1) / len(losses) ** 0.5
            print(
                f"   {which} {losses.mean():.4f} ± {error:.4f}, at most {losses.max():.4f}, cost {cost:4.1f}",
                end="",
            )
        print()

    most = max(len(s["prune_ratios"]) for s in searches)
    for rounds in range(most + 1):
        row(f"after {rounds} rounds", [min(rounds, len(s["prune_ratios"])) for s in searches])
    for level in (0.05, 0.25, 0.5):
        ends = [end_of(s, partial(balanced, s, level, tolerance)) for s in searches]
        row(f"balanced at {level}, or no better network", ends)
    row("no better network", [end_of(s, lambda r: False) for s in searches])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--budget")
    parser.add_argument("--searches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    plan: Plan = prepare(load(args.study, args.budget)).plan
    with get_context("spawn").Pool(args.workers, begin, (args.study, args.budget)) as pool:
        make = partial(search, args.study, args.budget, args.rounds)
        searches = []
        for found in pool.imap(make, range(args.searches)):
            searches.append(found)
            print(f"search {len(searches) - 1}: {' '.join(map(joined, found['best']))}", flush=True)
        networks = {joined(w): w for s in searches for which in CHOICES for w in s[which]}
        seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
        slots = [Slot("report", -1, k, widths) for widths in networks.values() for k in seeds]
        losses = losses_of(pool.map(train, slots, 1)).reshape(len(networks), args.seeds)
    by_name = dict(zip(networks, losses.tolist(), strict=True))
    for s in searches:
        s["losses"] = {which: [by_name[joined(widths)] for widths in s[which]] for which in CHOICES}
    Path(args.output).write_text(json.dumps(searches))
    print_table(searches, plan.tolerance)


if __name__ == "__main__":
    main()

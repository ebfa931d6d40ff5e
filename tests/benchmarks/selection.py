"""Would it pay to select more carefully?  Networks of earlier searches on many seeds; then, drawn from these losses:
the mean or the logarithm's mean, more seeds for all, or a run-off: more seeds for the best two or three, or for the
best so far until the best one has had them (at most three).

    python tests/benchmarks/selection.py studies/digits_mlp.py digits_mlp-balance.json digits_mlp-compare.json \\
        --seeds 24 -o losses.npz

Takes the last ``--networks`` networks in the JSON files (of ``show``, ``compare`` or ``balance.py``) that use at least
90 % of the study's budget.  The losses so far are kept, so an interrupted run goes on.  Of each way to select it
prints the true loss of what it picks (mean over all seeds), and how many trainings it takes, over 20,000 searches
that each draw 9 of the networks and the seeds to select by, with replacement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trainings import FIRST_SEED, Losses, begin, load, losses_of, parser_of, train

from widthsearch.driver.prepare import prepare
from widthsearch.plans.plan import Plan, Slot
from widthsearch.plans.words import joined

CANDIDATES, SEEDS, SEARCHES = 9, 4, 20_000


def widths_in(found: Any) -> Iterator[dict[str, int]]:
    """All networks anywhere in an object of ours."""
    if isinstance(found, dict) and isinstance(found.get("widths"), dict):
        yield found["widths"]
    for below in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from widths_in(below)


def networks(plan: Plan, files: list[str], most: int) -> list[dict[str, int]]:
    """The last of those that use the budget."""
    constraints, found = plan.constraints(), {}
    for file in files:
        for widths in widths_in(json.loads(Path(file).read_text())):
            if widths.keys() == plan.widths.keys() and constraints.allow(widths):
                cost = constraints.cost(widths)
                if max(cost[r] / limit for r, limit in constraints.budget.items()) >= 0.9:
                    found[joined(widths)] = {v: widths[v] for v in plan.widths}
    return list(found.values())[-most:]


def print_table(losses: Losses) -> None:
    """``losses``: (networks, seeds)."""
    rng = np.random.default_rng(0)
    true = losses.mean(axis=1)
    picked: dict[str, list[float]] = {}
    one_by_one: list[int] = []  # trainings

    def pick(name: str, trainings: int, own: NDArray[np.intp], scores: Losses) -> None:
        picked.setdefault(f"{name:34} {trainings:3}", []).append(true[own[scores.argmin()]])

    for _ in range(SEARCHES):
        own = rng.choice(len(losses), min(CANDIDATES, len(losses)), replace=False)
        drawn = losses[np.ix_(own, rng.integers(0, losses.shape[1], 3 * SEEDS))]  # seeds are shared
        few = drawn[:, :SEEDS].mean(axis=1)
        pick("mean of 4", SEEDS * len(own), own, few)
        pick("mean log of 4", SEEDS * len(own), own, np.log(drawn[:, :SEEDS]).mean(axis=1))
        pick("mean of 8", 2 * SEEDS * len(own), own, drawn[:, : 2 * SEEDS].mean(axis=1))
        for top, more in ((2, SEEDS), (3, SEEDS), (3, 2 * SEEDS)):
            last = few.argsort()[:top]
            all_seeds = drawn[last, : SEEDS + more].mean(axis=1)
            pick(
                f"mean of 4, then {more} more for {top}", SEEDS * len(own) + top * more, own[last], all_seeds
            )
        means = few.copy()
        on_trial: list[int] = []
        while len(on_trial) < 3 and means.argmin() not in on_trial:
            on_trial.append(int(means.argmin()))
            means[on_trial[-1]] = drawn[on_trial[-1], : 2 * SEEDS].mean()
        one_by_one.append(len(on_trial) * SEEDS)
        pick("mean of 4, then 4 more one by one", SEEDS * len(own), own[on_trial], means[on_trial])
        pick("the best one", 0, own, true[own])
    print(
        f"{len(losses)} networks, {losses.shape[1]} seeds: true losses {true.min():.4f} to {true.max():.4f}"
    )
    for name, values in picked.items():
        print(f"{name} trainings: {np.mean(values):.4f}")
    print(f"one by one: {np.mean(one_by_one):.1f} more trainings")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--budget")
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    plan = prepare(load(args.study, args.budget)).plan
    all_networks = networks(plan, args.results, args.networks)
    losses = np.load(args.output)["losses"] if Path(args.output).exists() else np.empty((0, args.seeds))
    with get_context("spawn").Pool(args.workers, begin, (args.study, args.budget)) as pool:
        for widths in all_networks[len(losses) :]:
            slots = [Slot("report", -1, FIRST_SEED + k, widths) for k in range(args.seeds)]
            losses = np.vstack([losses, losses_of(pool.map(train, slots, 1))])
            np.savez(args.output, losses=losses)
            print(
                f"{joined(widths):40} {np.nanmean(losses[-1]):.4f} median {np.nanmedian(losses[-1]):.4f}",
                flush=True,
            )
    print_table(np.where(np.isnan(losses), np.nanmax(losses), losses))


if __name__ == "__main__":
    main()

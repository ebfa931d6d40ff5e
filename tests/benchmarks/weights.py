"""Widths, weights or epochs?  Networks trained from scratch, for twice as long, and from the weights of a pruned one.

    python tests/benchmarks/weights.py studies/mnist1d_conv.py 8-6-9-7-8-11-45 --seeds 24 -o weights.json

The arm ``equal-ratio`` of ``compare`` trains an over-wide network before it trains the narrow one: it keeps weights,
and it trains for twice as many epochs.  Here the uniform widths and the given ones are both trained in three ways: by
the recipe, by the recipe with twice the epochs, and pruned as ``equal-ratio`` does (an over-wide network in their
proportions, cut back to them, trained again by the recipe).  Prints the mean loss of each over the same seeds, and
the gain over uniform widths by the recipe, paired by seed, with its 95 % interval.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from trainings import load, parser_of, widths_of

from widthsearch.driver.prepare import prepare
from widthsearch.errors import TrainingError
from widthsearch.maths.intervals import mean_se, paired_gain
from widthsearch.plans.plan import Plan, Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.plans.words import joined
from widthsearch.training.trial import TrialRunner

WAYS = ("from scratch", "twice the epochs", "pruned")
Losses = dict[int, float]  # by seed
study_file: str  # of this process


def begin(file: str) -> None:
    global study_file
    study_file = file


@cache
def runner_of(widths: tuple[int, ...], way: str) -> tuple[TrialRunner, Plan]:
    """What trains these widths in this way, under the plan whose uniform network has them."""
    found = load(study_file)
    study, plan = found.study, prepare(found).plan
    own = replace(plan, widths=dict(zip(plan.widths, widths, strict=True)))
    own.__dict__["baseline"] = own.widths  # they are at the budget: not to be scaled again
    if way == "twice the epochs":
        study = replace(study, recipe=replace(study.recipe, epochs=2 * study.recipe.epochs))
    return TrialRunner(study, SearchPlan(own)), own


def train(task: tuple[tuple[int, ...], str, int]) -> float | None:
    widths, way, seed = task
    runner, plan = runner_of(widths, way)
    slot = Slot("report", -1, seed, plan.widths)
    if way == "pruned":
        slot = Slot("pruned", -1, seed, plan.over_wide(plan.widths))
    try:
        return float(runner.run(slot)["val_loss"])
    except TrainingError:
        return None


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("widths", help="the recommended ones, 8-6-9-7-8-11-45")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--seeds", type=int, default=24)
    args = parser.parse_args()
    plan = prepare(load(args.study)).plan
    searched = widths_of(plan, args.widths)
    # Seeds that no search has seen.
    seeds = range(plan.seeds, plan.seeds + args.seeds)
    rows: list[dict[str, Any]] = []
    reference: Losses = {}
    with get_context("spawn").Pool(args.workers, begin, (args.study,)) as pool:
        for way in WAYS:
            for widths in (plan.baseline, searched):
                found = pool.map(train, [(tuple(widths.values()), way, k) for k in seeds], 1)
                losses = {k: loss for k, loss in zip(seeds, found, strict=True) if loss is not None}
                reference = reference or losses
                row: dict[str, Any] = {"widths": widths, "way": way, "loss": mean_se(list(losses.values()))}
                row["gain"] = paired_gain(reference, losses) if rows else None
                rows.append(row)
                print(line_of(row), flush=True)
    settings = {k: v for k, v in vars(args).items() if k not in ("output", "workers")}
    Path(args.output).write_text(json.dumps({**settings, "rows": rows}, indent=1) + "\n")


def line_of(row: Mapping[str, Any]) -> str:
    loss, gain = row["loss"], row["gain"]
    text = (
        f"{joined(row['widths']):24} {row['way']:17} {loss['mean']:.4f} ± {loss['se']:.4f}  n = {loss['n']}"
    )
    return text + (
        f"  gain {gain['mean']:+.4f} ({gain['ci95'][0]:+.4f} to {gain['ci95'][1]:+.4f})" if gain else ""
    )


if __name__ == "__main__":
    main()

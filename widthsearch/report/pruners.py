"""What a comparison of pruners found, from the database alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import optuna

from widthsearch.maths.intervals import Stats, mean_se, paired_gain
from widthsearch.plans.pruners import PrunerPlan
from widthsearch.report.decision import pruners_decision
from widthsearch.report.progress import progress_of
from widthsearch.report.search import head, plan_as, status_of, tail
from widthsearch.report.trials import completed, read, spent
from widthsearch.report.types.common import network_of
from widthsearch.report.types.kinds import Level, LevelFound, PrunersSummary, Quality, Share, Winner

#: What is said of every network of a run, as shares of the over-wide one.
SHARES: tuple[Share, ...] = get_args(Share)
#: What pruners are compared at equal shares of.
EQUAL: dict[Share, str] = {"weights_removed": "weights removed", "macs_saved": "dense MACs saved"}

Levels = Sequence[Level]  # of one run, the over-wide network first
Runs = Mapping[str, Mapping[int, Levels]]  # by pruner and seed


def summarise_pruners(study: optuna.Study, url: str) -> PrunersSummary:
    """Everything about a comparison of pruners as one JSON object."""
    plan, frozen = plan_as(PrunerPlan, study), study.get_trials(deepcopy=False)
    trials = read(frozen, study)
    runs: dict[str, dict[int, Levels]] = {pruner: {} for pruner in plan.pruners}
    for t in completed(trials):
        if t.arm is not None:
            runs[t.arm][t.replica] = t.levels
    over_wide = list({seed: levels[0] for of in runs.values() for seed, levels in of.items()}.values())
    status = status_of(study, url)
    progress = progress_of(plan, status, trials)
    winners = {share: winner(runs, plan.levels, share) for share in EQUAL}
    said = {words: winners[share] for share, words in EQUAL.items()}
    return {
        "kind": "pruners",
        **head(study, url, status, progress, pruners_decision(said, status, progress)),
        "levels": list(plan.levels),
        "over_wide": {
            **network_of(plan.plan.cost, plan.plan.over_wide_seed),
            "val_loss": _mean([row["val_loss"] for row in over_wide]),
            "val_accuracy": _mean([row["val_accuracy"] for row in over_wide]),
        },
        "pruners": [
            {
                "pruner": pruner,
                "levels": [_level([levels[k] for levels in of.values()]) for k in range(1, 1 + n)],
            }
            for pruner, of in runs.items()
            for n in [len(plan.levels) if of else 0]
        ],
        "winners": winners,
        **spent(trials),
        **tail(study, status, frozen),
    }


def _mean(values: Sequence[float | None]) -> Stats | None:
    """Mean over seeds with its standard error; ``None`` where a value is not known."""
    known = [value for value in values if value is not None]
    return mean_se(known) if len(known) == len(values) else None


def _level(rows: Levels) -> LevelFound:
    """One level of one pruner: means over seeds."""
    return {
        "level": rows[0]["level"],
        "weights_removed": _mean([row["weights_removed"] for row in rows]),
        "neurons_removed": _mean([row["neurons_removed"] for row in rows]),
        "macs_saved": _mean([row["macs_saved"] for row in rows]),
        "time_saved": _mean([row["time_saved"] for row in rows]),
        "val_loss": _mean([row["val_loss"] for row in rows]),
        "val_accuracy": _mean([row["val_accuracy"] for row in rows]),
    }


def winner(runs: Runs, levels: Sequence[float], share: Share) -> Winner | None:
    """Which pruner is best at equal shares of weights removed, or of MACs saved.

    Its accuracy (its loss, where there is no accuracy) is read off between the levels of each run, at
    the shares that the levels stand for, as far as all pruners get, and averaged; pruners that get nowhere,
    as single weights save no MACs, are left out.  The gain over the next best is paired by seed, with its
    95 % interval.  ``None`` without two pruners that can be compared.
    """
    able = {p: of for p, of in runs.items() if of and all(of[k][-1][share] > 0 for k in of)}
    if len(able) < 2:
        return None
    seeds = sorted(set.intersection(*(set(of) for of in able.values())))
    everyone = [able[p][k] for p in able for k in seeds]
    if not everyone:
        return None
    reach = min(run[-1][share] for run in everyone)
    at = sorted({min(1 - level, reach) for level in levels})
    known = all(row["val_accuracy"] is not None for run in everyone for row in run)
    quality: Quality = "val_accuracy" if known else "val_loss"
    sign = 1 if quality == "val_accuracy" else -1

    def read_off(run: Levels) -> float:
        heights = [float(row[quality] or 0.0) for row in run]
        return float(np.mean(np.interp(at, [row[share] for row in run], heights)))

    found = {p: {k: read_off(able[p][k]) for k in seeds} for p in able}
    means = {p: float(np.mean(list(of.values()))) for p, of in found.items()}
    best, second = sorted(means, key=lambda p: -sign * means[p])[:2]
    gain = paired_gain(*({k: -sign * v for k, v in found[p].items()} for p in (second, best)))
    out = [p for p, of in runs.items() if of and p not in able]
    return {
        "pruner": best,
        "next": second,
        "quality": quality,
        "mean": means,
        "at": at,
        "left_out": out,
        "gain": gain,
    }

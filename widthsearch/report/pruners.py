"""What a comparison of pruners found, from the database alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import optuna

from widthsearch.database import records
from widthsearch.database.connection import hide_password
from widthsearch.maths.intervals import mean_se, paired_gain
from widthsearch.plans.pruners import PrunerPlan
from widthsearch.report.search import completed, ending, status_of

#: What is said of every network of a run, as shares of the over-wide one; then how good it is.
SHARES = ("weights_removed", "neurons_removed", "macs_saved", "time_saved")
QUALITY = ("val_loss", "val_accuracy")

Levels = Sequence[Mapping[str, Any]]  # of one run, the over-wide network first
Runs = Mapping[str, Mapping[int, Levels]]  # by pruner and seed


def summarise_pruners(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a comparison of pruners as one JSON object."""
    plan = cast("PrunerPlan", records.plan_of(study))
    trials = study.get_trials(deepcopy=False)
    complete = completed(trials)
    runs: dict[str, dict[int, Levels]] = {pruner: {} for pruner in plan.pruners}
    for t in complete:
        runs[t.user_attrs[records.ARM]][t.user_attrs[records.REPLICA]] = t.user_attrs[records.LEVELS]
    over_wide = {seed: levels[0] for of in runs.values() for seed, levels in of.items()}
    widths, status = plan.plan.over_wide_seed, status_of(study, url)
    return {
        "kind": "pruners",
        "study": study.study_name,
        "status": status,
        "storage": hide_password(url),
        "levels": list(plan.levels),
        "over_wide": {
            "widths": widths,
            **plan.plan.cost.at(widths),
            **{key: _mean([row[key] for row in over_wide.values()]) for key in QUALITY},
        },
        "pruners": [
            {
                "pruner": pruner,
                "levels": [_level([levels[k] for levels in of.values()]) for k in range(1, 1 + n)],
            }
            for pruner, of in runs.items()
            for n in [len(plan.levels) if of else 0]
        ],
        "winners": {share: winner(runs, plan.levels, share) for share in ("weights_removed", "macs_saved")},
        "training_macs": sum(t.user_attrs[records.TRAINING_MACS] for t in complete),
        "seconds": round(sum(t.user_attrs[records.SECONDS] for t in complete), 3),
        **ending(study, status, trials),
    }


def _mean(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean over seeds with its standard error; ``None`` where a value is not known."""
    known = [value for value in values if value is not None]
    return mean_se(known) if len(known) == len(values) else None


def _level(rows: Levels) -> dict[str, Any]:
    """One level of one pruner: means over seeds."""
    return {
        "level": rows[0]["level"],
        **{key: _mean([row[key] for row in rows]) for key in (*SHARES, *QUALITY)},
    }


def winner(runs: Runs, levels: Sequence[float], share: str) -> dict[str, Any] | None:
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
    quality = (
        "val_accuracy"
        if all(row["val_accuracy"] is not None for run in everyone for row in run)
        else "val_loss"
    )
    sign = 1 if quality == "val_accuracy" else -1

    def read_off(run: Levels) -> float:
        return float(np.mean(np.interp(at, [row[share] for row in run], [row[quality] for row in run])))

    found = {p: {k: read_off(able[p][k]) for k in seeds} for p in able}
    means = {p: float(np.mean(list(of.values()))) for p, of in found.items()}
    best, second = sorted(means, key=lambda p: -sign * means[p])[:2]
    gain = paired_gain(*({k: -sign * v for k, v in found[p].items()} for p in (second, best)))
    out = [p for p, of in runs.items() if of and p not in able]
    found_at = {"quality": quality, "mean": means, "at": at, "left_out": out}
    return {"pruner": best, "next": second, **found_at, "gain": gain}

"""What a comparison found, from the database alone: all arms on the same fresh seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from widthsearch.database import records
from widthsearch.database.connection import hide_password
from widthsearch.maths.cost import RESOURCES
from widthsearch.maths.intervals import crossed
from widthsearch.plans.arms import Point
from widthsearch.plans.comparison import Comparison, FreshKey, Outcome, fresh_key
from widthsearch.report.search import completed, ending, status_of

UNIFORM, OURS = "uniform", "grow-shrink"
#: An arm's search is done when its recommendation is this close to the last one.
CLOSE = 0.01

Found = dict[FreshKey, FrozenTrial]  # the trainings on fresh seeds


def summarise_comparison(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a comparison as one JSON object."""
    plan = cast("Comparison", records.plan_of(study))
    trials = study.get_trials(deepcopy=False)
    complete = completed(trials)
    found: Found = {}
    for t in complete:
        a = t.user_attrs
        found[fresh_key(a[records.BUDGET], a[records.KIND], a[records.REPLICA], t.params)] = t
    outcomes = plan.outcomes(records.runs_of(trials))
    status = status_of(study, url)
    return {
        "kind": "comparison",
        "study": study.study_name,
        "comparison": True,
        "status": status,
        "storage": hide_password(url),
        "arms": list(plan.arms),
        "repeats": plan.repeats,
        "seed": {"widths": plan.plan.widths, **plan.plan.seed_cost()},
        "budgets": [
            {
                "budget": {r: limit.get(r) for r in RESOURCES},
                "search_cost": plan.limit(b),
                "arms": _arms(plan, b, [o for o in outcomes if o.budget == b], found),
            }
            for b, limit in enumerate(plan.budgets)
        ],
        "training_macs": sum(t.user_attrs[records.TRAINING_MACS] for t in complete),
        "seconds": round(sum(t.user_attrs[records.SECONDS] for t in complete), 3),
        **ending(study, status, trials),
    }


def _arms(plan: Comparison, budget: int, outcomes: Sequence[Outcome], found: Found) -> list[dict[str, Any]]:
    """One entry per arm that recommends something already."""
    final = {arm: [o.points[-1] if o.points else None for o in outcomes if o.arm == arm] for arm in plan.arms}
    losses = {arm: _matrix(plan, budget, points, found, None) for arm, points in final.items()}
    return [
        {
            "arm": arm,
            "widths": [dict(p.widths) for p in known],
            "macs": [plan.plan.cost.at(p.widths)["macs"] for p in known],
            "params": [plan.plan.cost.at(p.widths)["params"] for p in known],
            "search_cost": float(np.mean([p.cost for p in known])),
            "val_loss": _mean(losses[arm]),
            "val_accuracy": _mean(_matrix(plan, budget, points, found, records.ACCURACY)),
            "test_loss": _mean(_matrix(plan, budget, points, found, records.TEST_LOSS)),
            "test_accuracy": _mean(_matrix(plan, budget, points, found, records.TEST_ACCURACY)),
            "gain_over_uniform": _difference(losses.get(UNIFORM), losses[arm]),
            "gain_over_ours": _difference(losses.get(OURS), losses[arm]),
            **_course(plan, budget, [o.points for o in outcomes if o.arm == arm], found),
        }
        for arm, points in final.items()
        if (known := [p for p in points if p is not None])
    ]


def _matrix(
    plan: Comparison, budget: int, points: Sequence[Point | None], found: Found, attribute: str | None
) -> NDArray[np.float64]:
    """Loss (or an attribute) of what the repeats recommend on each fresh seed; (K, S), NaN where unknown."""
    values = np.full((len(points), plan.plan.report_seeds), np.nan)
    for k, point in enumerate(points):
        for s, slot in enumerate(plan.report_slots(budget, point) if point is not None else ()):
            trial = found.get(fresh_key(budget, slot.kind, slot.replica, slot.widths))
            if trial is not None:
                value = trial.value if attribute is None else trial.user_attrs.get(attribute)
                values[k, s] = np.nan if value is None else value
    return values


def _whole(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The repeats of which something is known, on the seeds that all of these have."""
    rows = values[~np.isnan(values).all(axis=1)]
    return rows[:, ~np.isnan(rows).any(axis=0)]


def _mean(values: NDArray[np.float64]) -> dict[str, Any] | None:
    """Mean, standard error, median, n and repeats."""
    whole = _whole(values)
    return {k: v for k, v in crossed(whole).items() if k != "ci95"} if whole.size else None


def _difference(of: NDArray[np.float64] | None, loss: NDArray[np.float64]) -> dict[str, Any] | None:
    """How much smaller ``loss`` is, paired by seed (and repeat), with its 95 % interval."""
    whole = _whole(of - loss) if of is not None else np.empty((0, 0))
    return crossed(whole) if whole.shape[0] and whole.shape[1] > 1 else None


def _course(plan: Comparison, budget: int, points: Sequence[Sequence[Point]], found: Found) -> dict[str, Any]:
    """How each repeat's recommendation came about, and after which cost it was close to its last loss."""
    courses: list[list[dict[str, Any]]] = []
    enough: list[float] = []
    for of in points:
        means = [_mean(_matrix(plan, budget, [p], found, None)) for p in of]
        course = [
            {"search_cost": p.cost, "widths": dict(p.widths), "val_loss": m}
            for p, m in zip(of, means, strict=True)
        ]
        courses.append(course)
        enough.extend(_close_after(course))
    return {"course": courses, "cost_to_close": float(np.mean(enough)) if enough else None}


def _close_after(course: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """The cost from which on all recommendations are within 1 % of the last one's loss, if that is known."""
    if not course or any(point["val_loss"] is None for point in course):
        return
    last = course[-1]["val_loss"]["mean"]
    after = course[-1]["search_cost"]
    for point in reversed(course):
        if point["val_loss"]["mean"] > (1 + CLOSE) * last:
            break
        after = point["search_cost"]
    yield after

"""What a comparison found, from the database alone: all arms on the same fresh seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import optuna
from numpy.typing import NDArray

from widthsearch.maths.holm import holm
from widthsearch.maths.intervals import StatsOfRepeats, crossed
from widthsearch.plans.arm import Point
from widthsearch.plans.comparison import Comparison, FreshKey, Outcome, fresh_key
from widthsearch.report.decision import comparison_decision
from widthsearch.report.progress import progress_of
from widthsearch.report.search import head, limits, plan_as, status_of, tail
from widthsearch.report.trials import Measured, Trial, completed, read, spent
from widthsearch.report.types.common import network_of
from widthsearch.report.types.kinds import (
    ArmFound,
    ComparisonSummary,
    Course,
    CoursePoint,
    OneOfMany,
    UnderBudget,
)

UNIFORM, OURS = "uniform", "grow-shrink"
#: An arm's search is done when its recommendation is this close to the last one.
CLOSE = 0.01

Fresh = Mapping[FreshKey, Trial]  # the trainings on fresh seeds


def summarise_comparison(study: optuna.Study, url: str) -> ComparisonSummary:
    """Everything about a comparison as one JSON object."""
    plan, frozen = plan_as(Comparison, study), study.get_trials(deepcopy=False)
    trials = read(frozen, study)
    fresh = {
        fresh_key(t.branch.budget, t.kind, t.replica, t.widths): t
        for t in completed(trials)
        if t.branch is not None
    }
    outcomes = plan.outcomes([t.run for t in trials])
    status = status_of(study, url)
    progress = progress_of(plan, status, trials)
    budgets: list[UnderBudget] = [
        {
            "budget": limits(limit),
            "search_cost": plan.limit(b),
            "arms": _arms(plan, b, [o for o in outcomes if o.budget == b], fresh),
        }
        for b, limit in enumerate(plan.budgets)
    ]
    _adjust(budgets, "gain_over_uniform", UNIFORM)
    _adjust(budgets, "gain_over_ours", OURS)
    return {
        "kind": "comparison",
        **head(study, url, status, progress, comparison_decision(budgets, status, progress)),
        "comparison": True,
        "arms": list(plan.arms),
        "repeats": plan.repeats,
        "seed": network_of(plan.plan.cost, plan.plan.widths),
        "budgets": budgets,
        **spent(trials),
        **tail(study, status, frozen),
    }


def _arms(plan: Comparison, budget: int, outcomes: Sequence[Outcome], fresh: Fresh) -> list[ArmFound]:
    """One entry per arm that recommends something already."""
    final = {arm: [o.points[-1] if o.points else None for o in outcomes if o.arm == arm] for arm in plan.arms}
    losses = {arm: _matrix(plan, budget, points, fresh) for arm, points in final.items()}
    found: list[ArmFound] = []
    for arm, points in final.items():
        known = [p for p in points if p is not None]
        if not known:
            continue
        networks = [network_of(plan.plan.cost, p.widths) for p in known]
        found.append(
            {
                "arm": arm,
                "widths": [n["widths"] for n in networks],
                "macs": [n["macs"] for n in networks],
                "params": [n["params"] for n in networks],
                "search_cost": float(np.mean([p.cost for p in known])),
                "val_loss": _mean(losses[arm]),
                "val_accuracy": _mean(_matrix(plan, budget, points, fresh, "val_accuracy")),
                "test_loss": _mean(_matrix(plan, budget, points, fresh, "test_loss")),
                "test_accuracy": _mean(_matrix(plan, budget, points, fresh, "test_accuracy")),
                "gain_over_uniform": _difference(losses.get(UNIFORM), losses[arm]),
                "gain_over_ours": _difference(losses.get(OURS), losses[arm]),
                **_course(plan, budget, [o.points for o in outcomes if o.arm == arm], fresh),
            }
        )
    return found


def _matrix(
    plan: Comparison, budget: int, points: Sequence[Point | None], fresh: Fresh, of: Measured = "val_loss"
) -> NDArray[np.float64]:
    """What the repeats recommend, on each fresh seed: loss or another measure, (K, S), NaN where unknown."""
    values = np.full((len(points), plan.plan.report_seeds), np.nan)
    for k, point in enumerate(points):
        for s, slot in enumerate(plan.report_slots(budget, point) if point is not None else ()):
            trial = fresh.get(fresh_key(budget, slot.kind, slot.replica, slot.widths))
            value = None if trial is None else getattr(trial, of)
            values[k, s] = np.nan if value is None else value
    return values


def _whole(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The repeats of which something is known, on the seeds that all of these have."""
    rows = values[~np.isnan(values).all(axis=1)]
    return rows[:, ~np.isnan(rows).any(axis=0)]


def _mean(values: NDArray[np.float64]) -> StatsOfRepeats | None:
    """Mean, standard error, median, n and repeats."""
    whole = _whole(values)
    if not whole.size:
        return None
    c = crossed(whole)
    return {"mean": c["mean"], "se": c["se"], "median": c["median"], "n": c["n"], "repeats": c["repeats"]}


def _difference(of: NDArray[np.float64] | None, loss: NDArray[np.float64]) -> OneOfMany | None:
    """How much smaller ``loss`` is, paired by seed (and repeat), with its 95 % interval; not yet adjusted."""
    whole = _whole(of - loss) if of is not None else np.empty((0, 0))
    if not whole.shape[0] or whole.shape[1] < 2:
        return None
    found = crossed(whole)
    return {**found, "p_holm": found["p"]}


def _adjust(
    budgets: Sequence[UnderBudget], gain: Literal["gain_over_uniform", "gain_over_ours"], reference: str
) -> None:
    """The p-values of all differences to one reference, under all budgets, as one family."""
    arms = [arm for under in budgets for arm in under["arms"] if arm["arm"] != reference]
    gains = [found for arm in arms if (found := arm[gain]) is not None]
    for found, p in zip(gains, holm([found["p"] for found in gains]), strict=True):
        found["p_holm"] = p


def _course(plan: Comparison, budget: int, points: Sequence[Sequence[Point]], fresh: Fresh) -> Course:
    """How each repeat's recommendation came about, and after which cost it was close to its last loss."""
    courses: list[list[CoursePoint]] = []
    enough: list[float] = []
    for of in points:
        course: list[CoursePoint] = [
            {
                "search_cost": p.cost,
                "widths": dict(p.widths),
                "val_loss": _mean(_matrix(plan, budget, [p], fresh)),
            }
            for p in of
        ]
        courses.append(course)
        enough.extend(_close_after(course))
    return {"course": courses, "cost_to_close": float(np.mean(enough)) if enough else None}


def _close_after(course: Sequence[CoursePoint]) -> Iterator[float]:
    """The cost from which on all recommendations are within 1 % of the last one's loss, if that is known."""
    known = [(p["search_cost"], p["val_loss"]["mean"]) for p in course if p["val_loss"] is not None]
    if not course or len(known) < len(course):
        return
    after, last = known[-1]
    for cost, loss in reversed(known):
        if loss > (1 + CLOSE) * last:
            break
        after = cost
    yield after

"""What a probe found, from the database alone: where every start leads, and how far apart the ends are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial

from widthsearch.database import records
from widthsearch.database.connection import hide_password
from widthsearch.maths.cost import RESOURCES
from widthsearch.maths.intervals import mean_se, paired_gain
from widthsearch.plans.plan import Plan
from widthsearch.plans.probe import PLAIN, WITHIN, Probe, back_after, close, spread
from widthsearch.report.search import BASELINE, Trials, completed, ending, status_of, summarise_search


def summarise_probe(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a probe as one JSON object; each start holds what ``show --json`` says of a search."""
    plan = cast("Probe", records.plan_of(study))
    trials = study.get_trials(deepcopy=False)
    complete = completed(trials)
    made: dict[str, list[FrozenTrial]] = {start: [] for start in plan.searches}
    for trial in trials:
        if records.ARM in trial.user_attrs:
            made[trial.user_attrs[records.ARM]].append(trial)
    owners = plan.owners({start: records.runs_of(own) for start, own in made.items()})
    of = {start: owners[start].chosen(made, _kind_and_round) for start in plan.searches}
    found = {start: summarise_search(search, of[start]) for start, search in plan.searches.items()}
    losses = {start: _fresh(plan.plan, s, completed(of[start])) for start, s in found.items()}
    status = status_of(study, url)
    starts = [
        {
            "start": start,
            "same_as": None if same == start else same,
            **found[same],
            **_came_back(plan, start, found[same], found[PLAIN]),
            "seed": {"widths": search.widths, **search.cost.at(search.widths)},
            "fresh_loss": mean_se(list(losses[same].values())),
            "gain_over_plain": paired_gain(losses[PLAIN], losses[same]),
        }
        for start, search in plan.plans.items()
        for same in [plan.same_as[start]]
    ]
    again = [s for s in plan.searches if s not in plan.starts]
    return {
        "kind": "probe",
        "study": study.study_name,
        "probe": True,
        "status": status,
        "storage": hide_password(url),
        "budget": {r: plan.plan.budget.get(r) for r in RESOURCES},
        "within": WITHIN,
        "starts": starts,
        "spread": _spreads(found, [s for s in plan.searches if s in plan.starts]),
        "spread_by_chance": _spreads(found, [PLAIN, *again]) if again else None,
        "training_macs": sum(t.user_attrs[records.TRAINING_MACS] for t in complete),
        "seconds": round(sum(t.user_attrs[records.SECONDS] for t in complete), 3),
        **ending(study, status, trials),
    }


def _kind_and_round(trial: FrozenTrial) -> tuple[str, int]:
    return trial.user_attrs[records.KIND], trial.user_attrs[records.ROUND]


def _fresh(plan: Plan, search: Mapping[str, Any], complete: list[FrozenTrial]) -> dict[int, float]:
    """The losses of what a search recommends on the fresh seeds, which all searches share."""
    network = search["recommended"]
    if network is None:
        return {}
    scored = network["round"] is not None
    source = ("report", network["round"], network["step"]) if scored else BASELINE
    return Trials(complete).values(source, plan.fresh)


def _came_back(plan: Probe, name: str, search: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The best network at the start and after each round, how many of its widths are close to where the plain
    search ends, and when they are.

    The course begins with the uniform baseline.  Of an inflated layer its own width must come back, of any
    other start all widths.
    """
    start = plan.starts.get(name)
    layer = None if start is None else start.layer
    course = [search["baseline"]["widths"]]
    course += [n["widths"] for n in search["starting_networks"] if n["start"] == search["started_from"]]
    for round_ in search["rounds"]:
        if round_["val_loss"] is None and round_ is search["rounds"][-1] and not search["stopped_because"]:
            break  # it is being measured
        course.append(round_["best_so_far"])
    if search["run_off"]:  # which had the last word on the last round
        course[-1] = (search["candidate"] or search["baseline"])["widths"]
    found = {"layer": layer, "course": course, "close": None, "back_after": None}
    if name == PLAIN or plain["recommended"] is None:
        return found
    wanted = plain["recommended"]["widths"]
    return {
        **found,
        "close": [sum(close(widths[v], wanted[v]) for v in wanted) for widths in course],
        "back_after": back_after(course[1:], wanted, [layer] if layer else wanted),
    }


def _spreads(found: Mapping[str, Mapping[str, Any]], starts: Sequence[str]) -> dict[str, Any]:
    """How far apart the starts' recommendations are, and how far apart their uniform baselines were."""
    ended = [s for s in starts if found[s]["recommended"] is not None]
    return {
        "of": ended,
        "recommended": spread([found[s]["recommended"]["widths"] for s in ended]),
        "baseline": spread([found[s]["baseline"]["widths"] for s in ended]),
    }

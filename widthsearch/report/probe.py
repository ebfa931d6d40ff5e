"""What a probe found, from the database alone: where every start leads, and how far apart the ends are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import optuna

from widthsearch.maths.intervals import mean_se, paired_gain
from widthsearch.plans.plan import Plan
from widthsearch.plans.probe import PLAIN, WITHIN, Probe, back_after, close, spread
from widthsearch.report.decision import probe_decision
from widthsearch.report.progress import progress_of
from widthsearch.report.search import BASELINE, head, limits, plan_as, status_of, summarise_search, tail
from widthsearch.report.trials import Trial, by_seed, by_source, read, spent
from widthsearch.report.types.common import Found, network_of
from widthsearch.report.types.kinds import Apart, CameBack, ProbeSummary, Spreads, StartFound
from widthsearch.report.types.search import Findings


def summarise_probe(study: optuna.Study, url: str) -> ProbeSummary:
    """Everything about a probe as one JSON object; each start holds what ``show --json`` says of a search."""
    plan, frozen = plan_as(Probe, study), study.get_trials(deepcopy=False)
    trials = read(frozen, study)
    made: dict[str, list[Trial]] = {start: [] for start in plan.searches}
    for trial in trials:
        if trial.arm is not None:
            made[trial.arm].append(trial)
    owners = plan.owners({start: [t.run for t in own] for start, own in made.items()})
    of = {start: owners[start].chosen(made, lambda t: (t.kind, t.round)) for start in plan.searches}
    found = {start: summarise_search(search, of[start]) for start, search in plan.searches.items()}
    losses = {start: _fresh(plan.plan, s, of[start]) for start, s in found.items()}
    starts: list[StartFound] = [
        {
            "start": start,
            "same_as": None if same == start else same,
            **found[same],
            **_came_back(plan, start, found[same], found[PLAIN]),
            "seed": network_of(search.cost, search.widths),
            "fresh_loss": mean_se(list(losses[same].values())),
            "gain_over_plain": paired_gain(losses[PLAIN], losses[same]),
        }
        for start, search in plan.plans.items()
        for same in [plan.same_as[start]]
    ]
    again = [s for s in plan.searches if s not in plan.starts]
    status = status_of(study, url)
    progress = progress_of(plan, status, trials)
    return {
        "kind": "probe",
        **head(study, url, status, progress, probe_decision(starts, WITHIN, status, progress)),
        "probe": True,
        "budget": limits(plan.plan.budget),
        "within": WITHIN,
        "starts": starts,
        "spread": _spreads(found, [s for s in plan.searches if s in plan.starts]),
        "spread_by_chance": _spreads(found, [PLAIN, *again]) if again else None,
        **spent(trials),
        **tail(study, status, frozen),
    }


def end_of(search: Findings) -> Found | None:
    """Where a search ends: the best that it found, whatever the verdict; uniform widths if it found none."""
    return search["candidate"] or search["recommended"]


def _fresh(plan: Plan, search: Findings, trials: Sequence[Trial]) -> dict[int, float]:
    """The losses of where a search ends on the fresh seeds, which all searches share."""
    network = end_of(search)
    if network is None:
        return {}
    source = BASELINE
    if network["round"] is not None:
        source = ("report", network["round"], network["step"] or 0.0)
    return by_seed(by_source(trials), source, plan.fresh)


def _came_back(plan: Probe, name: str, search: Findings, plain: Findings) -> CameBack:
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
    found: CameBack = {"layer": layer, "course": course, "close": None, "back_after": None}
    end = end_of(plain)
    if name == PLAIN or end is None:
        return found
    wanted = end["widths"]
    return {
        **found,
        "close": [sum(close(widths[v], wanted[v]) for v in wanted) for widths in course],
        "back_after": back_after(course[1:], wanted, [layer] if layer else wanted),
    }


def _spreads(found: Mapping[str, Findings], starts: Sequence[str]) -> Spreads:
    """How far apart the starts' recommendations are, and how far apart their uniform baselines were."""
    ended = {s: best["widths"] for s in starts if (best := end_of(found[s])) is not None}
    return {
        "of": list(ended),
        "recommended": cast(dict[str, Apart], spread(list(ended.values()))),
        "baseline": cast(dict[str, Apart], spread([found[s]["baseline"]["widths"] for s in ended])),
    }

"""The verdict, from the database alone: recommended widths, gain with interval, rounds, costs.

The gain is judged on seeds that had no part in choosing the recommendation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from widthsearch.database import records
from widthsearch.database.connection import hide_password
from widthsearch.database.lock import is_driven
from widthsearch.maths import rule
from widthsearch.maths.cost import RESOURCES
from widthsearch.maths.intervals import Gain, paired_gain
from widthsearch.plans.history import Candidate, History
from widthsearch.plans.plan import Done, Failed, Plan, StudyPlan
from widthsearch.plans.search import SearchPlan, step_after
from widthsearch.plans.words import candidate_name
from widthsearch.report.decision import search_decision
from widthsearch.report.progress import progress_of
from widthsearch.report.shares import pruned_extremes, removed, side_costs
from widthsearch.report.trials import (
    BySource,
    Source,
    Trial,
    by_seed,
    by_source,
    completed,
    mean_of,
    read,
    spent,
)
from widthsearch.report.types.common import (
    Decision,
    Ended,
    Found,
    Head,
    Limits,
    Network,
    Progress,
    Status,
    Trained,
    network_of,
)
from widthsearch.report.types.search import Finalist, Findings, Proposal, Round, SearchCost, SearchSummary

BETTER, NO_DIFFERENCE, WORSE = "better", "no difference shown", "worse"
NOTHING_BETTER = "nothing better found"  # on the seeds that select, the baseline scored best

P = TypeVar("P", bound=StudyPlan)

BASELINE: Source = ("baseline", -1, 0.0)


def verdict(gain: Gain | None) -> str | None:
    """``better``, ``no difference shown`` or ``worse``, by the interval; ``None`` before there is one."""
    if gain is None:
        return None
    low, high = gain["ci95"]
    return BETTER if low > 0 else WORSE if high < 0 else NO_DIFFERENCE


def plan_as(kind: type[P], study: optuna.Study) -> P:
    """The plan of a study of this kind; ``TypeError`` for another one's."""
    plan = records.plan_of(study)
    if not isinstance(plan, kind):
        raise TypeError(f"study {study.study_name!r} does not follow a {kind.__name__}")
    return plan


def head(study: optuna.Study, url: str, status: Status, progress: Progress, decision: Decision) -> Head:
    """What every summary begins with."""
    return {
        "study": study.study_name,
        "status": status,
        "storage": hide_password(url),
        "decision": decision,
        "progress": progress,
    }


def tail(study: optuna.Study, status: Status, trials: Sequence[FrozenTrial]) -> Ended:
    """What every summary ends with: its metric, trials by state, when, why it stopped, what was left out."""
    metric = study.user_attrs.get(records.FINGERPRINT, {}).get("recipe.metric", "None")
    moments = [m for t in trials for m in (t.datetime_start, t.datetime_complete) if m is not None]
    found: Ended = {
        "metric": "accuracy" if metric == "None" else metric,
        "started": min(moments).isoformat(timespec="seconds") if moments else None,
        "last_change": max(moments).isoformat(timespec="seconds") if moments else None,
        "trials": {s.name: n for s in TrialState if (n := sum(t.state == s for t in trials))},
        "stopped_because": study.user_attrs.get(records.STOPPED) if status != "running" else None,
        "not_searched": study.user_attrs.get(records.FROZEN, []),
    }
    if (family := records.family_in(study.user_attrs)) is not None:
        found["family"] = family.name
    return found


def limits(budget: Mapping[str, float]) -> Limits:
    """A budget with all resources."""
    return {r: budget.get(r) for r in RESOURCES}


def summarise(study: optuna.Study, url: str) -> SearchSummary:
    """Everything about a search as one JSON object: what ``widthsearch show --json`` prints."""
    plan, frozen = plan_as(SearchPlan, study), study.get_trials(deepcopy=False)
    status, trials = status_of(study, url), read(frozen, study)
    progress, found = progress_of(plan, status, trials), summarise_search(plan.plan, trials)
    return {
        "kind": "search",
        **head(study, url, status, progress, search_decision(found, status, progress)),
        "budget": limits(plan.plan.budget),
        **found,
        **tail(study, status, frozen),
    }


def summarise_search(plan: Plan, all_trials: Sequence[Trial]) -> Findings:
    """What one search found, from its trials."""
    trials = by_source(all_trials)
    history = History(plan, [t.run for t in all_trials])
    ended = step_after(history)
    best = history.recommended(plan.rounds)
    found = best if best is not None and not best.is_baseline else None
    select, report = range(plan.seeds), plan.fresh
    fresh = by_seed(trials, _source("report", found), report) if found is not None else {}
    seen = report if fresh or (found is None and isinstance(ended, Done)) else select
    uniform = _trained(plan, plan.baseline, trials, BASELINE, seen)
    candidate: Found | None = None
    if found is not None:
        source = _source("report" if fresh else found.kind, found)
        network = _trained(plan, found.widths, trials, source, seen)
        candidate = {"round": found.round, "step": found.step, **network}
    own = by_seed(trials, BASELINE, report)
    gain, result = paired_gain(own, fresh), None
    if gain is not None:
        result = verdict(gain)
    elif found is None and isinstance(ended, Done):
        gain, result = paired_gain(own, own), NOTHING_BETTER
    recommended = candidate
    if result not in (None, BETTER):
        recommended = {"round": None, "step": None, **uniform}
    seed = cast(Network, {"widths": plan.widths, **plan.seed_cost()})
    rounds = _rounds(plan, history, trials)
    most, least = pruned_extremes(rounds)
    return {
        "latency_model": plan.latency,
        "seed": seed,
        "baseline": {"step": None, **uniform},
        "recommended": recommended,
        "removed": removed(seed, recommended),
        "side_costs": side_costs(plan.budget, uniform, recommended),
        "candidate": candidate,
        "started_from": _start_name(history.best(0)) if history.begun else None,
        "starting_networks": [
            {
                "start": "uniform" if c.is_baseline else "cost-aware",
                "widths": dict(c.widths),
                "val_loss": mean_of(trials, _source(c.kind, c), select),
            }
            for c in history.starts
        ],
        "gain": gain,
        "accuracy_gain": _accuracy_gain(trials, found, report),
        "gain_so_far": history.gain_of(found),
        "verdict": result,
        "rounds": rounds,
        "run_off": _run_off(plan, history, trials),
        "pruned_most": most,
        "pruned_least": least,
        "cost": _search_cost(plan, all_trials),
        "selection_seeds": len(plan.selecting),  # fresh seeds are numbered from here
        "run_off_seeds": plan.final_seeds,  # the last of these
        "stopped_because": ended.because if isinstance(ended, Done | Failed) else None,
    }


def status_of(study: optuna.Study, url: str) -> Status:
    """How a study is doing: interrupted is also what its driver could not write down."""
    return status_by(study.study_name, study.user_attrs, url)


def status_by(name: str, attributes: Mapping[str, Any], url: str) -> Status:
    """The same, by the attributes that are known of a study of this name."""
    status: Status | Literal["waiting"] = attributes.get(records.STATUS, "waiting")
    if status == "running" and not is_driven(url, name):
        return "interrupted"  # its driver was killed before it could say so
    if status == "waiting":  # for its turn in a family, or its launch was killed
        family = records.family_in(attributes)
        return "running" if family is not None and is_driven(url, family.name) else "interrupted"
    return status


def _trained(
    plan: Plan, widths: Mapping[str, int], trials: BySource, source: Source, replicas: range
) -> Trained:
    return {
        **network_of(plan.cost, widths),
        "val_loss": mean_of(trials, source, replicas),
        "val_accuracy": mean_of(trials, source, replicas, "val_accuracy"),
        "test_loss": mean_of(trials, source, replicas, "test_loss"),
        "test_accuracy": mean_of(trials, source, replicas, "test_accuracy"),
    }


def _accuracy_gain(trials: BySource, found: Candidate | None, fresh: range) -> Gain | None:
    """How much higher the metric of the best found is than the uniform network's, paired by fresh seed."""
    if found is None:
        return None
    own = by_seed(trials, _source("report", found), fresh, "val_accuracy")
    return paired_gain(own, by_seed(trials, BASELINE, fresh, "val_accuracy"))


def _start_name(start: Candidate | None) -> str | None:
    return None if start is None else "uniform" if start.is_baseline else "cost-aware"


def _source(kind: str, candidate: Candidate) -> Source:
    return (kind, candidate.round, candidate.step)


def _rounds(plan: Plan, history: History, trials: BySource) -> list[Round]:
    rounds: list[Round] = []
    for r in range(plan.rounds):
        ratios = history.prune_ratios(r)
        if not ratios:
            break
        over_wide, source = history.complete("measure", r)[0].widths, history.source(r)
        merged = rule.merge(ratios)
        candidates = history.candidates(r) if history.measured(r) else []
        steps: list[Proposal] = [
            {
                "step": c.step,
                "widths": dict(c.widths),
                "val_loss": mean_of(trials, _source(c.kind, c), range(plan.seeds)),
            }
            for c in candidates
        ]
        scores = [(score, i) for i, c in enumerate(candidates) if (score := history.score(c)) is not None]
        best = steps[min(scores)[1]] if scores else None
        rounds.append(
            {
                "round": r,
                "measured_from": candidate_name(source.round, source.step),
                "over_wide": {v: over_wide[v] for v in plan.widths},
                "kept": {v: round(over_wide[v] * (1 - merged[v]), 2) for v in plan.widths},
                "prune_ratio": {v: float(np.mean([p[v] for p in ratios])) for v in plan.widths},
                "prune_ratio_se": rule.standard_error(ratios),
                "spread": rule.spread(ratios),
                "damping": rule.damping(ratios),
                "balanced": rule.balanced(ratios, tolerance=plan.tolerance),
                "replicas": len(ratios),
                "steps": steps,
                "best_so_far": dict((history.best(r + 1) or history.baseline).widths),
                "proposal": best["widths"] if best else steps[-1]["widths"] if steps else None,
                "val_loss": best["val_loss"] if best else None,
            }
        )
    return rounds


def _run_off(plan: Plan, history: History, trials: BySource) -> list[Finalist]:
    """The finalists on all seeds that select, as far as these are trained; nothing before the first is."""
    if not any(slot.key in history.runs for phase in history.run_off(plan.rounds) for slot in phase):
        return []
    return [
        {
            "round": c.round,
            "step": c.step,
            "widths": dict(c.widths),
            "val_loss": mean_of(trials, _source(c.kind, c), plan.selecting),
        }
        for c in history.finalists(plan.rounds)
    ]


def _search_cost(plan: Plan, trials: Sequence[Trial]) -> SearchCost:
    """What finding the widths cost: measures and scores, also the baseline's (the verdict counts apart)."""
    done = completed(trials)
    uniform = [t for t in done if t.kind == "baseline"]
    selecting = [t for t in uniform if t.replica in plan.selecting]
    search = spent([t for t in done if t.kind in ("measure", "score")] + selecting)["training_macs"]
    everything = spent(done)
    one = uniform[0].training_macs if uniform else None
    return {
        "training_macs": search,
        "in_uniform_trainings": search / one if one else None,
        "verdict_training_macs": everything["training_macs"] - search,
        "seconds": everything["seconds"],
    }

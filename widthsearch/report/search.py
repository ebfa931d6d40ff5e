"""The verdict, from the database alone: recommended widths, gain with interval, rounds, costs.

The gain is judged on seeds that had no part in choosing the recommendation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from widthsearch.database import records
from widthsearch.database.connection import hide_password
from widthsearch.database.lock import is_driven
from widthsearch.maths import rule
from widthsearch.maths.cost import RESOURCES
from widthsearch.maths.intervals import mean_se, paired_gain
from widthsearch.plans.plan import Done, Failed, Plan
from widthsearch.plans.search import Candidate, History, step_after
from widthsearch.report.shares import pruned_most_and_least, removed

BETTER, NO_DIFFERENCE, WORSE = "better", "no difference shown", "worse"
NOTHING_BETTER = "nothing better found"  # on the seeds that select, the baseline scored best

Source = tuple[str, int, float]  # kind, round, step
BASELINE: Source = ("baseline", -1, 0.0)


def verdict(gain: dict[str, Any] | None) -> str | None:
    """``better``, ``no difference shown`` or ``worse``, by the interval; ``None`` before there is one."""
    if gain is None:
        return None
    low, high = gain["ci95"]
    return BETTER if low > 0 else WORSE if high < 0 else NO_DIFFERENCE


@dataclass(frozen=True)
class Trials:
    """The completed trials of a search, to be asked by kind, round and replica."""

    trials: list[FrozenTrial]

    def values(self, source: Source, replicas: range, attribute: str | None = None) -> dict[int, float]:
        """replica -> loss, or another attribute where the trial has it."""
        found = {}
        for t in self.trials:
            a = t.user_attrs
            own = (a[records.KIND], a[records.ROUND], a.get(records.STEP, 0.0))
            if own == source and a[records.REPLICA] in replicas:
                value = t.value if attribute is None else a.get(attribute)
                if value is not None:
                    found[a[records.REPLICA]] = value
        return found


def completed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trainings of ours that came to their end."""
    return [t for t in trials if t.state == TrialState.COMPLETE and records.KIND in t.user_attrs]


def ending(study: optuna.Study, status: str, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What every summary ends with: its metric, trials by state, when, why it stopped, what was left out."""
    metric = study.user_attrs.get(records.FINGERPRINT, {}).get("recipe.metric", "None")
    moments = [m for t in trials for m in (t.datetime_start, t.datetime_complete) if m is not None]
    return {
        "metric": "accuracy" if metric == "None" else metric,
        "started": min(moments).isoformat(timespec="seconds") if moments else None,
        "last_change": max(moments).isoformat(timespec="seconds") if moments else None,
        "trials": {s.name: n for s in TrialState if (n := sum(t.state == s for t in trials))},
        "stopped_because": study.user_attrs.get(records.STOPPED) if status != "running" else None,
        "not_searched": study.user_attrs.get(records.FROZEN, []),
    }


def summarise(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a study as one JSON object: what ``widthsearch show --json`` prints."""
    plan = records.plan_of(study).plan
    trials = study.get_trials(deepcopy=False)
    status = status_of(study, url)
    return {
        "kind": "search",
        "study": study.study_name,
        "status": status,
        "storage": hide_password(url),
        "budget": {r: plan.budget.get(r) for r in RESOURCES},
        **summarise_search(plan, trials),
        **ending(study, status, trials),
    }


def summarise_search(plan: Plan, all_trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What one search found, from its trials."""
    complete = completed(all_trials)
    trials = Trials(complete)
    history = History(plan, records.runs_of(all_trials))
    ended = step_after(history)
    best = history.recommended(plan.rounds)
    found = best if best is not None and not best.is_baseline else None
    select, report = range(plan.seeds), plan.fresh
    fresh = trials.values(_source("report", found), report) if found is not None else {}
    seen = report if fresh or (found is None and isinstance(ended, Done)) else select
    baseline = {"step": None, **_network(plan, plan.baseline, trials, BASELINE, seen)}
    candidate = None
    if found is not None:
        source = _source("report" if fresh else found.kind, found)
        candidate = {"round": found.round, "step": found.step}
        candidate |= _network(plan, found.widths, trials, source, seen)
    own = trials.values(BASELINE, report)
    gain, result = paired_gain(own, fresh), None
    if gain is not None:
        result = verdict(gain)
    elif found is None and isinstance(ended, Done):
        gain, result = paired_gain(own, own), NOTHING_BETTER
    recommended = {"round": None, **baseline} if result in (WORSE, NOTHING_BETTER) else candidate
    seed = {"widths": plan.widths, **plan.seed_cost()}
    rounds = _rounds(plan, history, trials)
    return {
        "latency_model": plan.latency,
        "seed": seed,
        "baseline": baseline,
        "recommended": recommended,
        "removed": removed(seed, recommended),
        "candidate": candidate,
        "started_from": _start_name(history.best(0)) if history.begun else None,
        "starting_networks": [
            {
                "start": _start_name(c),
                "widths": dict(c.widths),
                "val_loss": _scored(trials, c, select),
            }
            for c in history.starts
        ],
        "gain": gain,
        "gain_so_far": history.gain_of(found),
        "verdict": result,
        "rounds": rounds,
        "run_off": _run_off(plan, history, trials),
        **pruned_most_and_least(rounds),
        "cost": _search_cost(plan, complete),
        "selection_seeds": len(plan.selecting),  # fresh seeds are numbered from here
        "run_off_seeds": plan.final_seeds,  # the last of these
        "stopped_because": ended.because if isinstance(ended, Done | Failed) else None,
    }


def status_of(study: optuna.Study, url: str) -> str:
    """``running``, ``finished``, ``interrupted`` or ``failed``."""
    status: str = study.user_attrs.get(records.STATUS, "waiting")
    if status == "running" and not is_driven(url, study.study_name):
        return "interrupted"  # its driver was killed before it could say so
    if status == "waiting":  # for its turn in a family, or its launch was killed
        family = records.family_in(study.user_attrs)
        return "running" if family is not None and is_driven(url, family.name) else "interrupted"
    return status


def _network(
    plan: Plan, widths: Mapping[str, int], trials: Trials, source: Source, replicas: range
) -> dict[str, Any]:
    def stats(attribute: str | None) -> dict[str, Any] | None:
        return mean_se(list(trials.values(source, replicas, attribute).values()))

    return {
        "widths": dict(widths),
        **plan.cost.at(widths),
        "val_loss": stats(None),
        "val_accuracy": stats(records.ACCURACY),
        "test_loss": stats(records.TEST_LOSS),
        "test_accuracy": stats(records.TEST_ACCURACY),
    }


def _start_name(start: Candidate | None) -> str | None:
    return None if start is None else "uniform" if start.is_baseline else "cost-aware"


def _source(kind: str, candidate: Candidate) -> Source:
    return (kind, candidate.round, candidate.step)


def _scored(trials: Trials, candidate: Candidate, replicas: range) -> dict[str, Any] | None:
    return mean_se(list(trials.values(_source(candidate.kind, candidate), replicas).values()))


def _rounds(plan: Plan, history: History, trials: Trials) -> list[dict[str, Any]]:
    rounds = []
    for r in range(plan.rounds):
        ratios = history.prune_ratios(r)
        if not ratios:
            break
        over_wide = history.complete("measure", r)[0].widths
        merged = rule.merge(ratios)
        candidates = history.candidates(r) if len(ratios) == plan.replicas else []
        steps = [
            {
                "step": c.step,
                "widths": dict(c.widths),
                "val_loss": _scored(trials, c, range(plan.seeds)),
            }
            for c in candidates
        ]
        scores = [(score, i) for i, c in enumerate(candidates) if (score := history.score(c)) is not None]
        best: Any = steps[min(scores)[1]] if scores else None
        rounds.append(
            {
                "round": r,
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


def _run_off(plan: Plan, history: History, trials: Trials) -> list[dict[str, Any]]:
    """The finalists on all seeds that select, as far as these are trained; nothing before the first is."""
    if not any(slot.key in history.runs for slot in history.run_off(plan.rounds)):
        return []
    return [
        {
            "round": c.round,
            "step": c.step,
            "widths": dict(c.widths),
            "val_loss": _scored(trials, c, plan.selecting),
        }
        for c in history.finalists(plan.rounds)
    ]


def _search_cost(plan: Plan, complete: list[FrozenTrial]) -> dict[str, Any]:
    """What finding the widths cost: measures and scores, also the baseline's (the verdict counts apart)."""

    def total(*kinds: str) -> int:
        return sum(
            t.user_attrs[records.TRAINING_MACS] for t in complete if t.user_attrs[records.KIND] in kinds
        )

    selecting = [t for t in complete if t.user_attrs[records.REPLICA] in plan.selecting]
    compared = sum(
        t.user_attrs[records.TRAINING_MACS] for t in selecting if t.user_attrs[records.KIND] == "baseline"
    )
    search = total("measure", "score") + compared
    verdict_ = total("baseline", "report") - compared
    one = [t.user_attrs[records.TRAINING_MACS] for t in complete if t.user_attrs[records.KIND] == "baseline"]
    return {
        "training_macs": search,
        "in_uniform_trainings": search / one[0] if one else None,
        "verdict_training_macs": verdict_,
        "seconds": round(sum(t.user_attrs[records.SECONDS] for t in complete), 3),
    }

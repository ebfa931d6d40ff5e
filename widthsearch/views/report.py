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

from widthsearch import rule
from widthsearch import storage as names
from widthsearch.database import hide_password
from widthsearch.history import Candidate, History, step_after
from widthsearch.intervals import mean_se, paired_gain
from widthsearch.lock import is_driven
from widthsearch.plan import Done, Plan

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
class _Trials:
    """The completed trials of a study, to be asked by kind, round and replica."""

    trials: list[FrozenTrial]

    def values(self, source: Source, replicas: range, attribute: str | None = None) -> dict[int, float]:
        """replica -> loss, or another attribute where the trial has it."""
        found = {}
        for t in self.trials:
            a = t.user_attrs
            own = (a[names.KIND], a[names.ROUND], a.get(names.STEP, 0.0))
            if own == source and a[names.REPLICA] in replicas:
                value = t.value if attribute is None else a.get(attribute)
                if value is not None:
                    found[a[names.REPLICA]] = value
        return found


def completed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trainings of ours that came to their end."""
    return [t for t in trials if t.state == TrialState.COMPLETE and names.KIND in t.user_attrs]


def ending(study: optuna.Study, status: str, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What every summary ends with: trials by state, why it stopped, what was left out."""
    return {
        "trials": {s.name: n for s in TrialState if (n := sum(t.state == s for t in trials))},
        "stopped_because": study.user_attrs.get(names.STOPPED) if status != "running" else None,
        "not_searched": study.user_attrs.get(names.FROZEN, []),
    }


def summarise(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a study as one JSON object: what ``widthsearch show --json`` prints."""
    plan = names.plan_of(study)
    if not isinstance(plan, Plan):
        raise TypeError(f"study {study.study_name!r} is no search")
    all_trials = study.get_trials(deepcopy=False)
    complete = completed(all_trials)
    trials = _Trials(complete)
    runs = names.runs_of(all_trials)
    history = History(plan, runs)
    ended = step_after(history)
    best = history.best(plan.rounds)
    found = best if best is not None and best.round >= 0 else None
    select, report = range(plan.seeds), range(plan.seeds, plan.seeds + plan.report_seeds)
    fresh = trials.values(_source("report", found), report) if found is not None else {}
    seen = report if fresh or (found is None and isinstance(ended, Done)) else select
    baseline = {"step": None, **_network(plan, plan.baseline(), trials, BASELINE, seen)}
    candidate = None
    if found is not None:
        source = _source("report" if fresh else "score", found)
        candidate = {"round": found.round, "step": found.step}
        candidate |= _network(plan, found.widths, trials, source, seen)
    own = trials.values(BASELINE, report)
    gain, result = paired_gain(own, fresh), None
    if gain is not None:
        result = verdict(gain)
    elif found is None and isinstance(ended, Done):
        gain, result = paired_gain(own, own), NOTHING_BETTER
    keep = result in (WORSE, NOTHING_BETTER)
    status = status_of(study, url)
    return {
        "study": study.study_name,
        "status": status,
        "storage": hide_password(url),
        "budget": {r: plan.budget.get(r) for r in ("macs", "params")},
        "seed": {"widths": plan.widths, **plan.cost.at(plan.widths)},
        "baseline": baseline,
        "recommended": {"round": None, **baseline} if keep else candidate,
        "candidate": candidate,
        "gain": gain,
        "gain_so_far": history.gain_of(found),
        "verdict": result,
        "rounds": _rounds(plan, history, trials),
        "cost": _search_cost(plan, complete),
        **ending(study, status, all_trials),
    }


def status_of(study: optuna.Study, url: str) -> str:
    """``running``, ``finished``, ``interrupted`` or ``failed``."""
    status: str = study.user_attrs.get(names.STATUS, "interrupted")
    if status == "running" and not is_driven(url, study.study_name):
        return "interrupted"  # its driver was killed before it could say so
    return status


def _network(
    plan: Plan, widths: Mapping[str, int], trials: _Trials, source: Source, replicas: range
) -> dict[str, Any]:
    def stats(attribute: str | None) -> dict[str, Any] | None:
        return mean_se(list(trials.values(source, replicas, attribute).values()))

    return {
        "widths": dict(widths),
        **plan.cost.at(widths),
        "val_loss": stats(None),
        "val_accuracy": stats(names.ACCURACY),
        "test_loss": stats(names.TEST_LOSS),
        "test_accuracy": stats(names.TEST_ACCURACY),
    }


def _source(kind: str, candidate: Candidate) -> Source:
    return (kind, candidate.round, candidate.step)


def _rounds(plan: Plan, history: History, trials: _Trials) -> list[dict[str, Any]]:
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
                "val_loss": mean_se(list(trials.values(_source("score", c), range(plan.seeds)).values())),
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
                "proposal": best["widths"] if best else steps[-1]["widths"] if steps else None,
                "val_loss": best["val_loss"] if best else None,
            }
        )
    return rounds


def _search_cost(plan: Plan, complete: list[FrozenTrial]) -> dict[str, Any]:
    """What finding the widths cost: measures and scores, also the baseline's (the verdict counts apart)."""

    def total(*kinds: str) -> int:
        return sum(t.user_attrs[names.TRAINING_MACS] for t in complete if t.user_attrs[names.KIND] in kinds)

    selecting = [t for t in complete if t.user_attrs[names.REPLICA] < plan.seeds]
    compared = sum(
        t.user_attrs[names.TRAINING_MACS] for t in selecting if t.user_attrs[names.KIND] == "baseline"
    )
    search = total("measure", "score") + compared
    verdict_ = total("baseline", "report") - compared
    one = [t.user_attrs[names.TRAINING_MACS] for t in complete if t.user_attrs[names.KIND] == "baseline"]
    return {
        "training_macs": search,
        "in_uniform_trainings": search / one[0] if one else None,
        "verdict_training_macs": verdict_,
        "seconds": round(sum(t.user_attrs[names.SECONDS] for t in complete), 3),
    }

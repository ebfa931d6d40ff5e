"""The verdict, from the database alone: recommended widths, gain with interval, rounds, costs.

The gain is judged on seeds that had no part in choosing the recommendation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from widthsearch import rule
from widthsearch import storage as names
from widthsearch.database import hide_password
from widthsearch.lock import is_driven
from widthsearch.plan import Done, History, Plan, Run, next_step

BETTER, NO_DIFFERENCE, WORSE = "better", "no difference shown", "worse"


def mean_se(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean, standard error, median and n; ``None`` without values, ``se`` null for a single one."""
    if not values:
        return None
    n = len(values)
    se = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"mean": float(np.mean(values)), "se": se, "median": float(median(values)), "n": n}


def paired_gain(baseline: dict[int, float], candidate: dict[int, float]) -> dict[str, Any] | None:
    """Mean of baseline loss minus candidate loss over the seeds both have, with Student's 95 % interval.

    ``None`` for fewer than two pairs.
    """
    pairs = sorted(baseline.keys() & candidate.keys())
    differences = np.array([baseline[k] - candidate[k] for k in pairs])
    n = len(differences)
    if n < 2:
        return None
    from scipy.special import stdtrit  # imported here: `widthsearch --help` should start fast

    mean = float(differences.mean())
    half = float(stdtrit(n - 1, 0.975) * differences.std(ddof=1) / np.sqrt(n))
    return {"mean": mean, "ci95": [mean - half, mean + half], "median": float(np.median(differences)), "n": n}


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

    def values(
        self, kind: str, round_: int, replicas: range, attribute: str | None = None
    ) -> dict[int, float]:
        """replica -> loss, or another attribute where the trial has it."""
        found = {}
        for t in self.trials:
            a = t.user_attrs
            if (a[names.KIND], a[names.ROUND]) == (kind, round_) and a[names.REPLICA] in replicas:
                value = t.value if attribute is None else a.get(attribute)
                if value is not None:
                    found[a[names.REPLICA]] = value
        return found


def summarise(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a study as one JSON object: what ``widthsearch show --json`` prints."""
    plan = names.plan_of(study)
    all_trials = study.get_trials(deepcopy=False)
    complete = [t for t in all_trials if t.state == TrialState.COMPLETE and names.KIND in t.user_attrs]
    trials = _Trials(complete)
    runs = names.runs_of(all_trials)
    history = History(plan, runs)
    best = _best_round(plan, runs, history)
    select, report = range(plan.seeds), range(plan.seeds, plan.seeds + plan.report_seeds)
    fresh = trials.values("report", best, report) if best is not None else {}
    gain = paired_gain(trials.values("baseline", -1, report), fresh)
    baseline = _network(plan, plan.baseline(), trials, ("baseline", -1), report if fresh else select)
    candidate = None
    if best is not None:
        source = ("report", best) if fresh else ("score", best)
        widths = history.proposal(best)
        candidate = {
            "round": best,
            **_network(plan, widths, trials, source, report if fresh else select),
        }
    result = verdict(gain)
    status = _status(study, url)
    return {
        "study": study.study_name,
        "status": status,
        "storage": hide_password(url),
        "budget": {r: plan.budget.get(r) for r in ("macs", "params")},
        "seed": {"widths": plan.widths, **plan.cost.at(plan.widths)},
        "baseline": baseline,
        "recommended": {"round": None, **baseline} if result == WORSE else candidate,
        "candidate": candidate,
        "gain": gain,
        "gain_so_far": _gain_so_far(trials, best, select),
        "verdict": result,
        "rounds": _rounds(plan, history, trials),
        "cost": _search_cost(plan, complete),
        "trials": {s.name: n for s in TrialState if (n := sum(t.state == s for t in all_trials))},
        "stopped_because": study.user_attrs.get(names.STOPPED) if status != "running" else None,
        "not_searched": study.user_attrs.get(names.FROZEN, []),
    }


def _best_round(plan: Plan, runs: list[Run], history: History) -> int | None:
    """The recommended round once it is settled, before that the best one so far."""
    step = next_step(plan, runs)
    return step.round if isinstance(step, Done) else history.best_round(plan.rounds)


def _status(study: optuna.Study, url: str) -> str:
    status: str = study.user_attrs.get(names.STATUS, "interrupted")
    if status == "running" and not is_driven(url, study.study_name):
        return "interrupted"  # its driver was killed before it could say so
    return status


def _network(
    plan: Plan, widths: dict[str, int], trials: _Trials, source: tuple[str, int], replicas: range
) -> dict[str, Any]:
    def stats(attribute: str | None) -> dict[str, Any] | None:
        return mean_se(list(trials.values(*source, replicas, attribute).values()))

    return {
        "widths": widths,
        **plan.cost.at(widths),
        "val_loss": stats(None),
        "val_accuracy": stats(names.ACCURACY),
        "test_loss": stats(names.TEST_LOSS),
        "test_accuracy": stats(names.TEST_ACCURACY),
    }


def _gain_so_far(trials: _Trials, best: int | None, select: range) -> float | None:
    """The gain on the seeds that select the round: optimistic, for the progress display alone."""
    if best is None:
        return None
    baseline, score = trials.values("baseline", -1, select), trials.values("score", best, select)
    pairs = baseline.keys() & score.keys()
    return float(np.mean([baseline[k] - score[k] for k in pairs])) if pairs else None


def _rounds(plan: Plan, history: History, trials: _Trials) -> list[dict[str, Any]]:
    rounds = []
    for r in range(plan.rounds):
        measures = history.complete("measure", r)
        ratios = history.prune_ratios(r)
        if not ratios:
            break
        over_wide = measures[0].widths
        merged = rule.merge(ratios)
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
                "proposal": history.proposal(r) if len(ratios) == plan.replicas else None,
                "val_loss": mean_se(list(trials.values("score", r, range(plan.seeds)).values())),
            }
        )
    return rounds


def _search_cost(plan: Plan, complete: list[FrozenTrial]) -> dict[str, Any]:
    """What finding the widths cost (measures and scores; the verdict is counted apart)."""

    def total(*kinds: str) -> int:
        return sum(t.user_attrs[names.TRAINING_MACS] for t in complete if t.user_attrs[names.KIND] in kinds)

    search, verdict_ = total("measure", "score"), total("baseline", "report")
    one = [t.user_attrs[names.TRAINING_MACS] for t in complete if t.user_attrs[names.KIND] == "baseline"]
    return {
        "training_macs": search,
        "in_uniform_trainings": search / one[0] if one else None,
        "verdict_training_macs": verdict_,
        "seconds": round(sum(t.user_attrs[names.SECONDS] for t in complete), 3),
    }

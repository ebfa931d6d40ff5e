"""How far a study is: what is done, what runs, what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from widthsearch.plans.plan import StudyPlan
from widthsearch.report.trials import Trial, completed
from widthsearch.report.types.common import Progress, Status


def progress_of(plan: StudyPlan, status: Status, trials: Sequence[Trial]) -> Progress:
    """From the trials alone; only a study that is driven has any that run."""
    done, seconds = completed(trials), dict[str, list[float]]()
    for trial in done:
        seconds.setdefault(trial.kind, []).append(trial.seconds or 0.0)
    live = [t for t in trials if t.state == "RUNNING"] if status == "running" else []
    expected, running = plan.expected_after((t.kind, t.replica) for t in [*done, *live]), list(map(str, live))
    left = seconds_left(expected, seconds, max(1, len(running)))
    return {
        "done": len(done),
        "at_most": sum(expected.values()),
        "running": running,
        "seconds_left": left if status == "running" else None,
    }


def seconds_left(
    expected: Mapping[str, int], seconds: Mapping[str, Sequence[float]], workers: int
) -> float | None:
    """Time left if all rounds are used; ``None`` before the first training has ended.

    ``expected``: trainings by kind; ``seconds``: what those that ended took, by kind.  A kind that none has
    ended of is taken to last as long as its like.
    """
    every = [s for of in seconds.values() for s in of]
    if not every:
        return None
    plain = [s for kind in ("score", "baseline", "report") for s in seconds.get(kind, ())]
    left = 0.0
    for kind, n in expected.items():
        known = seconds.get(kind) or (plain if kind != "measure" else []) or every
        left += max(0, n - len(seconds.get(kind, ()))) * sum(known) / len(known)
    return left / workers

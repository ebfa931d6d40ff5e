"""What comes next in a search, as a pure function of its plan and its trials.

There is no other state, so a search that was killed goes on as if it had not been.  Slots are handed out in
one fixed order; how many workers there are never changes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, ClassVar

from widthsearch.plans.history import History, State
from widthsearch.plans.plan import (
    Done,
    Failed,
    Plan,
    Run,
    Slot,
    Step,
    StudyKind,
    StudyPlan,
    Together,
    Wait,
    identity,
)


def next_step(plan: Plan, runs: Iterable[Run]) -> Step:
    """What to do next, from the plan and the runs so far alone."""
    return step_after(History(plan, runs))


def step_after(history: History) -> Step:
    """What to do next after these runs."""
    for step in _phases(history):
        if not isinstance(step, list):
            return step
        states = [history.state(slot) for slot in step]
        if "open" in states:
            return step[states.index("open")]
        if "running" in states:
            return Wait()
    raise AssertionError("the phases end with Done or Failed")


def _phases(history: History) -> Iterator[list[Slot] | Done | Failed]:
    """The slots in the one order in which they are handed out, phase by phase; then how the search ends.

    A phase is handed out once all trainings of the phases before it have ended.
    """
    plan = history.plan
    rounds, because = yield from rounds_of(history)
    if rounds is None:
        yield Failed(because)
        return
    yield from history.run_off(rounds)
    best = history.recommended(rounds)
    assert best is not None  # a start is scored
    recommended = [
        Slot("report", best.round, k, best.widths, best.step) for k in plan.fresh if not best.is_baseline
    ]
    baseline = [history.baseline.slot(k) for k in plan.fresh]
    # In pairs, so that half a report is fair too.
    yield [slot for pair in zip_longest(recommended, baseline) for slot in pair if slot is not None]
    yield Done(best.round, best.step, because)


def rounds_of(history: History) -> Generator[list[Slot], None, tuple[int | None, str]]:
    """The phases of the rounds; returns how many were made and why no more, ``None`` if the search failed."""
    plan = history.plan
    start = history.start()
    yield start
    if all(history.score(c) is None for c in history.starts):
        return None, f"no training at the start came to its end: {history.last_error(start)}"
    because = None
    for round_ in range(plan.rounds):
        measure: list[Slot] = []
        for phase in history.measure(round_):
            measure += phase
            yield phase
        if not history.prune_ratios(round_):
            return None, f"every measure of round {1 + round_} failed: {history.last_error(measure)}"
        candidates = history.candidates(round_)
        yield from history.proposals(round_)
        if candidates and all(history.score(c) is None for c in candidates):
            lost = [c.slot(k) for c in candidates for k in range(plan.seeds)]
            return None, f"every score of round {1 + round_} failed: {history.last_error(lost)}"
        # A round that has another one after it did not end the search (and need not be judged again).
        next_ = history.runs.get(("measure", round_ + 1, 0, 0.0), [])
        another = round_ + 1 < plan.rounds and any(run.state != "interrupted" for run in next_)
        because = None if another else history.stop_reason(round_)
        if because is not None:
            break
    assert because is not None  # the last round has its limit
    return round_ + 1, because


def phases_of(history: History) -> Iterator[list[Slot]]:
    """The phases of a search, as far as its runs say what they are."""
    return (step for step in _phases(history) if isinstance(step, list))


def split(phases: Iterable[list[Slot]], state: Callable[[Slot], State]) -> tuple[list[Slot], list[Slot]]:
    """The slots by which something was decided, and the others.

    These are the slots of the last phase in which a training came to its end, and of those after it.
    """
    decided: list[Slot] = []
    others: list[Slot] = []
    for phase in phases:
        states = [state(slot) for slot in phase]
        if "complete" in states:
            decided, others = decided + others, []
        others = others + phase
        if "open" in states or "running" in states:
            break
    return decided, others


def undecided_by_all(parts: Iterable[tuple[list[Slot], list[Slot]]]) -> list[Slot]:
    """The slots by which none of several searches has decided anything; each as :func:`split` has it."""
    parts = list(parts)
    decided = {identity(slot) for of, _ in parts for slot in of}
    return [slot for _, others in parts for slot in others if identity(slot) not in decided]


@dataclass(frozen=True)
class SearchPlan(StudyPlan):
    """A study that is one search."""

    kind: ClassVar[StudyKind] = "search"

    def next_step(self, runs: Iterable[Run]) -> Step:
        """What to do next, from the runs so far alone."""
        return next_step(self.plan, runs)

    def together(self, slot: Slot, runs: Iterable[Run]) -> Together:
        """The slots of its phase that differ in their seeds alone; one that failed is tried again alone."""
        history = History(self.plan, runs)
        if self.plan.pack and not any(run.state == "failed" for run in history.runs.get(slot.key, [])):
            for phase in phases_of(history):
                if slot in phase:
                    same = [s for s in phase if replace(s, replica=slot.replica) == slot]
                    return Together(same, [s for s in same if history.state(s) == "open"])
        return Together([slot], [slot])

    def undecided(self, runs: Iterable[Run]) -> list[Slot]:
        """The slots by which nothing was decided yet."""
        history = History(self.plan, runs)
        return split(phases_of(history), history.state)[1]

    def plan_of(self, slot: Slot) -> Plan:
        """The plan of the search: there is one."""
        return self.plan

    def expected(self) -> dict[str, int]:
        """Trials per kind if the search uses all of its rounds."""
        return self.plan.expected()

    def expected_after(self, begun: Iterable[tuple[str, int]]) -> dict[str, int]:
        """The same; once the verdict has begun it is known, since all that selects has ended.

        (Unless more rounds were asked for after a verdict.)
        """
        begun, fresh = list(begun), self.plan.fresh
        verdict = {kind for kind, replica in begun if kind != "measure" and replica in fresh}
        if not verdict or self.plan.at_least:
            return self.expected()
        selected = Counter(kind for kind, replica in begun if kind == "measure" or replica not in fresh)
        return {k: selected[k] + (k in {*verdict, "baseline"}) * len(fresh) for k in self.expected()}

    def gain_so_far(self, runs: Iterable[Run]) -> float | None:
        """Baseline loss minus that of the best network so far, on the seeds that select."""
        history = History(self.plan, runs)
        return history.gain_of(history.recommended(self.plan.rounds))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchPlan:
        """The inverse of :meth:`to_json`."""
        return cls(Plan.from_json(data["plan"]))

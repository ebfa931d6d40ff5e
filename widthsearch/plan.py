"""What a study will do, as plain data, and what it does next, as a pure function of its trials.

The plan is written into the Optuna study once, at launch.  From then on ``next_step(plan, trials)`` says
which training run comes next: there is no other state, so a search that was killed goes on as if it had
not been.  Slots are handed out in one fixed order; how many workers there are never changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from widthsearch import rule
from widthsearch.cost import Cost
from widthsearch.rule import Constraints

Kind = Literal["measure", "score", "baseline", "report"]

#: How many workers may die under one training run (the machine's fault, or out of memory every time).
WORKER_DEATHS = 10


@dataclass(frozen=True)
class Plan:
    """Everything about a study that the next step depends on, apart from the trials themselves."""

    widths: dict[str, int]  # of the seed network, in order of execution
    cost: Cost
    budget: dict[str, int]  # per resource; resources without a budget are absent
    minimum: dict[str, int]
    multiple_of: dict[str, int]
    pressure: str
    over: float
    rounds: int
    replicas: int
    seeds: int
    report_seeds: int
    patience: int
    tolerance: float
    retries: int
    seed: int
    at_least: int = 0  # rounds before which nothing stops the search: `resume --rounds`

    def constraints(self, over: float = 1.0, minimum: int = 1) -> Constraints:
        """The constraints of a network at ``over`` times the budget, no width below ``minimum``."""
        return Constraints(
            cost=self.cost,
            budget={resource: over * limit for resource, limit in self.budget.items()},
            minimum={v: max(m, minimum) for v, m in self.minimum.items()},
            multiple_of=self.multiple_of,
        )

    def over_wide(self, relative: Mapping[str, float]) -> dict[str, int]:
        """Over-wide widths in these proportions.  At least 2: a gate needs a neighbour to compare with."""
        return rule.scale_to_budget(relative, self.constraints(self.over, minimum=2))

    def baseline(self) -> dict[str, int]:
        """The seed network scaled uniformly to the budget."""
        return rule.scale_to_budget(self.widths, self.constraints())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for the study's attributes."""
        return {**asdict(replace(self, cost=None)), "cost": self.cost.to_json()}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`."""
        return cls(**{**data, "cost": Cost.from_json(data["cost"])})


@dataclass(frozen=True)
class Slot:
    """One training run that the study needs: what (kind), where in the search, and at which widths."""

    kind: Kind
    round: int  # -1 for the baseline, which belongs to no round
    replica: int
    widths: Mapping[str, int]

    @property
    def key(self) -> tuple[str, int, int]:
        """What identifies the slot within its study."""
        return (self.kind, self.round, self.replica)

    @property
    def file(self) -> str:
        """The name of its checkpoint."""
        return f"{self.kind}-{self.replica}.ckpt" if self.round < 0 else "{}-{}-{}.ckpt".format(*self.key)

    def random_seed(self, study_seed: int) -> int:
        """The seed of this run's random numbers (32 bits).

        Plain runs share theirs across kinds and rounds: replica k of every network starts from the same
        seed and sees the same batches, so that differences between networks are paired.
        """
        who = f"measure {self.round}" if self.kind == "measure" else "plain"
        digest = hashlib.sha256(f"{study_seed} {who} {self.replica}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


@dataclass(frozen=True)
class Run:
    """A finished, running or failed training run, read back from its Optuna trial."""

    key: tuple[str, int, int]
    state: Literal["running", "complete", "failed", "died", "interrupted"]
    widths: Mapping[str, int]
    value: float | None = None
    prune_ratio: Mapping[str, float] | None = None
    error: str = ""


@dataclass(frozen=True)
class Wait:
    """Nothing to start until a running trial ends."""


@dataclass(frozen=True)
class Done:
    """The search is over: the recommended round and why it stopped."""

    round: int
    because: str


@dataclass(frozen=True)
class Failed:
    """The search cannot go on."""

    because: str


Step = Slot | Wait | Done | Failed


class History:
    """The runs of a study by slot.  Later runs of a slot (retries) replace earlier, failed ones."""

    def __init__(self, plan: Plan, runs: Iterable[Run]) -> None:
        self.plan = plan
        self.runs: dict[tuple[str, int, int], list[Run]] = {}
        self._complete: dict[tuple[str, int], list[Run]] = {}
        self._scores: dict[int, tuple[int, float] | None] = {}
        for run in runs:
            self.runs.setdefault(run.key, []).append(run)
            if run.state == "complete":
                self._complete.setdefault(run.key[:2], []).append(run)
        for done in self._complete.values():
            done.sort(key=lambda run: run.key[2])

    def complete(self, kind: Kind, round_: int) -> list[Run]:
        """The completed runs of one kind and round, in the order of their replicas."""
        return self._complete.get((kind, round_), [])

    def state(self, slot: Slot) -> Literal["open", "running", "complete", "lost"]:
        """Open: to be started (again).  Lost: failed, or took workers with it, more often than allowed."""
        states = [r.state for r in self.runs.get(slot.key, [])]
        if "complete" in states:
            return "complete"
        if "running" in states:
            return "running"
        lost = states.count("failed") > self.plan.retries or states.count("died") > WORKER_DEATHS
        return "lost" if lost else "open"

    def last_error(self, slots: Sequence[Slot]) -> str:
        """The message of the latest failure among these slots."""
        errors = [r.error for s in slots for r in self.runs.get(s.key, []) if r.error]
        return errors[-1] if errors else "no error was recorded"

    def prune_ratios(self, round_: int) -> list[Mapping[str, float]]:
        """One prune ratio per variable for each completed replica of the round's measure."""
        return [r.prune_ratio for r in self.complete("measure", round_) if r.prune_ratio is not None]

    def relative(self, round_: int) -> dict[str, float]:
        """The rule applied to the round's measure: the proportions of the next widths."""
        ratios = self.prune_ratios(round_)
        over_wide = self.complete("measure", round_)[0].widths
        return rule.grow_shrink(over_wide, rule.merge(ratios), damping=rule.damping(ratios))

    def proposal(self, round_: int) -> dict[str, int]:
        """The widths that the round proposes, at the budget."""
        return rule.scale_to_budget(self.relative(round_), self.plan.constraints())

    def over_wide(self, round_: int) -> dict[str, int]:
        """The over-wide widths that the round measures."""
        return self.plan.over_wide(self.relative(round_ - 1) if round_ else self.plan.widths)

    def score(self, round_: int) -> tuple[int, float] | None:
        """What rounds are compared by: lost runs first, then the mean loss.  ``None`` if none completed."""
        if round_ not in self._scores:  # asked for again after every later round
            losses = [r.value for r in self.complete("score", round_) if r.value is not None]
            found = (self.plan.seeds - len(losses), float(np.mean(losses))) if losses else None
            self._scores[round_] = found
        return self._scores[round_]

    def best_round(self, rounds: int) -> int | None:
        """The best scored of the first ``rounds`` rounds (the earliest of equals)."""
        scores = {r: s for r in range(rounds) if (s := self.score(r)) is not None}
        return min(scores, key=lambda r: (scores[r], r)) if scores else None

    def stop_reason(self, round_: int) -> str | None:
        """Why the search ends after this scored round, or ``None`` if it goes on."""
        best = self.best_round(round_ + 1)
        if round_ + 1 < self.plan.at_least:
            return None
        if rule.balanced(self.prune_ratios(round_), tolerance=self.plan.tolerance):
            return "balanced: every layer prunes by the same share"
        if best is not None and round_ - best >= self.plan.patience:
            return f"no better score for {self.plan.patience} rounds"
        if round_ + 1 >= self.plan.rounds:
            return f"round limit ({self.plan.rounds}) reached"
        return None


def next_step(plan: Plan, runs: Iterable[Run]) -> Step:
    """What to do next, from the plan and the runs so far alone."""
    history = History(plan, runs)
    waiting = False
    for step in _phases(history):
        if not isinstance(step, list):
            return Wait() if waiting and not isinstance(step, Failed) else step
        states = [history.state(slot) for slot in step]
        for slot, state in zip(step, states, strict=True):
            if state == "open":
                return slot
        waiting = waiting or "running" in states
    raise AssertionError("the phases end with Done or Failed")


def _phases(history: History) -> Iterator[list[Slot] | Wait | Done | Failed]:
    """The slots in the one order in which they are handed out, as far as the trials allow to know them."""
    plan = history.plan
    because = None
    for round_ in range(plan.rounds):
        measure = _slots(history, "measure", round_, range(plan.replicas), partial(history.over_wide, round_))
        yield measure
        if round_ == 0:  # depends on nothing: keeps the workers busy while the last measures end
            yield _slots(history, "baseline", -1, range(plan.seeds), plan.baseline)
        if any(history.state(slot) in ("open", "running") for slot in measure):
            yield Wait()
            return
        if not history.prune_ratios(round_):
            yield Failed(f"every measure of round {round_} failed: {history.last_error(measure)}")
            return
        score = _slots(history, "score", round_, range(plan.seeds), partial(history.proposal, round_))
        yield score
        if any(history.state(slot) in ("open", "running") for slot in score):
            yield Wait()
            return
        # A round that has another one after it did not end the search (and need not be judged again).
        because = None if ("measure", round_ + 1, 0) in history.runs else history.stop_reason(round_)
        if because is not None:
            break
    best = history.best_round(round_ + 1)
    if best is None or because is None:
        yield Failed(f"every score failed: {history.last_error(score)}")
        return
    fresh = range(plan.seeds, plan.seeds + plan.report_seeds)
    recommended = _slots(history, "report", best, fresh, partial(history.proposal, best))
    baseline = _slots(history, "baseline", -1, fresh, plan.baseline)
    # In pairs, so that half a report is fair too.
    yield [slot for pair in zip(recommended, baseline, strict=True) for slot in pair]
    yield Done(best, because)


def _slots(
    history: History, kind: Kind, round_: int, replicas: range, widths: Callable[[], Mapping[str, int]]
) -> list[Slot]:
    """One phase.  Its widths are worked out only if one of its runs is still to be made."""
    slots = [Slot(kind, round_, k, {}) for k in replicas]
    if all(history.state(slot) != "open" for slot in slots):
        return slots
    found = widths()
    return [replace(slot, widths=found) for slot in slots]

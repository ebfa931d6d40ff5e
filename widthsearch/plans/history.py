"""What a search knows, from its plan and its runs alone: scores, proposals, races, the best so far."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from widthsearch.maths import race, rule
from widthsearch.plans.plan import FINALISTS, WORKER_DEATHS, Key, Kind, Plan, Run, Slot

#: Open: to be started (again).  Lost: failed, or took workers with it, more often than allowed.
State = Literal["open", "running", "complete", "lost"]
Score = tuple[int, float]  # lost runs, mean loss
#: Phases of slots; returns who is left at the end.
Race = Generator[list[Slot], None, "list[Candidate]"]
ENDED: tuple[State, ...] = ("complete", "lost")
#: Gated trainings after which it is looked whether those of a measure agree.
PAIR = 2
#: They do if damping leaves so much of the step (see ``maths/rule.py``).
AGREED = 0.9


def state_of(runs: Sequence[Run], retries: int) -> State:
    """The state of a slot with these runs."""
    states = [run.state for run in runs]
    if "complete" in states:
        return "complete"
    if "running" in states:
        return "running"
    return "lost" if states.count("failed") > retries or states.count("died") > WORKER_DEATHS else "open"


@dataclass(frozen=True)
class Candidate:
    """Widths at the budget that the search scores: a round's proposal, or (round -1) one of its starts.

    Of a start, step 0 is the seed network's proportions (the baseline), step 1 are the cost-aware widths.
    """

    round: int
    step: float
    widths: Mapping[str, int]

    @property
    def is_baseline(self) -> bool:
        """Whether it is the seed network, scaled uniformly."""
        return self.round < 0 and self.step == 0

    @property
    def kind(self) -> Kind:
        """Of the trainings that score it."""
        return "baseline" if self.is_baseline else "score"

    def slot(self, replica: int) -> Slot:
        """The training that scores it with this seed."""
        return Slot(self.kind, self.round, replica, self.widths, self.step)


class History:
    """The runs of a search by slot.  Later runs of a slot (retries) replace earlier, failed ones."""

    def __init__(self, plan: Plan, runs: Iterable[Run]) -> None:
        self.plan = plan
        self.runs: dict[Key, list[Run]] = {}
        self._complete: dict[tuple[str, int], list[Run]] = {}
        for run in runs:
            self.runs.setdefault(run.key, []).append(run)
            if run.state == "complete":
                self._complete.setdefault(run.key[:2], []).append(run)
        for done in self._complete.values():
            done.sort(key=lambda run: run.key[2])
        self.baseline = Candidate(-1, 0.0, plan.baseline)
        self.starts = [self.baseline]
        if plan.cost_aware_start and plan.cost_aware != self.baseline.widths:
            self.starts.append(Candidate(-1, 1.0, plan.cost_aware))
        self._stages: dict[int, list[list[Candidate]]] = {}
        # The best of no round (the starts), of one, of two..., with its score.
        self._best: list[tuple[Score, Candidate] | None] = []
        self._finalists: dict[int, list[Candidate]] = {}

    def complete(self, kind: Kind, round_: int) -> list[Run]:
        """The completed runs of one kind and round, in the order of their replicas."""
        return self._complete.get((kind, round_), [])

    def state(self, slot: Slot) -> State:
        """Whether it is still to be trained."""
        return state_of(self.runs.get(slot.key, []), self.plan.retries)

    @property
    def begun(self) -> bool:
        """Whether it is known from where the first round starts."""
        return self.left_of(self.start()) is not None

    def start(self) -> Race:
        """The race of the starts."""
        return self.race(self.starts, range(self.plan.seeds))

    def last_error(self, slots: Sequence[Slot]) -> str:
        """The message of the latest failure among these slots."""
        errors = [r.error for s in slots for r in self.runs.get(s.key, []) if r.error]
        return errors[-1] if errors else "no error was recorded"

    def prune_ratios(self, round_: int, replicas: int | None = None) -> list[Mapping[str, float]]:
        """Variable -> prune ratio, of each completed replica of a measure (or of the first ``replicas``)."""
        runs = [r for r in self.complete("measure", round_) if replicas is None or r.key[2] < replicas]
        return [r.prune_ratio for r in runs if r.prune_ratio is not None]

    def measure(self, round_: int) -> Iterator[list[Slot]]:
        """The gated trainings of a round, two at a time, until they agree on a direction or all are made."""
        over_wide, every = self.over_wide(round_), range(self.plan.replicas)
        for first in every[::PAIR]:
            yield [Slot("measure", round_, k, over_wide) for k in every[first : first + PAIR]]
            made = self.prune_ratios(round_, first + PAIR)
            if len(made) > 1 and rule.damping(made) >= AGREED:
                return

    def measured(self, round_: int) -> bool:
        """Whether it is known what the gated trainings of a round tell."""
        ended = (self.state(slot) in ENDED for phase in self.measure(round_) for slot in phase)
        return all(ended) and bool(self.prune_ratios(round_))

    def relative(self, round_: int, step: float) -> Mapping[str, float]:
        """Proportions of widths: from the round's measure in the direction of the rule, as far as ``step``.

        That is the standard deviation of the change in log width, before replica noise damps it.  Prune
        ratios say which way to go, and little of how far: their full step is far too long on a transformer,
        and far too short on an MLP.  Round -1: the proportions of a start.
        """
        if round_ < 0:
            return self.plan.cost_aware if step else self.plan.widths
        ratios = self.prune_ratios(round_)
        measured = self.complete("measure", round_)[0].widths
        over_wide = {v: measured[v] for v in self.plan.widths}
        return rule.proposal(over_wide, ratios, step)

    def candidates(self, round_: int) -> list[Candidate]:
        """The proposals of a measured round, as far as they are known; none that was scored before."""
        return [c for stage in self.stages(round_) for c in stage]

    def stages(self, round_: int) -> list[list[Candidate]]:
        """The proposals in the order of their trial: one per step size, all at once; then longer ones.

        While the longest is the best network so far, it is not known how far to go: one that goes twice as
        far is tried, ``doublings`` times at most.
        """
        if round_ not in self._stages:  # asked for again by every later round
            self._stages[round_] = list(self._propose(round_))
        return self._stages[round_]

    def _propose(self, round_: int) -> Iterator[list[Candidate]]:
        seen = [c.widths for c in (*self.starts, *(c for r in range(round_) for c in self.candidates(r)))]

        def unseen(step: float) -> list[Candidate]:
            widths = self.plan.at_budget(self.relative(round_, step))
            if widths in seen:
                return []
            seen.append(widths)
            return [Candidate(round_, step, widths)]

        rivals = self.rivals(round_)
        stage = [c for step in self.plan.step_sizes for c in unseen(step)]
        yield stage
        for _ in range(self.plan.doublings):
            if not stage or not self._longest_is_best(stage, rivals):
                return
            rivals = rivals + stage
            stage = unseen(2 * stage[-1].step)
            if stage:
                yield stage

    def _longest_is_best(self, stage: list[Candidate], rivals: list[Candidate]) -> bool:
        """Whether the race is over, and its last one beats the others and those before it."""
        if self.left_of(self.line(stage, rivals)) is None:
            return False
        score = self.score(stage[-1])
        others = [self.score(c) for c in (*rivals, *stage[:-1]) if self.finished(c)]
        return (
            self.finished(stage[-1])
            and score is not None
            and all(other is None or score < other for other in others)
        )

    def rivals(self, round_: int) -> list[Candidate]:
        """Those whom a round's proposals race against: the starts and the best so far."""
        best = self.best(round_)
        return [*self.starts, *([best] if best is not None and best not in self.starts else [])]

    def races(self, round_: int) -> Iterator[Race]:
        """The races of a round, as far as they are known: a stage each."""
        rivals = self.rivals(round_)
        for stage in self.stages(round_):
            yield self.line(stage, rivals)
            rivals = rivals + stage

    def line(self, stage: list[Candidate], rivals: Sequence[Candidate]) -> Race:
        """The race of proposals that lie on one line: the last of them leaves at every seed.

        Neighbours differ little, so that it costs little to keep the wrong one; the seeds that are left tell
        whether the one that stays is better than those before it.
        """
        return self.race(stage, range(self.plan.seeds), rivals, last_leaves=True)

    def race(
        self,
        field: list[Candidate],
        seeds: range,
        rivals: Sequence[Candidate] = (),
        *,
        least: int = 1,
        last_leaves: bool = False,
    ) -> Race:
        """Train the field seed by seed; whoever is hopeless leaves (see ``maths/race.py``).

        ``rivals`` were trained before; the leader may be one of them.  Ends early once fewer than ``least``
        are left.
        """
        if len(field) == 1 and not rivals and least == 1:  # nobody to race against
            yield [field[0].slot(seed) for seed in seeds]
            return field
        for seed in seeds:
            if len(field) < least:
                break
            yield [c.slot(seed) for c in field]
            losses = [self.losses(c, seed + 1) for c in (*field, *rivals)]
            ranks = [(seed + 1 - len(of), sum(of.values()) / max(len(of), 1)) for of in losses]
            leader = ranks.index(min(ranks))
            behind = [race.differences(of, losses[leader]) for of in losses]
            behind[leader] = []
            leaves = race.hopeless(behind)[: len(field)]
            if last_leaves and len(field) > 1:
                leaves[max(range(len(field)), key=lambda i: (ranks[i], i))] = True  # of equals the longer
            field = [c for c, gone in zip(field, leaves, strict=True) if not gone]
        return field

    def left_of(self, phases: Race) -> list[Candidate] | None:
        """Who is left of a race; ``None`` while it is not over."""
        while True:
            try:
                phase = next(phases)
            except StopIteration as end:
                return list(end.value)
            if any(self.state(slot) not in ENDED for slot in phase):
                return None

    def finished(self, candidate: Candidate) -> bool:
        """Whether it was trained from all seeds that score it: it did not have to leave a race."""
        return all(self.state(candidate.slot(k)) in ENDED for k in range(self.plan.seeds))

    def losses(self, candidate: Candidate, seeds: int) -> dict[int, float]:
        """Seed (replica) -> validation loss, of the trainings with the first ``seeds`` seeds."""
        return {
            r.key[2]: r.value
            for r in self.complete(candidate.kind, candidate.round)
            if r.key[3] == candidate.step and r.key[2] < seeds and r.value is not None
        }

    def score(self, candidate: Candidate, more_seeds: int = 0) -> Score | None:
        """What candidates are compared by: lost runs first, then mean loss.  ``None`` if none completed.

        ``more_seeds``: than those that every candidate is trained on.
        """
        seeds = self.plan.seeds + more_seeds
        losses = list(self.losses(candidate, seeds).values())
        return (seeds - len(losses), float(np.mean(losses))) if losses else None

    def scored(self, round_: int) -> Iterator[tuple[Score, Candidate]]:
        """The proposals of a round that finished their race, in their order; of round -1 the starts."""
        new = self.starts if round_ < 0 else self.candidates(round_) if self.prune_ratios(round_) else []
        for candidate in new:
            if self.finished(candidate) and (score := self.score(candidate)) is not None:
                yield score, candidate

    def best(self, rounds: int) -> Candidate | None:
        """The best scored of the starts and the proposals of the first ``rounds`` rounds.

        The earliest of equals; ``None`` if nothing is scored.
        """
        while len(self._best) <= rounds:  # asked for again by every later round
            best = self._best[-1] if self._best else None
            for score, c in self.scored(len(self._best) - 1):
                if best is None or score < best[0]:
                    best = (score, c)
            self._best.append(best)
        found = self._best[rounds]
        return None if found is None else found[1]

    def finalists(self, rounds: int) -> list[Candidate]:
        """Those of the run-off, best first: the best few and the start of the search.

        None where there is nothing to choose from, or the plan has no run-off.
        """
        if not self.plan.final_seeds:
            return []
        if rounds not in self._finalists:  # asked for by the phases, the run-off and what is recommended
            known = [entry for r in range(-1, rounds) for entry in self.scored(r)]
            best = [c for _, c in sorted(known, key=lambda entry: entry[0])]
            start = self.best(0)
            few = [c for i, c in enumerate(best) if i < FINALISTS or c == start]
            self._finalists[rounds] = few if len(few) > 1 else []
        return self._finalists[rounds]

    def run_off(self, rounds: int) -> Race:
        """The race of the finalists on more seeds, until one is left.

        The best of many candidates on a few seeds is often one that was lucky there: a network in which now
        and then a training fails.
        """
        return self.race(self.finalists(rounds), self.plan.selecting[self.plan.seeds :], least=2)

    def recommended(self, rounds: int) -> Candidate | None:
        """The best of the run-off on all its seeds; until that is over, and without one, the best scored."""
        left = self.left_of(self.run_off(rounds)) if self.finalists(rounds) else None
        if not left:
            return self.best(rounds)
        scores = [self.score(c, self.plan.final_seeds) for c in left]
        return left[min((score, i) for i, score in enumerate(scores) if score is not None)[1]]

    def gain_of(self, candidate: Candidate | None) -> float | None:
        """Baseline loss minus its loss, on the seeds that select: optimistic, the verdict is not."""
        if candidate is None:
            return None
        base, own = (self.losses(c, self.plan.seeds) for c in (self.baseline, candidate))
        pairs = base.keys() & own.keys()
        return float(np.mean([base[k] - own[k] for k in pairs])) if pairs else None

    def over_wide(self, round_: int) -> dict[str, int]:
        """The over-wide widths that the round measures: of the best network so far."""
        best = self.best(round_) or self.baseline
        return self.plan.over_wide(self.relative(best.round, best.step))

    def stop_reason(self, round_: int) -> str | None:
        """Why the search ends after this scored round, or ``None`` if it goes on."""
        best = self.best(round_ + 1)
        if round_ + 1 < self.plan.at_least:
            return None
        if rule.balanced(self.prune_ratios(round_), tolerance=self.plan.tolerance):
            return "balanced: no difference between layers is shown"
        if best is not None and round_ - best.round >= self.plan.patience:
            n = self.plan.patience
            return f"no better score for {n} round{'' if n == 1 else 's'}"
        if round_ + 1 >= self.plan.rounds:
            return f"round limit ({self.plan.rounds}) reached"
        return None

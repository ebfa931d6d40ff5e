"""What a search knows, from its plan and its runs alone: scores, proposals, the best so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from widthsearch.maths import rule
from widthsearch.maths.intervals import paired_gain
from widthsearch.plans.plan import FINALISTS, WORKER_DEATHS, Key, Kind, Plan, Run, Slot

#: Open: to be started (again).  Lost: failed, or took workers with it, more often than allowed.
State = Literal["open", "running", "complete", "lost"]
Score = tuple[int, float]  # lost runs, mean loss
#: Gated trainings after which it is looked whether those of a measure agree.
PAIR = 2
#: They do if damping leaves so much of the step (see ``maths/rule.py``).
AGREED = 0.9
#: A start is about as good as the better one if its loss is higher by no more than this share of it.
ABOUT = 0.05


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


class Proposed(NamedTuple):
    """The proposals of a round, the phases that score them, and those that were ahead on the first half."""

    candidates: list[Candidate]
    phases: list[list[Slot]]
    stayed: list[Candidate]


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
        self._known_proposals: dict[int, Proposed] = {}
        # The best of no round (the starts), of one, of two..., with its score.
        self._best: list[tuple[Score, Candidate] | None] = []
        self._finalists: dict[int, list[Candidate]] = {}

    def complete(self, kind: Kind, round_: int) -> list[Run]:
        """The completed runs of one kind and round, in the order of their replicas."""
        return self._complete.get((kind, round_), [])

    def state(self, slot: Slot) -> State:
        """Whether it is still to be trained."""
        return state_of(self.runs.get(slot.key, []), self.plan.retries)

    def ended(self, slots: Iterable[Slot]) -> bool:
        """Whether none of these is to be trained any more."""
        return all(self.state(slot) in ("complete", "lost") for slot in slots)

    @property
    def begun(self) -> bool:
        """Whether it is known from where the first round starts."""
        return self.ended(self.start())

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
        return all(map(self.ended, self.measure(round_))) and bool(self.prune_ratios(round_))

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

    def start(self) -> list[Slot]:
        """The trainings of both starts on the first half of the seeds: the better one stays."""
        return self._trainings(self.starts, range(self.plan.first_seeds))

    @property
    def _better_start(self) -> Candidate:
        return next(iter(self._ahead(self.starts, None, self.plan.first_seeds)), self.baseline)

    def candidates(self, round_: int) -> list[Candidate]:
        """The proposals of a measured round in their order, as far as they are known."""
        return self._proposed(round_).candidates

    def proposals(self, round_: int) -> list[list[Slot]]:
        """The phases that score them, as far as they are known."""
        return self._proposed(round_).phases

    def _proposed(self, round_: int) -> Proposed:
        if round_ not in self._known_proposals:  # asked for again by every later round
            known = Proposed([], [], [])
            for phase in self._propose(round_, known):
                known.phases.append(phase)
                if not self.ended(phase):
                    break
            self._known_proposals[round_] = known
        return self._known_proposals[round_]

    def stayed(self, candidate: Candidate) -> bool:
        """Whether it is scored on all seeds, and has not left after the first half."""
        if self.plan.first_seeds == self.plan.seeds:
            return True
        if candidate.round < 0:
            return candidate == self._better_start
        return candidate in self._proposed(candidate.round).stayed

    def _propose(self, round_: int, known: Proposed) -> Iterator[list[Slot]]:
        """The phases of a round's proposals, which are put into ``known``.

        All step sizes are trained on the first half of the seeds.  The best one that is ahead of the best
        network so far on the same seeds has the others (and so has a start that nothing was ahead of before);
        if it is no better on all, the next one that was ahead.  While the longest one is the best so far,
        ``doublings`` times, one twice as long is tried.
        """
        first, seeds = range(self.plan.first_seeds), range(self.plan.first_seeds, self.plan.seeds)
        seen = [*self.starts, *(c for r in range(round_) for c in self.candidates(r))]
        best, steps = self.best(round_), self.plan.step_sizes
        met = any(self._proposed(r).stayed for r in range(round_))
        late = [best] if best is not None and best.round < 0 and not met else []
        for _ in range(1 + self.plan.doublings):
            new: list[Candidate] = []
            for step in steps:
                c = Candidate(round_, step, self.plan.at_budget(self.relative(round_, step)))
                if all(c.widths != other.widths for other in (*seen, *known.candidates, *new)):
                    new.append(c)
            known.candidates.extend(new)
            yield self._trainings(new, first)
            better = None
            for chosen in self._ahead(new, best, len(first)):
                known.stayed.append(chosen)
                yield self._trainings([*late, chosen], seeds)
                late = []
                if self._ahead([chosen], best, self.plan.seeds):
                    better = chosen
                    break
            if better is None or better.step < steps[-1]:
                return
            best, steps = better, (2 * steps[-1],)

    def _trainings(self, candidates: Sequence[Candidate], seeds: range) -> list[Slot]:
        """Seed by seed, so that what is known at any moment is known of all."""
        return [c.slot(k) for k in seeds for c in candidates]

    def _ahead(self, candidates: Sequence[Candidate], rival: Candidate | None, seeds: int) -> list[Candidate]:
        """Those that are better than the rival on the first ``seeds`` seeds, the best one first."""
        scores = [(score, i) for i, c in enumerate(candidates) if (score := self.score_of(c, seeds))]
        limit = None if rival is None else self.score_of(rival, seeds)
        return [candidates[i] for score, i in sorted(scores) if limit is None or score < limit]

    def losses(self, candidate: Candidate, seeds: int) -> dict[int, float]:
        """Seed (replica) -> validation loss, of the trainings with the first ``seeds`` seeds."""
        return {
            r.key[2]: r.value
            for r in self.complete(candidate.kind, candidate.round)
            if r.key[3] == candidate.step and r.key[2] < seeds and r.value is not None
        }

    def score(self, candidate: Candidate, more_seeds: int = 0) -> Score | None:
        """What candidates are compared by: lost runs first, then mean loss.  ``None`` if none completed.

        ``more_seeds``: than those of a score.  What has left counts as lost on the seeds that it lacks.
        """
        plan = self.plan
        if self.stayed(candidate):
            return self.score_of(candidate, plan.seeds + more_seeds)
        left = self.score_of(candidate, plan.first_seeds)
        return left and (left[0] + plan.seeds + more_seeds - plan.first_seeds, left[1])

    def score_of(self, candidate: Candidate, seeds: int) -> Score | None:
        """The same on the first ``seeds`` seeds."""
        losses = list(self.losses(candidate, seeds).values())
        return (seeds - len(losses), float(np.mean(losses))) if losses else None

    def scored(self, round_: int) -> Iterator[tuple[Score, Candidate]]:
        """The proposals of a round that have a score, in their order; of round -1 the starts."""
        new = self.starts if round_ < 0 else self.candidates(round_) if self.prune_ratios(round_) else []
        for candidate in new:
            if (score := self.score(candidate)) is not None:
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
        """Those that are, or were, on trial in the run-off, as far as its trainings say who they are.

        The best of many candidates on a few seeds is often one that was lucky there: a network in which now
        and then a training fails.  So the best so far is trained on the seeds of the run-off, until the best
        one is one that has been, or all but one of ``FINALISTS`` have.  One that stays ahead on them needs no
        rival beside it, and what has left is none.  The last place is the start's, which cost nothing to
        find: it is on trial too where a proposal is not shown to be better on the seeds of the scores.  None
        where the run-off would choose from one, or the plan has none.
        """
        if rounds in self._finalists:  # asked for by the phases, the run-off and what is recommended
            return self._finalists[rounds]
        scored = [entry for r in range(-1, rounds) for entry in self.scored(r)]
        known = [(score, c) for score, c in scored if self.stayed(c)]
        found: list[Candidate] = []
        over = not self.plan.final_seeds or len(known) < 2
        while not over and len(found) < FINALISTS - 1:
            i = min(range(len(known)), key=lambda i: known[i][0])
            best = known[i][1]
            if best in found:
                break
            found.append(best)
            score = self.score(best, self.plan.final_seeds)
            over = score is None or not self.ended(self._final(best))
            known[i] = (score or known[i][0], best)
        start = self.best(0)
        if found and not over and start is not None and start not in found:
            best = min(known, key=lambda entry: entry[0])[1]
            gain = paired_gain(*(self.losses(c, self.plan.seeds) for c in (start, best)))
            if gain is None or gain["ci95"][0] <= 0:
                found.append(start)
        return self._finalists.setdefault(rounds, found)

    def _final(self, candidate: Candidate) -> list[Slot]:
        return [candidate.slot(k) for k in self.plan.selecting[self.plan.seeds :]]

    def run_off(self, rounds: int) -> list[list[Slot]]:
        """The phases of the run-off, one for each finalist: its trainings there."""
        return [self._final(c) for c in self.finalists(rounds)]

    def recommended(self, rounds: int) -> Candidate | None:
        """The best of the run-off on all its seeds; until that is over, and without one, the best scored."""
        finalists = self.finalists(rounds)
        if not finalists or not all(map(self.ended, self.run_off(rounds))):
            return self.best(rounds)
        scores = [self.score(c, self.plan.final_seeds) for c in finalists]
        return finalists[min((score, i) for i, score in enumerate(scores) if score is not None)[1]]

    def gain_of(self, candidate: Candidate | None) -> float | None:
        """Baseline loss minus its loss, on the seeds that select: optimistic, the verdict is not."""
        if candidate is None:
            return None
        base, own = (self.losses(c, self.plan.seeds) for c in (self.baseline, candidate))
        pairs = base.keys() & own.keys()
        return float(np.mean([base[k] - own[k] for k in pairs])) if pairs else None

    def source(self, round_: int) -> Candidate:
        """The network that a round measures, over-wide: the best so far.

        Where nothing is better than a start after the first round, the other start, if that is about as good:
        from one of them the direction may be far too long, and right from the other.
        """
        best = self.best(round_) or self.baseline
        others = self.starts if round_ == 1 and best.round < 0 else []
        return next((c for c in others if c != best and self._about_as_good(c, best)), best)

    def _about_as_good(self, start: Candidate, best: Candidate) -> bool:
        """Whether it is, on the seeds that both starts have."""
        own, of_best = (self.score_of(c, self.plan.first_seeds) for c in (start, best))
        if own is None or of_best is None:
            return False
        return own[0] <= of_best[0] and own[1] - of_best[1] <= ABOUT * abs(of_best[1])

    def over_wide(self, round_: int) -> dict[str, int]:
        """The over-wide widths that the round measures."""
        of = self.source(round_)
        return self.plan.over_wide(self.relative(of.round, of.step))

    def stop_reason(self, round_: int) -> str | None:
        """Why the search ends after this scored round, or ``None`` if it goes on."""
        best = self.best(round_ + 1)
        if round_ + 1 < self.plan.at_least:
            return None
        if rule.balanced(self.prune_ratios(round_), tolerance=self.plan.tolerance):
            return "balanced: no difference between layers is shown"
        n = 0 if best is None else round_ - best.round
        if n >= self.plan.patience and self.source(round_ + 1) == best:
            return f"no better score for {n} round{'' if n == 1 else 's'}"
        if round_ + 1 >= self.plan.rounds:
            return f"round limit ({self.plan.rounds}) reached"
        return None

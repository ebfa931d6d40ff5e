"""A probe: the same search from changed seed networks, as one study, resumed like any other.

Every start is searched as ``launch`` would, under the plain seed's budget in whole MACs and parameters.  If
the rule works, where the search starts does not matter: a layer that was blown up comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from widthsearch.plans.history import History
from widthsearch.plans.plan import (
    Branch,
    Done,
    Failed,
    Plan,
    Run,
    Slot,
    Step,
    StudyKind,
    StudyPlan,
    Wait,
    by_branch,
)
from widthsearch.plans.search import phases_of, split, step_after, undecided_by_all

PLAIN = "plain"  # the start from the seed network as given
#: A width has come back when it is within this factor of what the plain search recommends for it.
WITHIN = 1.5

Widths = Mapping[str, int]
T = TypeVar("T")


class Start(NamedTuple):
    """A seed network: its widths, and the layer that was inflated (``None``: other widths altogether)."""

    widths: dict[str, int]
    layer: str | None = None


class Owners(NamedTuple):
    """Under which starts the trainings that a search goes by were made."""

    baseline: str  # its own
    cost_aware: str  # of the cost-aware widths, before the first round
    rounds: str  # from the first round on

    def of(self, kind: str, round_: int) -> str:
        """Under which the trainings of one kind and round were."""
        if kind == "baseline":
            return self.baseline
        return self.cost_aware if kind == "score" and round_ < 0 else self.rounds

    def marked(self, slot: Slot) -> Slot:
        """A slot of the search, with the branch that its training runs have."""
        return replace(slot, branch=branch_of(self.of(slot.kind, slot.round)))

    def chosen(self, found: Mapping[str, Sequence[T]], key: Callable[[T], tuple[str, int]]) -> list[T]:
        """Out of what each start has, what belongs to this search; ``key``: the kind and round of each."""
        return [x for owner in dict.fromkeys(self) for x in found.get(owner, ()) if self.of(*key(x)) == owner]


@dataclass(frozen=True)
class Probe(StudyPlan):
    """What a probe will do: the plan of the plain seed network, and all starts by name, the plain one first.

    ``again``: how often the plain search is made again with other random numbers, to tell what the start does
    from what chance does.  The trainings on fresh seeds have the same seeds in all of them.
    """

    kind: ClassVar[StudyKind] = "probe"

    starts: dict[str, Start]
    again: int = 0

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The plan of every start, in the order in which they are searched."""
        changed = {name: replace(self.plan, widths=start.widths) for name, start in self.starts.items()}
        again = {f"again {k}": self.plan.repeated(k) for k in range(1, self.again + 1)}
        return {**changed, **again}

    @cached_property
    def same_as(self) -> dict[str, str]:
        """Every start, and the first one with the same search: its own name, if there is none before it.

        A search knows its seed network by the uniform baseline and by the over-wide network measured from
        there alone: where both are equal, all is.
        """
        first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
        found = {}
        for start, plan in self.plans.items():
            networks = (plan.baseline, plan.over_wide_seed)
            over_wide, baseline = (tuple(network[v] for v in plan.widths) for network in networks)
            found[start] = first.setdefault((plan.seed, baseline, over_wide), start)
        return found

    @property
    def searches(self) -> dict[str, Plan]:
        """The plans of all starts whose search is none of another's."""
        return {start: plan for start, plan in self.plans.items() if self.same_as[start] == start}

    def plan_of(self, slot: Slot) -> Plan:
        """The plan that a slot belongs to."""
        if slot.branch is None:
            raise ValueError(f"{slot} belongs to no probe")
        plan = self.plans[slot.branch.arm]
        fresh = slot.kind != "measure" and slot.replica not in plan.selecting
        return replace(plan, seed=self.plan.seed) if fresh else plan

    def next_step(self, runs: Iterable[Run]) -> Step:
        """What to do next, from the runs so far alone."""
        found = {branch.arm: of for branch, of in by_branch(runs).items()}
        owners = self.owners(found)
        histories = self._histories(found, owners)
        begun = all(known.begun for known in histories.values())
        steps = []
        for start, known in histories.items():
            step = step_after(known)
            # Which rounds a search shares with one before it is known once all have begun.
            if isinstance(step, Slot) and (begun or not known.begun):
                # Nearly always its own: but one of those that share a round may have no use for a proposal,
                # whose widths are those of its baseline.
                return owners[start].marked(step)
            steps.append(step)
        if not begun or any(isinstance(step, Wait) for step in steps):
            return Wait()
        failed = [step for step in steps if isinstance(step, Failed)]
        return failed[0] if len(failed) == len(steps) else Done(-1, 0.0, "every start is searched")

    def undecided(self, runs: Iterable[Run]) -> list[Slot]:
        """The slots by which no start's search has decided anything yet."""
        found = {branch.arm: of for branch, of in by_branch(runs).items()}
        owners = self.owners(found)
        parts = []
        for start, known in self._histories(found, owners).items():
            decided, others = split(phases_of(known), known.state)
            own = owners[start]
            parts.append(([own.marked(slot) for slot in decided], [own.marked(slot) for slot in others]))
        return undecided_by_all(parts)

    def histories(self, runs: Iterable[Run]) -> dict[str, History]:
        """Every start's search, from the trainings that it goes by."""
        found = {branch.arm: of for branch, of in by_branch(runs).items()}
        return self._histories(found, self.owners(found))

    def _histories(
        self, found: Mapping[str, Sequence[Run]], owners: Mapping[str, Owners]
    ) -> dict[str, History]:
        return {
            start: History(self.plans[start], own.chosen(found, lambda run: run.key[:2]))
            for start, own in owners.items()
        }

    def owners(self, found: Mapping[str, Sequence[Run]]) -> dict[str, Owners]:
        """Whose trainings every start's search goes by; ``found``: the runs so far, by start.

        Searches score the same cost-aware widths, and those that go on from the same network are one search
        from there on.  So each of these is trained once, under the first of them.
        """
        begun: dict[int, str] = {}
        going_on: dict[tuple[int, tuple[int, ...]], str] = {}
        owners = {}
        for start, plan in self.searches.items():
            own = Owners(start, begun.setdefault(plan.seed, start), start)
            known = History(plan, own.chosen(found, lambda run: run.key[:2]))
            if known.begun:
                over_wide = known.over_wide(0)
                there = (plan.seed, tuple(over_wide[v] for v in plan.widths))
                own = own._replace(rounds=going_on.setdefault(there, start))
            owners[start] = own
        return owners

    def expected(self) -> dict[str, int]:
        """Trials per kind if all searches use all of their rounds."""
        return {kind: n * len(self.searches) for kind, n in self.plan.expected().items()}

    def headline(self) -> str:
        """What the study will do, in one line."""
        return f"starts: {', '.join(self.plans)}; {super().headline()}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for the study's attributes."""
        return {**super().to_json(), "starts": {name: start._asdict() for name, start in self.starts.items()}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Probe:
        """The inverse of :meth:`to_json`."""
        starts = {name: Start(**start) for name, start in data["starts"].items()}
        return cls(Plan.from_json(data["plan"]), starts, data["again"])


def branch_of(start: str) -> Branch:
    """What the training runs of a start's search are marked with."""
    return Branch(-1, -1, start)


def close(width: int, wanted: int) -> bool:
    """Whether one is at most :data:`WITHIN` times the other."""
    return max(width, wanted) <= WITHIN * min(width, wanted)


def back_after(course: Sequence[Widths], wanted: Widths, layers: Iterable[str]) -> int | None:
    """The round after which all ``layers`` are close to ``wanted`` and stay so; -1: they are at the start.

    ``course``: the best network at the start, after round 0, and so on.  ``None`` if the last is not close.
    """
    back = [all(close(widths[v], wanted[v]) for v in layers) for widths in course]
    if not back or not back[-1]:
        return None
    return max((r for r, is_back in enumerate(back) if not is_back), default=-1)


def spread(networks: Sequence[Widths]) -> dict[str, dict[str, Any]]:
    """How far several networks are apart, per width variable.

    ``log2_sd``: the standard deviation (n - 1) of log2 width, ``None`` for one network; ``ratio``: the
    largest width over the smallest.
    """
    found = {}
    for v in networks[0] if networks else ():
        widths = [network[v] for network in networks]
        sd = float(np.std(np.log2(widths), ddof=1)) if len(widths) > 1 else None
        low, high = min(widths), max(widths)
        found[v] = {"log2_sd": sd, "smallest": low, "largest": high, "ratio": high / low}
    return found

"""What an arm of a comparison is: a generator over one :class:`ArmSearch`.

It yields phases, lists of slots to be trained, and goes on once all of a phase have ended; and it yields a
:class:`Point` whenever it would recommend other widths, with what its search had cost until then.  An arm
sees the runs of its own search alone, so neither the order in which the driver works on the arms nor the
number of workers changes anything.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from widthsearch.maths import rule
from widthsearch.plans.history import History
from widthsearch.plans.plan import Branch, Kind, Plan, Run, Slot
from widthsearch.plans.search import split

Widths = Mapping[str, int]
Factors = tuple[float, ...]  # log(width / uniform width), per variable


@dataclass(frozen=True)
class Point:
    """What an arm would recommend once its search has cost ``cost`` uniform trainings.

    ``over_wide``: the widths that are trained and cut down to ``widths``, for the arm that keeps weights.
    """

    cost: float
    widths: Widths
    over_wide: Widths | None = None


class Phase(NamedTuple):
    """Slots that can be trained now, and the state of each."""

    slots: list[Slot]
    states: list[str]


Steps = Generator[list[Slot] | Point, None, None]
Arm = Callable[["ArmSearch"], Steps]
Content = tuple[tuple[Any, ...], ...]  # of the runs that an arm goes by


class ArmSearch:
    """One arm's search: its plan (one budget, a seed of its own), what it may cost, and its runs so far.

    It remembers how far the same runs had brought it: a comparison has thousands of trainings, and is asked
    what comes next before each of them.
    """

    def __init__(self, branch: Branch, plan: Plan, limit: float) -> None:
        self.branch, self.plan, self.limit = branch, plan, limit
        self.history = History(plan, ())
        self._content: Content | None = None
        self._walked: tuple[Phase | None, list[Point]] = (None, [])

    def walk(self, arm: Arm, runs: Sequence[Run]) -> tuple[Phase | None, list[Point]]:
        """How far the arm has come: the phase that is not over yet, if any, and its points so far."""
        content = tuple((r.key, r.state, r.value, *(r.prune_ratio or {}).values()) for r in runs)
        if content != self._content:
            self.history = History(self.plan, runs)
            self._walked, self._content = self._walk(arm), content
        return self._walked

    def _walk(self, arm: Arm) -> tuple[Phase | None, list[Point]]:
        points: list[Point] = []
        for step in arm(self):
            if isinstance(step, Point):
                points.append(step)
                continue
            states: list[str] = [self.history.state(slot) for slot in step]
            if "open" in states or "running" in states:
                return Phase(step, states), points
        return None, points

    def split(self, arm: Arm) -> tuple[list[Slot], list[Slot]]:
        """The slots by which the arm has decided something, and the others that it has come to."""
        return split((step for step in arm(self) if isinstance(step, list)), self.history.state)

    def price(self, widths: Widths) -> float:
        """What a training of the recipe's length costs, in uniform trainings."""
        return self.plan.cost.at(widths)["macs"] / self.plan.cost.at(self.plan.baseline)["macs"]

    def cost_of(self, slot: Slot) -> float:
        """What a slot's training costs, in uniform trainings."""
        return self.price(slot.widths) * (self.plan.measure_length if slot.kind == "measure" else 1.0)

    def slot(self, kind: Kind, round_: int, replica: int, widths: Widths) -> Slot:
        """A slot of this search."""
        return Slot(kind, round_, replica, widths, branch=self.branch)

    def own(self, slots: list[Slot]) -> list[Slot]:
        """Slots of a single search's history as slots of this search."""
        return [replace(slot, branch=self.branch) for slot in slots]

    def loss(self, slot: Slot) -> float | None:
        """The validation loss that a slot's training ended with; ``None`` if it was lost."""
        done = [r for r in self.history.runs.get(slot.key, []) if r.state == "complete"]
        return done[0].value if done else None

    def asked(self, i: int) -> Factors:
        """What the sampler asked for as its i-th candidate; nothing if that was not trained yet."""
        runs = self.history.runs.get(("score", i, 0, 0.0), [])
        return runs[0].asked if runs else ()

    def random_seed(self, i: int) -> int:
        """A seed for the arm's i-th candidate."""
        text = f"{self.plan.seed} {self.branch.arm} {i}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def at_budget(plan: Plan, factors: Factors) -> dict[str, int]:
    """The seed network's widths times ``exp(factors)``, scaled to the budget, whatever the factors."""
    relative = {v: w * math.exp(f) for (v, w), f in zip(plan.widths.items(), factors, strict=True)}
    return plan.at_budget(relative)


def highest_cost(plan: Plan, over: float = 1.0) -> float:
    """What a training at ``over`` times the budget may cost at most, in uniform trainings.

    A budget of MACs bounds it.  Without one it depends on the widths: the dearer of the two starts.
    """
    constraints = plan.constraints(over)
    if "macs" in constraints.budget:
        macs = constraints.budget["macs"]
    else:
        starts = [plan.widths, plan.cost_aware] if plan.cost_aware_start else [plan.widths]
        macs = max(plan.cost.at(rule.scale_to_budget(start, constraints))["macs"] for start in starts)
    return macs / plan.cost.at(plan.baseline)["macs"]


def run_off_of(search: ArmSearch, history: History, rounds: int, cost: float) -> Steps:
    """The run-off after so many rounds, which had cost ``cost``, and what is recommended by it."""
    for phase in history.run_off(rounds):
        yield search.own(phase)
        cost += sum(search.cost_of(slot) for slot in phase)
    if (best := history.recommended(rounds)) is not None:
        yield Point(cost, best.widths)

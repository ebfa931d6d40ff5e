"""A comparison: several arms (:mod:`.arms`), budgets and repeats, as one study, resumed like any other.

Every arm searches under the same budget and may spend the same number of MACs on trainings.  What the arms
recommend is trained again by the one recipe, on fresh seeds that all arms share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from widthsearch.errors import UsageError
from widthsearch.plans import search as history
from widthsearch.plans.arms import ARMS, MEASURED, SHARED, SHARES, Arm, Point, Search, dearest
from widthsearch.plans.plan import Branch, Done, Kind, Plan, Run, Slot, Step, Wait, by_branch
from widthsearch.plans.probe import Probe
from widthsearch.plans.pruners import MEASURES, PrunerPlan

REPORT = "report"  # the branch of the trainings on fresh seeds
FreshKey = tuple[int, str, int, tuple[tuple[str, int], ...]]  # budget, kind, replica, widths
Content = tuple[tuple[Any, ...], ...]  # of the runs that an arm goes by


@dataclass(frozen=True)
class Outcome:
    """What one arm recommends under one budget in one repeat: its points, in the order of their cost."""

    budget: int
    repeat: int
    arm: str
    points: tuple[Point, ...]


class Phase(NamedTuple):
    """Slots that can be trained now, and the state of each."""

    slots: list[Slot]
    states: list[str]


@dataclass(frozen=True)
class Comparison:
    """What a comparison will do.  ``plan`` is that of the study; its budget is the largest of ``budgets``.

    ``arms``: names, with ``:l1`` for a measure by another pruner and ``*10`` for ten times the search cost;
    ``cost``: of one search, in uniform trainings (``None``: what the width search needs if it makes all of
    its rounds).
    """

    plan: Plan
    budgets: tuple[Mapping[str, int], ...]
    arms: tuple[str, ...]
    repeats: int
    cost: float | None = None
    _plans: dict[tuple[int, int, str], Plan] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _searches: dict[Branch, Search] = field(default_factory=dict, init=False, repr=False, compare=False)
    _ended: dict[Branch, tuple[Content, list[Point]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def plan_of(self, slot: Slot) -> Plan:
        """The plan that a slot belongs to: with the budget of its branch, and the seed of its repeat."""
        if slot.branch is None:
            raise ValueError(f"{slot} belongs to no comparison")
        return self._plan(*slot.branch)

    def _plan(self, budget: int, repeat: int, arm: str = "") -> Plan:
        """One object for each, as a plan remembers what it has worked out."""
        pruner = pruner_of(arm) or self.plan.pruner
        if (budget, repeat, pruner) not in self._plans:
            own = replace(self.plan.repeated(repeat), budget=dict(self.budgets[budget]), pruner=pruner)
            self._plans[budget, repeat, pruner] = own
        return self._plans[budget, repeat, pruner]

    def limit(self, budget: int) -> float:
        """What one search may cost under this budget, in uniform trainings."""
        if self.cost is not None:
            return self.cost
        plan = self._plan(budget, 0)
        return plan.once("most", lambda: most_cost(plan, plan.rounds))

    def next_step(self, runs: Iterable[Run]) -> Step:
        """What to do next, from the runs so far alone."""
        running = False
        for phase in self._phases(list(runs)):
            if "open" in phase.states:
                return phase.slots[phase.states.index("open")]
            running = running or "running" in phase.states
        return Wait() if running else Done(-1, 0.0, "every arm is compared")

    def outcomes(self, runs: Iterable[Run]) -> list[Outcome]:
        """What the arms recommend, as far as it is known: by budget, repeat and arm."""
        searches = by_branch(runs)
        return [
            Outcome(budget, repeat, arm, tuple(points))
            for budget in range(len(self.budgets))
            for repeat in range(self.repeats)
            for arm in self.arms
            for _, points in [self._walk(searches, budget, repeat, arm)]
        ]

    def report_slots(self, budget: int, point: Point) -> list[Slot]:
        """The trainings on fresh seeds of what an arm recommends."""
        branch = Branch(budget, -1, REPORT)
        kind: Kind = "report" if point.over_wide is None else "pruned"
        widths = point.widths if point.over_wide is None else point.over_wide
        return [Slot(kind, -1, k, widths, branch=branch) for k in self.plan.fresh]

    def _phases(self, runs: list[Run]) -> Iterator[Phase]:
        """All that can be trained now, in the order in which it is handed out."""
        searches = by_branch(runs)
        reports: dict[FreshKey, list[Run]] = {}
        for run in runs:
            if run.branch is not None and run.branch.arm == REPORT:
                kind, _, replica, _ = run.key
                key = fresh_key(run.branch.budget, kind, replica, run.widths)
                reports.setdefault(key, []).append(run)
        for repeat in range(self.repeats):
            for budget in range(len(self.budgets)):
                for arm in self.arms:
                    pending, points = self._walk(searches, budget, repeat, arm)
                    if pending is not None:
                        yield pending
                        continue
                    for point in points:
                        slots = self.report_slots(budget, point)
                        keys = [fresh_key(budget, s.kind, s.replica, s.widths) for s in slots]
                        found = [reports.get(key, []) for key in keys]
                        yield Phase(slots, [history.state_of(of, self.plan.retries) for of in found])

    def _walk(
        self, searches: Mapping[Branch, list[Run]], budget: int, repeat: int, arm: str
    ) -> tuple[Phase | None, list[Point]]:
        """How far an arm's search has come: the phase that is not over yet, if any, and its points so far."""
        function, of, times = parse_arm(arm)
        key = Branch(budget, repeat, arm)
        runs = searches.get(Branch(budget, repeat, of), [])
        content = tuple((r.key, r.state, r.value, *(r.prune_ratio or {}).values()) for r in runs)
        if self._ended.get(key, (None,))[0] == content:
            return None, self._ended[key][1]
        if key not in self._searches:
            branch = Branch(budget, repeat, of)
            self._searches[key] = Search(branch, self._plan(*branch), times * self.limit(budget))
        search = self._searches[key]
        search.look_at(runs)
        pending, points = walk(function, search)
        if pending is None:
            self._ended[key] = (content, points)
        return pending, points

    def expected(self) -> dict[str, int]:
        """Trials per kind at most (of report trainings: if every recommendation is another one)."""
        counts = dict.fromkeys(("measure", "baseline", "score", "report", "pruned"), 0)
        plan, times = self.plan, {parse_arm(arm)[1]: 0.0 for arm in self.arms}
        for arm in self.arms:
            _, of, factor = parse_arm(arm)
            times[of] = max(times[of], factor)
        searches = self.repeats * len(self.budgets)
        for of, factor in times.items():
            candidates = round(factor * sum(self.limit(b) for b in range(len(self.budgets))) * self.repeats)
            if of.startswith("grow-shrink"):
                one_shot = of not in (arm.partition("*")[0] for arm in self.arms)
                rounds = 1 if one_shot else plan.rounds
                counts["measure"] += searches * rounds * plan.replicas
                scores = rounds * plan.seeds * plan.proposals + plan.run_off_trainings
                counts["score"] += searches * (
                    plan.cost_aware_start * plan.seeds + (0 if one_shot else scores)
                )
                counts["baseline"] += searches * plan.seeds
                counts["report"] += searches * (1 + rounds) * plan.report_seeds  # the start, too
            elif of in ("uniform", "constant", "cost-aware", "equal-ratio"):
                kind = "pruned" if of == "equal-ratio" else "report"
                counts[kind] += len(self.budgets) * plan.report_seeds
            else:
                counts["score"] += candidates
                counts["report"] += len(SHARES) * searches * plan.report_seeds
        return {kind: n for kind, n in counts.items() if n}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for the study's attributes."""
        budgets = [dict(b) for b in self.budgets]
        rest = {"arms": list(self.arms), "repeats": self.repeats, "search_cost": self.cost}
        return {"plan": self.plan.to_json(), "budgets": budgets, **rest}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of :meth:`to_json`."""
        plan, budgets = Plan.from_json(data["plan"]), tuple(data["budgets"])
        return cls(plan, budgets, tuple(data["arms"]), data["repeats"], data["search_cost"])


def walk(arm: Arm, search: Search) -> tuple[Phase | None, list[Point]]:
    """How far an arm has come: the phase that is not over yet, if any, and its points so far."""
    points: list[Point] = []
    for step in arm(search):
        if isinstance(step, Point):
            points.append(step)
            continue
        states: list[str] = [search.history.state(slot) for slot in step]
        if "open" in states or "running" in states:
            return Phase(step, states), points
    return None, points


def fresh_key(budget: int, kind: str, replica: int, widths: Mapping[str, int]) -> FreshKey:
    """What tells the trainings on fresh seeds apart: arms that recommend the same widths share them."""
    return budget, kind, replica, tuple(sorted(widths.items()))


def parse_arm(name: str) -> tuple[Arm, str, float]:
    """The arm of ``tpe``, ``tpe*10`` or ``grow-shrink:l1``: its function, whose runs it goes by, and the
    factor on its cost.

    Raises :class:`UsageError` for a name that is no arm.
    """
    whole, star, factor = name.partition("*")
    base, colon, pruner = whole.partition(":")
    if base not in ARMS:
        raise UsageError(f"no arm {name!r:.60}; known are {', '.join(ARMS)}")
    if colon and (base not in MEASURED or pruner not in MEASURES):
        raise UsageError(
            f"arm {name!r:.60}: a pruner, one of {', '.join(MEASURES)}, goes with {' and '.join(MEASURED)}"
        )
    try:
        times = float(factor) if star else 1.0
    except ValueError:
        times = 0.0
    if not 1 <= times <= 1000:
        raise UsageError(f"arm {name!r:.60}: give a factor of 1 to 1000 on its search cost, e.g. {base}*10")
    return ARMS[base], SHARED.get(base, base) + colon + pruner, times


def pruner_of(arm: str) -> str:
    """``l1`` of ``grow-shrink:l1``; empty where the arm names none."""
    return arm.partition("*")[0].partition(":")[2]


def most_cost(plan: Plan, rounds: int) -> float:
    """What so many rounds of the width search cost at most, in uniform trainings."""
    return least_cost(plan, rounds) + rounds * plan.doublings * plan.seeds * dearest(plan)


def least_cost(plan: Plan, rounds: int) -> float:
    """What they cost at most where no proposal is doubled: less than that does not pay for them."""
    measures = plan.replicas * plan.measure_length * dearest(plan, plan.over)
    scores = plan.seeds * len(plan.step_sizes) * dearest(plan)
    starts = plan.seeds * (1 + plan.cost_aware_start * dearest(plan))
    return rounds * (measures + scores) + starts + plan.run_off_trainings * dearest(plan)


#: What a study of ours follows.
AnyPlan = Plan | Comparison | Probe | PrunerPlan


def search_of(plan: AnyPlan) -> Plan:
    """The plan of a single search: itself, or the one that a plan of several is made of."""
    return plan if isinstance(plan, Plan) else plan.plan


def next_step(plan: AnyPlan, runs: Iterable[Run]) -> Step:
    """What a study needs next, from its plan and its runs so far alone."""
    return history.next_step(plan, runs) if isinstance(plan, Plan) else plan.next_step(runs)


def read_plan(data: Mapping[str, Any]) -> AnyPlan:
    """The inverse of each ``to_json()``.

    One object for one content: a plan remembers what it has worked out.
    """
    return _read_plan(json.dumps(data))


@lru_cache(maxsize=8)
def _read_plan(text: str) -> AnyPlan:
    data = json.loads(text)
    if "starts" in data:
        return Probe.from_json(data)
    if "arms" in data:
        return Comparison.from_json(data)
    return PrunerPlan.from_json(data) if "pruners" in data else Plan.from_json(data)

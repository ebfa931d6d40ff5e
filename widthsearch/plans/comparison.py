"""A comparison: several arms (:mod:`.arms`), budgets and repeats, as one study, resumed like any other.

Every arm searches under the same budget and may spend the same number of MACs on trainings; those that train
several networks have the same starts and the same run-off.  What the arms recommend is trained again by the
one recipe, on fresh seeds that all arms share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar, cast

from widthsearch.errors import UsageError
from widthsearch.plans.arm import Arm, ArmSearch, Phase, Point, highest_cost
from widthsearch.plans.arms import ARMS, MEASURED, SHARED
from widthsearch.plans.history import state_of
from widthsearch.plans.plan import (
    REPORT,
    Branch,
    Done,
    Kind,
    Plan,
    Run,
    Slot,
    Step,
    StudyKind,
    StudyPlan,
    Wait,
    by_branch,
)
from widthsearch.plans.samplers import SAMPLERS, SHARES
from widthsearch.plans.search import undecided_by_all
from widthsearch.plans.settings import MEASURES, Pruner
from widthsearch.plans.words import amounts

FreshKey = tuple[int, str, int, tuple[tuple[str, int], ...]]  # budget, kind, replica, widths


@dataclass(frozen=True)
class Outcome:
    """What one arm recommends under one budget in one repeat: its points, in the order of their cost."""

    budget: int
    repeat: int
    arm: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Comparison(StudyPlan):
    """What a comparison will do.  ``plan`` is that of the study; its budget is the largest of ``budgets``.

    ``arms``: names, with ``:l1`` for a measure by another pruner and ``*10`` for ten times the search cost;
    ``cost``: of one search, in uniform trainings (``None``: what the width search needs if it makes all of
    its rounds).
    """

    kind: ClassVar[StudyKind] = "comparison"
    grows: ClassVar[bool] = False

    budgets: tuple[Mapping[str, int], ...]
    arms: tuple[str, ...]
    repeats: int
    cost: float | None = None

    @cached_property
    def _plans(self) -> dict[tuple[int, int, str], Plan]:
        """By budget, repeat and pruner: one object for each, as a plan remembers its baseline."""
        return {}

    @cached_property
    def _searches(self) -> dict[Branch, ArmSearch]:
        """By budget, repeat and arm: each remembers how far it has come."""
        return {}

    def plan_of(self, slot: Slot) -> Plan:
        """The plan that a slot belongs to: with the budget of its branch, and the seed of its repeat."""
        if slot.branch is None:
            raise ValueError(f"{slot} belongs to no comparison")
        return self._plan(*slot.branch)

    def _plan(self, budget: int, repeat: int, arm: str = "") -> Plan:
        pruner = pruner_of(arm) or self.plan.pruner
        key = (budget, repeat, pruner)
        if key not in self._plans:
            own = replace(self.plan.repeated(repeat), budget=dict(self.budgets[budget]), pruner=pruner)
            self._plans[key] = own
        return self._plans[key]

    def limit(self, budget: int) -> float:
        """What one search may cost under this budget, in uniform trainings."""
        plan = self._plan(budget, 0)
        return most_cost(plan, plan.rounds) if self.cost is None else self.cost

    def next_step(self, runs: Iterable[Run]) -> Step:
        """What to do next, from the runs so far alone."""
        running = False
        for phase in self._phases(list(runs)):
            if "open" in phase.states:
                return phase.slots[phase.states.index("open")]
            running = running or "running" in phase.states
        return Wait() if running else Done(-1, 0.0, "every arm is compared")

    def undecided(self, runs: Iterable[Run]) -> list[Slot]:
        """The slots by which no arm has decided anything yet; fresh seeds decide nothing."""
        searches, parts, reports = by_branch(runs), [], []
        for key in product(range(len(self.budgets)), range(self.repeats), self.arms):
            _, points = self._walk(searches, *key)
            parts.append(self._searches[Branch(*key)].split(parse_arm(key[2])[0]))
            reports += [slot for point in points for slot in self.report_slots(key[0], point)]
        return undecided_by_all(parts) + reports

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
                        yield Phase(slots, [state_of(of, self.plan.retries) for of in found])

    def _walk(
        self, searches: Mapping[Branch, list[Run]], budget: int, repeat: int, arm: str
    ) -> tuple[Phase | None, list[Point]]:
        """How far an arm's search has come: the phase that is not over yet, if any, and its points so far."""
        function, of, times = parse_arm(arm)
        key, branch = Branch(budget, repeat, arm), Branch(budget, repeat, of)
        if key not in self._searches:
            self._searches[key] = ArmSearch(branch, self._plan(*branch), times * self.limit(budget))
        return self._searches[key].walk(function, searches.get(branch, []))

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
                scores = rounds * plan.proposal_trainings(plan.doublings) + plan.run_off_trainings
                starts = plan.start_trainings - plan.seeds
                counts["score"] += searches * (starts + (0 if one_shot else scores))
                counts["baseline"] += searches * plan.seeds
                counts["report"] += searches * (1 + rounds) * plan.report_seeds  # the start, too
            elif of.startswith(("global", "sensitivity")):
                counts["measure"] += searches
                counts["report"] += searches * plan.report_seeds
            elif of in ("uniform", "constant", "cost-aware", "equal-ratio"):
                kind = "pruned" if of == "equal-ratio" else "report"
                counts[kind] += len(self.budgets) * plan.report_seeds
            else:
                same = sum(parse_arm(arm)[1] == of for arm in self.arms)  # each with a run-off of its own
                counts["baseline"] += searches
                counts["score"] += candidates + searches * ((same - 1) * plan.run_off_trainings - 1)
                counts["report"] += same * (1 + len(SHARES)) * searches * plan.report_seeds
        return {kind: n for kind, n in counts.items() if n}

    def with_plan(self, plan: Plan) -> StudyPlan:
        """The same comparison with the plan of a changed file; its budgets stay."""
        return super().with_plan(replace(plan, budget=self.plan.budget))

    def headline(self) -> str:
        """What the study will do, in one line."""
        budgets = " / ".join(amounts(budget) for budget in self.budgets)
        repeats = f"{self.repeats} repeat{'' if self.repeats == 1 else 's'}"
        return f"{', '.join(self.arms)} compared, {repeats}; {self._variables}, budget {budgets}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of :meth:`to_json`."""
        plan, budgets = Plan.from_json(data["plan"]), tuple(data["budgets"])
        return cls(plan, budgets, tuple(data["arms"]), data["repeats"], data["cost"])


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
            f"arm {name!r:.60}: a pruner, one of {', '.join(MEASURES)}, goes with {', '.join(MEASURED)}"
        )
    try:
        times = float(factor) if star else 1.0
    except ValueError:
        times = 0.0
    if not 1 <= times <= 1000:
        raise UsageError(f"arm {name!r:.60}: give a factor of 1 to 1000 on its search cost, e.g. {base}*10")
    return ARMS[base], SHARED.get(base, base) + colon + pruner, times


def samples(arm: str) -> bool:
    """Whether the arm tries one network after the other: the starts first, at the end a run-off."""
    return parse_arm(arm)[1] in SAMPLERS


def pruner_of(arm: str) -> Pruner | None:
    """``l1`` of ``grow-shrink:l1``, and ``sensitivity`` of that arm; ``None`` where the arm names none."""
    base, _, pruner = arm.partition("*")[0].partition(":")
    name = base if base == "sensitivity" else pruner
    return cast("Pruner", name) if name else None


def most_cost(plan: Plan, rounds: int) -> float:
    """What so many rounds of the width search cost at most, in uniform trainings."""
    return _cost(plan, rounds, plan.doublings)


def least_cost(plan: Plan, rounds: int) -> float:
    """What they cost at most where no proposal is doubled: less than that does not pay for them."""
    return _cost(plan, rounds, doublings=0)


def _cost(plan: Plan, rounds: int, doublings: int) -> float:
    measures = rounds * plan.replicas * plan.measure_length * highest_cost(plan, plan.over)
    proposals = rounds * plan.proposal_trainings(doublings)
    return measures + (plan.start_trainings + proposals + plan.run_off_trainings) * highest_cost(plan)

"""What a study will do, and one training run of it, as plain data.

A :class:`Plan` is what one search goes by; a :class:`StudyPlan` is what a study of any kind goes by: one
search or several.  It is written into the Optuna study once, at launch, and says what comes next.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

from widthsearch.maths import rule
from widthsearch.maths.cost import Cost
from widthsearch.maths.cost_aware import cost_aware
from widthsearch.maths.rule import Constraints
from widthsearch.plans.settings import Settings
from widthsearch.plans.words import amounts, counted

Kind = Literal["measure", "score", "baseline", "report", "pruned", "sweep"]
StudyKind = Literal["search", "comparison", "probe", "pruners"]

Key = tuple[str, int, int, float]  # kind, round, replica, step

#: Of a plan's JSON; a database of another one is refused.
FORMAT = 3
#: How many candidates come into the run-off at most, from which the recommended one is chosen.
FINALISTS = 3
#: How many workers may die under one training run (the machine's fault, or out of memory every time).
WORKER_DEATHS = 10


#: What the kinds of training runs are called on a screen.
LABELS: Mapping[Kind, str] = {
    "measure": "measure",
    "score": "score",
    "baseline": "uniform widths",
    "report": "fresh seed",
    "pruned": "cut and trained on",
    "sweep": "pruned step by step",
}
REPORT = "report"  # a comparison's branch of the trainings on fresh seeds


class Branch(NamedTuple):
    """Which search of a comparison or probe, or which pruner, a training run belongs to."""

    budget: int  # the comparison's first budget is 0; -1: not of one alone
    repeat: int
    arm: str


@dataclass(frozen=True)
class Plan(Settings):
    """Everything about a search that its next step depends on, apart from its trials: settings and network.

    Of the settings that a study gives, ``measure_length`` is here the share of the epochs that are trained (1
    in an own training loop), and ``step_sizes`` are in rising order.
    """

    widths: dict[str, int]  # of the seed network, in order of execution
    cost: Cost
    budget: dict[str, Any]  # per resource (latency in seconds); resources without a budget are absent
    minimum: dict[str, int]
    multiple_of: dict[str, int]
    outputs: dict[str, list[float]] = field(default_factory=dict)  # see cost_aware.py
    at_least: int = 0  # rounds before which nothing stops the search: `resume --rounds`
    latency: dict[str, Any] | None = None  # how a latency was measured (latency.Fitted), if there is one
    pack: bool = False  # whether networks of equal widths are trained together
    precision: str = "float32"  # of a GPU in a training step (``Recipe.precision``)

    def constraints(self, over: float = 1.0, minimum: int = 1) -> Constraints:
        """The constraints of a network at ``over`` times the budget, no width below ``minimum``."""
        fixed = {resource: self.cost.overhead(resource) for resource in self.budget}
        return Constraints(
            cost=self.cost,
            budget={r: over * limit + (1 - over) * fixed[r] for r, limit in self.budget.items()},
            minimum={v: max(m, minimum) for v, m in self.minimum.items()},
            multiple_of=self.multiple_of,
        )

    def seed_cost(self) -> dict[str, float]:
        """The cost of the seed network; its latency is the measured one."""
        return self.cost.at(self.widths) | ({"latency": self.latency["seed"]} if self.latency else {})

    def over_wide(self, relative: Mapping[str, float]) -> dict[str, int]:
        """Over-wide widths in these proportions.  At least 2: a gate needs a neighbour to compare with."""
        return self._scaled(relative, self.over, 2)

    def at_budget(self, relative: Mapping[str, float]) -> dict[str, int]:
        """Widths in these proportions at the budget."""
        return self._scaled(relative, 1.0, 1)

    def _scaled(self, relative: Mapping[str, float], over: float, minimum: int) -> dict[str, int]:
        key = (over, minimum, *relative.items())
        if key not in self._known_widths:
            self._known_widths[key] = rule.scale_to_budget(relative, self.constraints(over, minimum))
        return dict(self._known_widths[key])

    @cached_property
    def _known_widths(self) -> dict[tuple[Any, ...], dict[str, int]]:
        """What was scaled before: each look at a search asks for the networks of all its rounds again."""
        return {}

    @cached_property
    def baseline(self) -> dict[str, int]:
        """The seed network scaled uniformly to the budget."""
        return self.at_budget(self.widths)

    @cached_property
    def constant(self) -> dict[str, int]:
        """The same width everywhere, at the budget."""
        return self.at_budget(dict.fromkeys(self.widths, 1))

    @cached_property
    def cost_aware(self) -> dict[str, int]:
        """The widths at the budget under which the layers are least narrow (see ``maths/cost_aware.py``)."""
        return cost_aware(self.outputs, self.cost, self.constraints())

    @cached_property
    def over_wide_seed(self) -> dict[str, int]:
        """The over-wide network in the seed network's proportions."""
        return self.over_wide(self.widths)

    def cut_equally(self, over_wide: Mapping[str, int]) -> dict[str, int]:
        """The baseline, as far as an over-wide network in the same proportions has the units."""
        return {v: min(w, over_wide[v]) for v, w in self.baseline.items()}

    def repeated(self, repeat: int) -> Plan:
        """The same search with random numbers of its own; repeat 0 is this one, what `launch` does."""
        if repeat == 0:
            return self
        digest = hashlib.sha256(f"{self.seed} repeat {repeat}".encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:4], "big"))

    @cached_property
    def single(self) -> Plan:
        """The same where one training scores a network."""
        return replace(self, seeds=1)

    def going_on(self, rounds: int) -> Plan:
        """The same search, not ended before so many rounds."""
        return replace(self, rounds=max(self.rounds, rounds), at_least=rounds)

    @property
    def first_seeds(self) -> int:
        """The first half of the seeds of a score: what is behind on them has no others."""
        return -(-self.seeds // 2)

    @property
    def selecting(self) -> range:
        """The seeds that the search goes by: of every candidate, and of those in the run-off."""
        return range(self.seeds + self.final_seeds)

    @property
    def fresh(self) -> range:
        """The seeds of the verdict, which nothing was selected by."""
        return range(self.selecting.stop, self.selecting.stop + self.report_seeds)

    @property
    def run_off_trainings(self) -> int:
        """Trainings of the run-off, at most."""
        return FINALISTS * self.final_seeds

    @property
    def start_trainings(self) -> int:
        """Trainings that score the starts, at most: of the worse one, the first half."""
        return self.seeds + self.cost_aware_start * self.first_seeds

    def proposal_trainings(self, doublings: int) -> int:
        """Trainings that score a round's proposals with so many doublings, at most: see ``History``."""
        return (len(self.step_sizes) + doublings) * self.seeds

    def expected(self) -> dict[str, int]:
        """Trials per kind if the search uses all of its rounds."""
        scores = self.rounds * self.proposal_trainings(self.doublings) + self.run_off_trainings
        return {
            "measure": self.rounds * self.replicas,
            "score": scores + self.start_trainings - self.seeds,
            "baseline": self.seeds + self.report_seeds,
            "report": self.report_seeds,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for the study's attributes."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**plain, "step_sizes": list(self.step_sizes), "cost": self.cost.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_json`."""
        sizes, cost = tuple(data["step_sizes"]), Cost.from_json(data["cost"])
        return cls(**{**data, "step_sizes": sizes, "cost": cost})


@dataclass(frozen=True)
class Slot:
    """One training run that the study needs: what (kind), where in the search, and at which widths."""

    kind: Kind
    round: int  # -1 for what belongs to no round: the starts of the search, the baseline
    replica: int
    widths: Mapping[str, int]
    step: float = 0.0  # of a proposal: how far it goes along the round's direction
    branch: Branch | None = None  # only where a study holds several searches
    asked: tuple[float, ...] = ()  # what a sampler of Optuna's asked for, if the widths follow from that

    def __str__(self) -> str:
        """``round 1 measure 2``, ``uniform widths 3``, ``budget 1 repeat 0 tpe: round 6 score 0``."""
        where = f"round {1 + self.round} " if self.kind in ("measure", "score") else ""
        if self.kind == "score" and self.step:
            where = f"{where}step {self.step:g} " if self.round >= 0 else "cost-aware widths "
        if self.kind == "sweep" and self.branch is not None:
            where = f"{self.branch.arm} "
        elif self.branch is not None:
            budget, repeat, arm = self.branch
            which = [f"budget {budget}"] if budget >= 0 else []
            which += [f"repeat {repeat}"] if repeat >= 0 else []
            which += [arm] if arm != REPORT else []
            where = f"{' '.join(which)}: {where}"
        return f"{where}{LABELS[self.kind]} {self.replica}"

    @property
    def key(self) -> Key:
        """What identifies the slot within its search."""
        return (self.kind, self.round, self.replica, self.step)

    @property
    def file(self) -> str:
        """The name of its checkpoint."""
        where = str(self.round) if self.round >= 0 else "start" if self.step else ""
        name = "-".join(part for part in (self.kind, where, str(self.replica)) if part)
        if self.step:
            name += f"-{self.step:g}"
        if self.branch is not None:
            which = repr((tuple(self.branch), sorted(self.widths.items())))
            name += f"-{hashlib.sha256(which.encode()).hexdigest()[:12]}"
        return f"{name}.ckpt"

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

    key: Key
    state: Literal["running", "complete", "failed", "died", "interrupted"]
    widths: Mapping[str, int]
    value: float | None = None
    prune_ratio: Mapping[str, float] | None = None
    error: str = ""
    branch: Branch | None = None
    asked: tuple[float, ...] = ()


def identity(of: Slot | Run) -> tuple[Any, ...]:
    """What a slot and its runs have in common."""
    return (of.branch, of.key, tuple(sorted(of.widths.items())))


def by_branch(runs: Iterable[Run]) -> dict[Branch, list[Run]]:
    """The runs of each of a study's searches."""
    searches: dict[Branch, list[Run]] = {}
    for run in runs:
        if run.branch is not None:
            searches.setdefault(run.branch, []).append(run)
    return searches


@dataclass(frozen=True)
class Wait:
    """Nothing to start until a running trial ends."""


@dataclass(frozen=True)
class Done:
    """The search is over: which round's proposal (its step) is recommended, and why it stopped.

    Round -1: a start of the search, nothing better was found.  Step 0 of it is the baseline.
    """

    round: int
    step: float
    because: str


@dataclass(frozen=True)
class Failed:
    """The search cannot go on."""

    because: str


Step = Slot | Wait | Done | Failed


class Together(NamedTuple):
    """Slots of equal widths that are trained as one, and those among them that are still open.

    The others are trained again with them, and not told: a result must not depend on who shares its step.
    """

    slots: list[Slot]
    open: list[Slot]


@dataclass(frozen=True)
class StudyPlan(ABC):
    """What a study goes by.  Each kind is one subclass (see ``plans/kinds.py``), made around one ``plan``."""

    kind: ClassVar[StudyKind]
    grows: ClassVar[bool] = True  # whether more rounds may be asked for later

    plan: Plan

    @abstractmethod
    def next_step(self, runs: Iterable[Run]) -> Step:
        """What to do next, from the runs so far alone."""

    @abstractmethod
    def undecided(self, runs: Iterable[Run]) -> list[Slot]:
        """The slots by which nothing was decided yet: those among them that were lost may be tried again."""

    @abstractmethod
    def plan_of(self, slot: Slot) -> Plan:
        """The plan of the search that a slot belongs to."""

    @abstractmethod
    def expected(self) -> dict[str, int]:
        """Trials per kind, at most."""

    def expected_after(self, begun: Iterable[tuple[str, int]]) -> dict[str, int]:
        """The same once these have ended or run, each by its kind and replica."""
        return self.expected()

    def together(self, slot: Slot, runs: Iterable[Run]) -> Together:
        """What is trained with the slot that comes next after these runs."""
        return Together([slot], [slot])

    def with_plan(self, plan: Plan) -> StudyPlan:
        """The same study with the plan of a changed file, and the rounds that were asked for since."""
        return replace(self, plan=plan.going_on(self.plan.at_least))

    def gain_so_far(self, runs: Iterable[Run]) -> float | None:
        """Of a single search: baseline loss minus the best one's, on the seeds that select (optimistic)."""
        return None

    def headline(self) -> str:
        """What the study will do, in one line."""
        return f"{self._variables}, budget {amounts(self.plan.budget)}"

    @property
    def _variables(self) -> str:
        return counted(len(self.plan.widths), "width variable")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, for the study's attributes."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"format": FORMAT, "kind": self.kind, **own, "plan": self.plan.to_json()}

    @classmethod
    @abstractmethod
    def from_json(cls, data: Mapping[str, Any]) -> StudyPlan:
        """The inverse of :meth:`to_json`."""

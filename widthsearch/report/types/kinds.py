"""The summaries of the other kinds of study, and of all: each says its ``kind``."""

from __future__ import annotations

from typing import Literal, TypedDict

from widthsearch.maths.intervals import Crossed, Gain, Stats
from widthsearch.report.types.common import (
    Decision,
    Ended,
    Head,
    Limits,
    Means,
    Network,
    Spent,
    Status,
    TestedMeans,
    Widths,
)
from widthsearch.report.types.search import Candidate, Findings, SearchSummary

# Several searches ---------------------------------------------------------------------------------------


class CoursePoint(Candidate):
    """What an arm would have recommended after some search cost; here on fresh seeds."""

    search_cost: float


class Course(TypedDict):
    """How the recommendation of each repeat came about, and after which cost it was close to the last."""

    course: list[list[CoursePoint]]
    cost_to_close: float | None


class OneOfMany(Crossed):
    """A gain of one arm of several over the same reference; ``p_holm``: adjusted for all of them."""

    p_holm: float


class ArmFound(Course, TestedMeans):
    """What an arm recommends in each repeat, what that costs, and how good it is on fresh seeds."""

    arm: str
    widths: list[Widths]
    macs: list[int]
    params: list[int]
    search_cost: float
    gain_over_uniform: OneOfMany | None
    gain_over_ours: OneOfMany | None


class UnderBudget(TypedDict):
    """The arms under one budget."""

    budget: Limits
    search_cost: float
    arms: list[ArmFound]


class ComparisonSummary(Head, Spent, Ended):
    """A comparison of arms."""

    kind: Literal["comparison"]
    comparison: bool
    arms: list[str]
    repeats: int
    seed: Network
    budgets: list[UnderBudget]


class Apart(TypedDict):
    """How far apart several networks are in one width variable."""

    log2_sd: float | None
    smallest: int
    largest: int
    ratio: float


class Spreads(TypedDict):
    """How far apart what the starts recommend is, and how far apart their uniform baselines were."""

    of: list[str]
    recommended: dict[str, Apart]
    baseline: dict[str, Apart]


class CameBack(TypedDict):
    """The best network at the start and after each round, and when it is close to the plain search's end."""

    layer: str | None
    course: list[Widths]
    close: list[int] | None
    back_after: int | None


class StartFound(Findings, CameBack):
    """The search from one start."""

    start: str
    same_as: str | None
    fresh_loss: Stats | None
    gain_over_plain: Gain | None


class ProbeSummary(Head, Spent, Ended):
    """A probe."""

    kind: Literal["probe"]
    probe: bool
    budget: Limits
    within: float
    starts: list[StartFound]
    spread: Spreads
    spread_by_chance: Spreads | None


# Pruners ------------------------------------------------------------------------------------------------


Share = Literal["weights_removed", "neurons_removed", "macs_saved", "time_saved"]  # of the over-wide network
Quality = Literal["val_loss", "val_accuracy"]


class Level(TypedDict):
    """One network of one run down the levels."""

    level: float
    weights_removed: float
    neurons_removed: float
    macs_saved: float
    time_saved: float
    val_loss: float
    val_accuracy: float | None


class LevelFound(Means):
    """One level of one pruner: means over seeds."""

    level: float
    weights_removed: Stats | None
    neurons_removed: Stats | None
    macs_saved: Stats | None
    time_saved: Stats | None


class PrunerFound(TypedDict):
    """A pruner at every level."""

    pruner: str
    levels: list[LevelFound]


class OverWide(Network, Means):
    """The network that all pruners start from."""


class Winner(TypedDict):
    """The best pruner at equal shares, and by how much it is better than the next."""

    pruner: str
    next: str
    quality: Quality
    mean: dict[str, float]
    at: list[float]
    left_out: list[str]
    gain: Gain | None


class PrunersSummary(Head, Spent, Ended):
    """A comparison of pruners."""

    kind: Literal["pruners"]
    levels: list[float]
    over_wide: OverWide
    pruners: list[PrunerFound]
    winners: dict[Share, Winner | None]


# All of them --------------------------------------------------------------------------------------------


StudySummary = SearchSummary | ComparisonSummary | ProbeSummary | PrunersSummary


class FamilySummary(TypedDict):
    """A family: its members are searches that differ in their budgets alone."""

    kind: Literal["family"]
    family: str
    status: Status
    decision: Decision
    members: list[SearchSummary]


Summary = StudySummary | FamilySummary

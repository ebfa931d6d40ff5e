"""What studies found, as typed objects: ``show --json`` prints them.

A summary says its ``kind`` of study.  What is not known (yet) is ``None``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict, cast

from widthsearch.maths.cost import Cost
from widthsearch.maths.intervals import Crossed, Gain, Stats

Widths = dict[str, int]  # by width variable, in order of execution
Limits = dict[str, float | None]  # by resource
Status = Literal["running", "finished", "interrupted", "failed"]


# Networks ------------------------------------------------------------------------------------------------


class Network(TypedDict):
    """Widths and what they cost; the latency, in seconds, where the budget has one."""

    widths: Widths
    macs: int
    params: int
    latency: NotRequired[float]


class Means(TypedDict):
    """How good a network is: means over seeds."""

    val_loss: Stats | None
    val_accuracy: Stats | None


class TestedMeans(Means):
    """The same with the test split, which is read once."""

    test_loss: Stats | None
    test_accuracy: Stats | None


class Trained(Network, TestedMeans):
    """A network and how good it is."""


class Baseline(Trained):
    """The seed network scaled uniformly to the budget."""

    step: None


class Found(Trained):
    """A network of the search: the proposal of a round, or (round -1) a start; of no round the baseline."""

    round: int | None
    step: float | None


def network_of(cost: Cost, widths: Mapping[str, int]) -> Network:
    """These widths and what they cost."""
    return cast(Network, {"widths": dict(widths), **cost.at(widths)})


# What every summary of a study says ----------------------------------------------------------------------


class NotSearched(TypedDict):
    """A would-be width variable that was left out."""

    name: str
    width: int
    reason: str


Answer = Literal["better", "none better", "not finished", "no verdict"]


class Decision(TypedDict):
    """What a study says to do: for a person in one sentence, for a program as ``answer``.

    ``widths``: those to use, of a single search that has its verdict.
    """

    sentence: str
    answer: Answer
    widths: Widths | None


class Progress(TypedDict):
    """How far a study is: trainings done, how many it needs if it uses all rounds, what runs now."""

    done: int
    at_most: int
    running: list[str]
    seconds_left: float | None


class Head(TypedDict):
    """What every summary of a study begins with."""

    study: str
    status: Status
    storage: str
    decision: Decision
    progress: Progress


class Tail(TypedDict):
    """What it ends with; ``trials``: by state, ``started`` and ``last_change``: ISO, local time."""

    metric: str
    started: str | None
    last_change: str | None
    trials: dict[str, int]
    not_searched: list[NotSearched]
    family: NotRequired[str]  # of a member


class Ended(Tail):
    """The same with why the study ended, if it has."""

    stopped_because: str | None


class Spent(TypedDict):
    """What all trainings cost."""

    training_macs: int
    seconds: float


# A search ------------------------------------------------------------------------------------------------


class Candidate(TypedDict):
    """Widths on the seeds that select."""

    widths: Widths
    val_loss: Stats | None


class StartingNetwork(Candidate):
    """What the search may start from."""

    start: str


class Proposal(Candidate):
    """What a round proposes."""

    step: float


class Finalist(Proposal):
    """A network of the run-off."""

    round: int


class Round(TypedDict):
    """One round: what was measured, what follows from it, and its best proposal.

    Here, as in the database, rounds count from 0; whatever people read counts from 1.
    """

    round: int
    measured_from: str
    over_wide: Widths
    kept: dict[str, float]
    prune_ratio: dict[str, float]
    prune_ratio_se: dict[str, float] | None
    spread: float
    damping: float
    balanced: bool
    replicas: int
    steps: list[Proposal]
    best_so_far: Widths
    proposal: Widths | None
    val_loss: Stats | None


class SideCost(TypedDict):
    """What a network costs of a resource that the budget does not limit, beside the uniform network."""

    resource: str
    uniform: float
    network: float


class Removed(TypedDict):
    """Shares of the seed network that the recommended one does without; negative where it has more."""

    neurons: float
    weights: float
    macs: float


class Pruned(TypedDict):
    """The prune ratio of one width variable in a round."""

    variable: str
    prune_ratio: float
    se: float | None
    round: int


class SearchCost(Spent):
    """What finding the widths cost; seconds also of the verdict."""

    in_uniform_trainings: float | None
    verdict_training_macs: int


class Findings(TypedDict):
    """What one search found.

    ``candidate``: the best that it found, ``recommended``: that one if it is shown to be better than uniform
    widths, these if it is not; before the verdict the candidate.  ``gain``: the uniform network's loss minus
    the candidate's, ``accuracy_gain``: the candidate's metric minus the uniform network's.
    """

    latency_model: dict[str, object] | None
    seed: Network
    baseline: Baseline
    recommended: Found | None
    removed: Removed | None
    side_costs: list[SideCost]
    candidate: Found | None
    started_from: str | None
    starting_networks: list[StartingNetwork]
    gain: Gain | None
    accuracy_gain: Gain | None
    gain_so_far: float | None
    verdict: str | None
    rounds: list[Round]
    run_off: list[Finalist]
    pruned_most: Pruned | None
    pruned_least: Pruned | None
    cost: SearchCost
    selection_seeds: int
    run_off_seeds: int
    stopped_because: str | None


class SearchSummary(Findings, Head, Tail):
    """A search."""

    kind: Literal["search"]
    budget: Limits


# Several searches ----------------------------------------------------------------------------------------


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


# Pruners -------------------------------------------------------------------------------------------------

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


# All of them ---------------------------------------------------------------------------------------------

StudySummary = SearchSummary | ComparisonSummary | ProbeSummary | PrunersSummary


class FamilySummary(TypedDict):
    """A family: its members are searches that differ in their budgets alone."""

    kind: Literal["family"]
    family: str
    status: Status
    decision: Decision
    members: list[SearchSummary]


Summary = StudySummary | FamilySummary

"""What one search found."""

from __future__ import annotations

from typing import Literal, TypedDict

from widthsearch.maths.intervals import Gain, Stats
from widthsearch.report.types.common import Baseline, Found, Head, Limits, Network, Spent, Tail, Widths


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

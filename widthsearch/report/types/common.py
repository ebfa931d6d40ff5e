"""Networks, how good they are, what every summary of a study says.  What is not known (yet) is ``None``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict, cast

from widthsearch.maths.cost import Cost
from widthsearch.maths.intervals import Stats

Widths = dict[str, int]  # by width variable, in order of execution
Limits = dict[str, float | None]  # by resource
Status = Literal["running", "finished", "interrupted", "failed"]


# Networks -----------------------------------------------------------------------------------------------


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


# What every summary of a study says ---------------------------------------------------------------------


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

"""What is found without a search, as typed objects: ``widths --json`` and ``bench --json`` print them."""

from __future__ import annotations

from typing import TypedDict

from widthsearch.report.types.common import Network, NotSearched


class Variable(TypedDict):
    """A width variable; its share of the MACs involves it at least."""

    name: str
    width: int
    modules: list[str]
    share_of_macs: float
    min: int
    multiple_of: int


class WidthsFound(TypedDict):
    """What ``widths --json`` prints."""

    model: str
    variables: list[Variable]
    frozen: list[NotSearched]
    not_run: list[str]
    stale: list[str]
    alone: str | None
    macs: int
    params: int
    coverage: float
    budget_error: str | None
    budget: dict[str, float] | None
    uniform: Network | None
    cost_aware: Network | None


class BenchNetwork(Network):
    """A network that was measured, and its cost relative to the seed network's."""

    name: str
    macs_ratio: float
    params_ratio: float


class Quartiles(TypedDict):
    """Of blocks, or of passes."""

    median: float
    q1: float
    q3: float


class Latency(Quartiles):
    """Seconds."""

    fastest: float


class Timing(TypedDict):
    """One network at one batch size, eager or compiled; the ratio is to the first network."""

    batch: int
    mode: str
    network: str
    latency: Latency
    throughput: float
    ratio: Quartiles
    blocks: int


class Bench(TypedDict):
    """What ``bench --json`` prints."""

    study: str
    device: str
    machine: str
    threads: int
    dtype: str
    torch: str
    networks: list[BenchNetwork]
    timings: list[Timing]
    notes: list[str]

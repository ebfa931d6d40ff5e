"""Measuring the networks of a study: which ones, and under what conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import optuna
import torch

from widthsearch.database.connection import Database
from widthsearch.driver.resume import study_of
from widthsearch.errors import UsageError
from widthsearch.report.listings import Bench, BenchNetwork
from widthsearch.report.summary import summary_of
from widthsearch.report.types.common import Network, network_of
from widthsearch.report.types.search import SearchSummary
from widthsearch.show.formats import found_name
from widthsearch.show.pages import search_only
from widthsearch.speed.bench import bench, hardware
from widthsearch.study.data import load_data
from widthsearch.study.study import Study
from widthsearch.training.device import device_of
from widthsearch.training.trial import build_space


@dataclass(frozen=True)
class Conditions:
    """How to measure; ``threads``: ``None`` for the study's own; ``device``: ``auto`` for its own."""

    batches: list[int]
    device: str
    threads: int | None
    compile: bool


def measured(
    optuna_study: optuna.Study,
    database: Database,
    file: str | None,
    conditions: Conditions,
    say: Callable[[str], None],
) -> Iterator[Bench]:
    """What ``bench --json`` prints: the seed, uniform and recommended networks, and their times.

    First eager ones, then, where ``conditions`` want it, the same object with the compiled ones in it too.
    ``file``: where the study file is now, if it was moved; ``say`` gets what is being done.  Raises
    :class:`UsageError` for a study that is no single search, a network that has changed, and a device that is
    not there.
    """
    summary = search_only(summary_of(optuna_study, database.url), "bench measures the networks of a search")
    found = study_of(optuna_study, file)
    study, where = found.study, _device(found.study, conditions.device)
    space = build_space(study, load_data(study))
    seed, now = summary["seed"], network_of(space.cost, space.widths)
    if _row("", now, now) != _row("", seed, seed):
        raise UsageError(f"{found.path}: its network is not the one of study {summary['study']!r} any more")
    networks = _networks(summary)
    threads = conditions.threads or study.threads
    made: Bench = {
        "study": summary["study"],
        "device": where.type,
        "machine": hardware(where),
        "threads": threads,
        "dtype": "float32",
        "torch": torch.__version__,
        "networks": [_row(label, n, seed) for label, n in networks.items()],
        "timings": [],
        "notes": [],
    }

    def note(text: str) -> None:
        say(text)
        if "does not work" in text:
            made["notes"].append(text)

    for compile in (False, True) if conditions.compile else (False,):
        made["timings"] += bench(
            {label: space.resize(n["widths"]) for label, n in networks.items()},
            space.example,
            batches=conditions.batches,
            device=where,
            threads=threads,
            compile=compile,
            say=note,
        )
        yield made


def _row(name: str, network: Network, seed: Network) -> BenchNetwork:
    """A network's name, widths, cost, and cost relative to the seed network's."""
    return {
        "name": name,
        "widths": network["widths"],
        "macs": network["macs"],
        "params": network["params"],
        "macs_ratio": network["macs"] / seed["macs"],
        "params_ratio": network["params"] / seed["params"],
    }


def _networks(summary: SearchSummary) -> dict[str, Network]:
    """The networks to measure, by name: the seed first, and what the search found as far as it has come."""
    found, recommended = summary["candidate"], summary["recommended"]
    networks: dict[str, Network] = {"seed": summary["seed"], "uniform": summary["baseline"]}
    if found is not None:
        kept = recommended is not None and recommended["widths"] == found["widths"]
        networks["recommended" if kept else f"best: {found_name(found)}"] = found
    return networks


def _device(study: Study, name: str) -> torch.device:
    if name == "auto":
        return device_of(study.recipe)
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; try cpu")
    return torch.device(name)

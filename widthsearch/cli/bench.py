"""The command that measures: bench."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from widthsearch.cli.options import AsJson, Name, Storage, app, one_line_errors, parts
from widthsearch.cli.summaries import open_study
from widthsearch.driver.backend import err, out
from widthsearch.errors import UsageError

if TYPE_CHECKING:
    import torch

    from widthsearch.report.types import Bench, BenchNetwork, Network, SearchSummary
    from widthsearch.study.study import Study


@app.command()
@one_line_errors
def bench(
    name: Name = None,
    storage: Storage = None,
    study: Annotated[str | None, typer.Option(help="The study file, if it was moved.")] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,32,256",
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto: where the study trains.")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="torch's threads; default: the study's.", show_default=False)
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also measure under torch.compile.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Measure how fast the seed, uniform and recommended networks run, beside MACs and parameters."""
    from widthsearch.show.bench_table import show_bench

    sizes = _batches(batch)
    measured = _bench(*open_study(name, storage), study, sizes, device, threads, compile)
    if as_json:
        print(json.dumps(measured, indent=2))
    else:
        show_bench(out, measured)


def _batches(text: str) -> list[int]:
    sizes = parts(text)
    if not all(size.isdecimal() and 0 < int(size) < 2**31 for size in sizes) or len(set(sizes)) < len(sizes):
        raise UsageError(f"--batch {text!r}: give batch sizes once each, e.g. 1,32,256")
    return [int(size) for size in sizes]


def _bench(
    optuna_study: Any,
    url: str,
    file: str | None,
    batches: list[int],
    device: str,
    threads: int | None,
    compile: bool,
) -> Bench:
    """What ``bench --json`` prints."""
    import torch

    from widthsearch.driver.launch import study_of
    from widthsearch.report.summary import summary_of
    from widthsearch.report.types import network_of
    from widthsearch.show.pages import search_only
    from widthsearch.speed import bench as measuring
    from widthsearch.study.data import load_data
    from widthsearch.training.trial import build_space

    s = search_only(summary_of(optuna_study, url), "bench measures the networks of a search")
    study, path, _ = study_of(optuna_study, file)
    where = _device(study, device)
    space = build_space(study, load_data(study))
    seed, now = s["seed"], network_of(space.cost, space.widths)
    if _row("", now, now) != _row("", seed, seed):
        raise UsageError(f"{path}: its network is not the one of study {s['study']!r} any more")
    networks = _networks(s)
    notes: list[str] = []

    def say(text: str) -> None:
        err.print(text, markup=False, highlight=False, soft_wrap=True)
        if "does not work" in text:
            notes.append(text)

    threads = threads or study.threads
    return {
        "study": s["study"],
        "device": where.type,
        "machine": measuring.hardware(where),
        "threads": threads,
        "dtype": "float32",
        "torch": torch.__version__,
        "networks": [_row(label, n, seed) for label, n in networks.items()],
        "timings": measuring.bench(
            {label: space.resize(n["widths"]) for label, n in networks.items()},
            space.example,
            batches=batches,
            device=where,
            threads=threads,
            compile=compile,
            say=say,
        ),
        "notes": notes,
    }


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


def _networks(s: SearchSummary) -> dict[str, Network]:
    """The networks to measure, by name: the seed first, and what the search found as far as it has come."""
    from widthsearch.show.formats import found_name  # here: it loads numpy, and every command this file

    found, baseline = s["candidate"], s["baseline"]
    networks: dict[str, Network] = {"seed": s["seed"], "uniform baseline": baseline}
    if found is not None:
        kept = s["recommended"] is not None and s["recommended"]["widths"] == found["widths"]
        networks["recommended" if kept else f"best: {found_name(found)}"] = found
    return networks


def _device(study: Study, name: str) -> torch.device:
    import torch

    from widthsearch.training.recipe_loop import device_of

    if name == "auto":
        return device_of(study.recipe)
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; try cpu")
    return torch.device(name)

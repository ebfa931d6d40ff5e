"""Commands that take a result further: export writes it into a folder, bench measures it."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from widthsearch.cli.options import AsJson, Checkpoints, Moved, Name, Storage, parts
from widthsearch.cli.summaries import open_study
from widthsearch.errors import UsageError
from widthsearch.show.console import err, out, say
from widthsearch.stopping import INTERRUPTED, interrupt, listen


def export(
    folder: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="A new folder.", show_default=False)
    ],
    name: Name = None,
    storage: Storage = None,
    study: Moved = None,
    checkpoints: Checkpoints = None,
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Train once more, for model.pt and model.onnx.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export; go on if the study file changed.")
    ] = False,
) -> None:
    """Write the recommended network into a folder: widths, weights, ONNX, what to type into your code."""
    from widthsearch.export import export as exporting

    listen(interrupt)  # what is half written goes away
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    try:
        with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
            progress.add_task("exporting", total=None)
            done = exporting.export(
                name,
                storage,
                folder,
                file=study,
                checkpoints=checkpoints,
                weights=weights,
                force=force,
                say=say,
            )
    except KeyboardInterrupt:
        say("interrupted; nothing was written.  The same command goes on with the training", err)
        raise typer.Exit(INTERRUPTED) from None
    say(f"{done.folder}")
    for file, what in done.about.items():
        say(f"  {file:<11} {what}")


def bench(
    name: Name = None,
    storage: Storage = None,
    study: Moved = None,
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
    from widthsearch.driver.bench import Conditions, measured
    from widthsearch.show.bench_table import show_bench

    listen(interrupt)
    conditions = Conditions(_batches(batch), device, threads, compile)
    with (err if as_json else out).status("tracing the network") as status:
        steps = measured(
            *open_study(name, storage), study, conditions, lambda text: status.update(escape(text))
        )
        for mode, found in zip(("eager", "compile"), steps, strict=False):
            if not as_json:
                show_bench(out, found, mode)
    if as_json:
        print(json.dumps(found, indent=2))


def _batches(text: str) -> list[int]:
    sizes = parts(text)
    if not all(size.isdecimal() and 0 < int(size) < 2**31 for size in sizes) or len(set(sizes)) < len(sizes):
        raise UsageError(f"--batch {text!r}: give batch sizes once each, e.g. 1,32,256")
    return [int(size) for size in sizes]

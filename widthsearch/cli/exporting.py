"""The command that writes a recommendation into a folder: export."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from widthsearch.cli.options import Checkpoints, Name, Storage, app, one_line_errors
from widthsearch.driver.backend import err, out
from widthsearch.stopping import INTERRUPTED, interrupt, listen


@app.command()
@one_line_errors
def export(
    folder: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="A new folder.", show_default=False)
    ],
    name: Name = None,
    storage: Storage = None,
    study: Annotated[str | None, typer.Option(help="The study file, if it was moved.")] = None,
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

            def say(text: str) -> None:
                out.print(text, markup=False, highlight=False, soft_wrap=True)

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
        err.print("interrupted; nothing was written.  The same command goes on with the training")
        raise typer.Exit(INTERRUPTED) from None
    out.print(f"{done.folder}", markup=False, highlight=False, soft_wrap=True)
    for file, what in done.about.items():
        out.print(f"  {file:<11} {what}", markup=False, highlight=False, soft_wrap=True)

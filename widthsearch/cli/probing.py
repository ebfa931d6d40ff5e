"""The command that starts one search from many seed networks: probe."""

from __future__ import annotations

from typing import Annotated

import typer

from widthsearch.cli.options import (
    Address,
    Checkpoints,
    Plot,
    Storage,
    StudyFile,
    Workers,
    app,
    one_line_errors,
    parts,
)
from widthsearch.cli.searching import train_several


@app.command()
@one_line_errors
def probe(
    study: StudyFile,
    inflate: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER=20", help="A start with this width variable times 20; repeatable."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="One start per width variable, inflated.")] = False,
    factor: Annotated[float, typer.Option(help="By how much --each inflates.")] = 20.0,
    scale: Annotated[
        str | None, typer.Option(metavar="2,0.5", help="Starts with all widths times such a factor.")
    ] = None,
    constant: Annotated[
        bool, typer.Option("--constant", help="A start with the same width everywhere.")
    ] = False,
    again: Annotated[
        int, typer.Option(min=0, help="The plain start so often again, with other seeds: what chance does.")
    ] = 0,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Go on to so many rounds at least, whatever would stop a search."),
    ] = None,
    report_seeds: Annotated[
        int | None, typer.Option(min=2, help="Fresh seeds for every recommendation; default: the study's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the probe; default: the file's name and -probe.")
    ] = None,
    storage: Storage = None,
    plot: Plot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    workers: Workers = None,
    address: Address = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Search from changed seed networks: does a layer that was blown up come back, are the answers the same?

    All starts have the plain seed's budget, and rounds and settings of the study.  A layer is back once its
    width in the best network so far is within a factor 1.5 of what the search from the plain seed recommends,
    and stays so.
    """
    from widthsearch.driver.prepare import make_probe

    train_several(
        study,
        lambda _, plan: make_probe(
            plan,
            inflate=inflate or (),
            each=factor if each else None,
            scale=() if scale is None else parts(scale),
            constant=constant,
            again=again,
            rounds=rounds,
        ),
        "-probe",
        changes={"report_seeds": report_seeds},
        name=name,
        storage=storage,
        plot=plot,
        as_json=as_json,
        workers=workers,
        address=address,
        checkpoints=checkpoints,
    )

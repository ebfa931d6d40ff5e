"""The command that compares pruners."""

from __future__ import annotations

import functools
from typing import Annotated, Any

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
def pruners(
    study: StudyFile,
    pruners: Annotated[
        str | None,
        typer.Option(
            help="What to compare, comma-separated; default: l0, l1, taylor, obd-neurons, obd.",
            show_default=False,
        ),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Shares of the over-wide network's MACs (for obd of its weights) to keep; default: "
            "1/2,1/4,1/8,1/16.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each pruner; default: the study's seeds.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name; default: the file's name and -pruners.")] = None,
    storage: Storage = None,
    plot: Plot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    workers: Workers = None,
    address: Address = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Prune the study's over-wide network by several pruners: what do they remove, save and cost?"""
    from widthsearch.driver.prepare import make_pruner_plan

    options: dict[str, Any] = {}
    for option, value in (("pruners", pruners), ("levels", levels)):
        if value is not None:
            options[option] = parts(value)
    train_several(
        study,
        functools.partial(make_pruner_plan, **options),
        "-pruners",
        changes={"seeds": seeds},
        name=name,
        storage=storage,
        plot=plot,
        as_json=as_json,
        workers=workers,
        address=address,
        checkpoints=checkpoints,
    )

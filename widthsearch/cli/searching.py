"""Commands that train: launch, compare, resume."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from widthsearch.cli.options import (
    Address,
    Checkpoints,
    Name,
    Plot,
    Storage,
    StudyFile,
    Submit,
    TensorBoard,
    Verbose,
    Workers,
    app,
    one_line_errors,
    parts,
)
from widthsearch.cli.submitting import submit_job
from widthsearch.cli.summaries import check_plot, print_named
from widthsearch.driver.backend import display, err, out
from widthsearch.errors import UsageError
from widthsearch.stopping import INTERRUPTED

if TYPE_CHECKING:
    from widthsearch.driver.launch import Ended
    from widthsearch.plans.comparison import AnyPlan
    from widthsearch.plans.plan import Plan
    from widthsearch.study.study import Study


@app.command()
@one_line_errors
def launch(
    study: StudyFile,
    name: Annotated[str | None, typer.Option(help="Name of the study; default: the file's name.")] = None,
    storage: Storage = None,
    budget: Annotated[
        str | None, typer.Option(help="Budget instead of the file's, e.g. macs=0.25x,params=0.25x.")
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="A family, one study per budget: shares of the cost of the model, 1/16,1/8,1/4,1/2.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds at most.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Gated trainings per round.")] = None,
    pruner: Annotated[
        str | None,
        typer.Option(help="What measures prune ratios: l0 (gates), l1 or taylor; default: the study's."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Plain trainings per proposal.")] = None,
    final_seeds: Annotated[
        int | None, typer.Option(min=0, help="More of them for the best three at the end; 0 for none.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    checkpoints: Checkpoints = None,
    submit: Submit = None,
    tensorboard: TensorBoard = None,
    verbose: Verbose = 0,
) -> None:
    """Start a study, or a family of them, and run it to recommended widths."""
    from widthsearch.driver import family
    from widthsearch.study.budget import Budget

    given = {
        "rounds": rounds,
        "replicas": replicas,
        "seeds": seeds,
        "final_seeds": final_seeds,
        "pruner": pruner,
    }
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if budget is not None:
        changes["budget"] = Budget.parse(budget)
    if submit is not None:
        options = {**given, "name": name, "budget": budget, "budgets": budgets, "workers": workers}
        options |= {"checkpoints": checkpoints, "tensorboard": tensorboard}
        return submit_job(submit, "launch", study, storage, address, options, *["--verbose"] * verbose)
    url = url_of(storage)
    with display(workers, address, verbose=verbose, tensorboard=tensorboard) as (backend, progress):
        ended = family.launch(
            study,
            shares=None if budgets is None else parts(budgets),
            name=name,
            url=url,
            changes=changes,
            backend=backend,
            progress=progress,
            checkpoints=checkpoints,
        )
    return finish(ended, url)


@app.command()
@one_line_errors
def compare(
    study: StudyFile,
    arms: Annotated[
        str | None,
        typer.Option(
            help="What to compare, comma-separated; tpe*10: at ten times the search cost; grow-shrink:l1: "
            "measured by another pruner (l1, taylor).  Default: "
            "grow-shrink, uniform, constant, cost-aware, equal-ratio, one-shot, random, tpe, gp.",
            show_default=False,
        ),
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Search cost of each arm, in uniform trainings; default: that of the width search's rounds.",
            show_default=False,
        ),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Several budgets, shares of the model's cost: 1/16,1/8,1/4,1/2.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each search is made.")] = 1,
    report_seeds: Annotated[
        int | None, typer.Option(min=2, help="Fresh seeds for what the arms recommend; default: the study's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the comparison; default: the file's name and -compare.")
    ] = None,
    storage: Storage = None,
    plot: Plot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    workers: Workers = None,
    address: Address = None,
    checkpoints: Checkpoints = None,
    verbose: Verbose = 0,
) -> None:
    """Compare the width search with what else one might do, at equal cost and on the same fresh seeds."""
    from widthsearch.driver.prepare import make_comparison

    options: dict[str, Any] = {"cost": cost, "repeats": repeats}
    for option, value in (("arms", arms), ("shares", budgets)):
        if value is not None:
            options[option] = parts(value)
    train_several(
        study,
        functools.partial(make_comparison, **options),
        "-compare",
        changes={"report_seeds": report_seeds},
        name=name,
        storage=storage,
        plot=plot,
        as_json=as_json,
        workers=workers,
        address=address,
        checkpoints=checkpoints,
        verbose=verbose,
    )


@app.command()
@one_line_errors
def resume(
    name: Name = None,
    storage: Storage = None,
    study: Annotated[str | None, typer.Option(help="The study file, if it was moved.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on although the study file changed.")] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Go on to so many rounds, whatever had stopped the search.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    checkpoints: Checkpoints = None,
    submit: Submit = None,
    tensorboard: TensorBoard = None,
    verbose: Verbose = 0,
) -> None:
    """Go on with an interrupted study or family, or make more rounds."""
    from widthsearch.driver import family

    if submit is not None:
        if study is None or name is None:
            raise UsageError(
                "--submit needs the study and where its file is here: resume NAME --study FILE.py"
            )
        options = {"rounds": rounds, "workers": workers, "checkpoints": checkpoints, "force": force or None}
        options["tensorboard"] = tensorboard
        return submit_job(submit, "resume", study, storage, address, options, name, *["--verbose"] * verbose)
    url = url_of(storage)
    with display(workers, address, verbose=verbose, tensorboard=tensorboard) as (backend, progress):
        ended = family.resume(
            name,
            url=url,
            rounds=rounds,
            file=study,
            force=force,
            backend=backend,
            progress=progress,
            checkpoints=checkpoints,
        )
    return finish(ended, url)


def train_several(
    study: str,
    several: Callable[[Study, Plan], AnyPlan],
    suffix: str,
    *,
    changes: Mapping[str, Any],
    name: str | None,
    storage: str | None,
    plot: str | None,
    as_json: bool,
    workers: int | None,
    address: str | None,
    checkpoints: str | None,
    verbose: int = 0,
) -> None:
    """Launch what is more than one search and print what it found: what :func:`.search.launch` calls several.

    Options that are not given (``None``) change nothing of the study.
    """
    from widthsearch.driver import launch as search

    check_plot(plot)
    url = url_of(storage)
    with display(workers, address, err if as_json else out, verbose=verbose) as (backend, progress):
        ended = search.launch(
            study,
            name=name,
            url=url,
            changes={k: v for k, v in changes.items() if v is not None},
            backend=backend,
            progress=progress,
            checkpoints=checkpoints,
            several=several,
            suffix=suffix,
        )
    finish(ended, url, as_json=as_json, plot=plot)


def url_of(option: str | None) -> str:
    """The storage of a search; says so if its password stands where others can read it."""
    from widthsearch.database.connection import hide_password, parse_url, url_from

    url = url_from(option)
    if option is not None and parse_url(url).password:
        out.print(
            f"note: the password of {hide_password(url)} can be read in the process list; "
            "WIDTHSEARCH_STORAGE or PGPASSFILE keep it out of there",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return url


def finish(ended: Ended, url: str, *, as_json: bool = False, plot: str | None = None) -> None:
    """Print what was found, or how to go on; the exit code says how the search ended."""
    from widthsearch.database.connection import command

    if ended.status == "interrupted":
        err.print(
            f"interrupted; nothing is lost.  Go on with: {command('resume', ended.name, url)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED)
    if ended.status == "failed":
        raise UsageError(f"{ended.name!r} cannot go on: {ended.because}")
    print_named(ended.name, url, as_json, plot, patient=True)

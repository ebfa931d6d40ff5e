"""Commands that search: launch, resume."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from widthsearch.cli.options import (
    Budgets,
    Changes,
    Moved,
    Name,
    NewName,
    StudyFile,
    Submit,
    TensorBoard,
    Where,
    parts,
    spread,
)
from widthsearch.cli.submit import submit_job
from widthsearch.cli.summaries import print_named
from widthsearch.errors import UsageError
from widthsearch.plans.settings import settings_of_effort
from widthsearch.show.console import err, out, say
from widthsearch.stopping import INTERRUPTED, leave, listen

if TYPE_CHECKING:
    from rich.console import Console

    from widthsearch.driver.run import Ended


@spread("launch")
def launch(
    study: StudyFile,
    where: Where,
    changes: Changes,
    name: NewName = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="quick (one measure, one proposal, one seed: about 4 uniform trainings and the verdict's), "
            "normal (as the study says) or thorough; other options go before it.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of the recipe.  Default: the study's.", show_default=False)
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Budget instead of the file's, e.g. macs=0.25x,params=0.25x.")
    ] = None,
    budgets: Budgets = None,
    submit: Submit = None,
    tensorboard: TensorBoard = None,
) -> None:
    """Start a study, or a family of them, and run it to recommended widths."""
    if epochs is not None:
        changes["epochs"] = epochs
    if effort is not None:
        changes = {**settings_of_effort(effort), **changes}
    if submit is not None:
        given = {"set": [f"{field}={value!r}" for field, value in changes.items()], "name": name}
        given |= {"budget": budget, "budgets": budgets, "tensorboard": tensorboard}
        return submit_job(submit, "launch", study, where, given)
    shares = None if budgets is None else parts(budgets)
    begin("launch", study, where, name, shares)
    from widthsearch.driver.launch import launch
    from widthsearch.study.budget import Budget

    if budget is not None:
        changes["budget"] = Budget.parse(budget)
    with where.session(tensorboard=tensorboard) as session:
        ended = launch(study, session, name=name, changes=changes, budgets=shares)
    return finish(ended, session.url)


@spread("resume")
def resume(
    where: Where,
    name: Name = None,
    study: Moved = None,
    force: Annotated[bool, typer.Option("--force", help="Go on although the study file changed.")] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Go on to so many rounds, whatever had stopped the search.")
    ] = None,
    submit: Submit = None,
    tensorboard: TensorBoard = None,
) -> None:
    """Go on with an interrupted study or family, or make more rounds."""
    if submit is not None:
        if study is None or name is None:
            raise UsageError(
                "--submit needs the study and where its file is here: resume NAME --study FILE.py"
            )
        given = {"rounds": rounds, "force": force or None, "tensorboard": tensorboard}
        return submit_job(submit, "resume", study, where, given, name)
    from widthsearch.driver.resume import resume

    with where.session(tensorboard=tensorboard) as session:
        ended = resume(name, session, file=study, force=force, rounds=rounds)
    return finish(ended, session.url)


def begin(
    verb: str,
    study: str,
    where: Where,
    name: str | None,
    shares: Sequence[str] | None = None,
    console: Console = out,
) -> None:
    """Before anything slow is imported: say that something happens, and refuse a name that is taken."""
    from widthsearch.database.connection import url_from
    from widthsearch.driver.names import check_new

    say(f"reading {study}", console)
    listen(lambda: leave("interrupted before a training was started"))
    check_new(study, url_from(where.storage), name, verb, shares)


def finish(ended: Ended, url: str, *, as_json: bool = False, plot: str | None = None) -> None:
    """Print what was found, or how to go on; the exit code says how the search ended."""
    from widthsearch.database.connection import Database, database_command

    if ended.status == "failed":
        raise UsageError(f"{ended.name!r} cannot go on: {ended.because}")
    if ended.status == "interrupted":
        say(f"interrupted; nothing is lost.  Go on with: {database_command(url, 'resume', ended.name)}", err)
        raise typer.Exit(INTERRUPTED)
    with closing(Database.open(url, patient=True)) as database:
        print_named(ended.name, database, as_json, plot)

"""Commands that keep a database in order: rename, delete."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from widthsearch.cli.options import Storage
from widthsearch.cli.summaries import opened
from widthsearch.errors import UsageError
from widthsearch.show.console import say

Known = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study, or of a family.")]


def rename(
    name: Known,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    storage: Storage = None,
) -> None:
    """Give a study another name, or a family with all of its studies."""
    from widthsearch.driver.manage import rename

    for study in rename(name, new, opened(storage)):
        say(study)


def delete(
    name: Known,
    storage: Storage = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
) -> None:
    """Delete a study, or a family, from the database, with its checkpoints."""
    from widthsearch.driver.manage import delete, studies_of

    database = opened(storage)
    studies = studies_of(name, database)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{name!r}: delete asks first, and nobody is there to answer: give --yes")
        what = f"{name!r}" + (f", {len(studies)} studies" if studies != [name] else "")
        if not typer.confirm(f"delete {what}, with all trainings, from {database.shown}?"):
            raise typer.Exit(1)
    for study in delete(name, database):
        say(f"{study} is deleted")

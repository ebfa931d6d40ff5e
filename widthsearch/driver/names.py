"""The name of a new study, and whether it is free: looked up before anything slow is imported."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import optuna
from optuna.study import StudyDirection

from widthsearch.database import records
from widthsearch.database.connection import Database, sqlite_path
from widthsearch.database.file_lock import refusal
from widthsearch.database.lock import driver_of
from widthsearch.database.records import Family
from widthsearch.errors import UsageError
from widthsearch.plans.words import file_and_name


def name_of_new(reference: str, name: str | None, verb: str) -> str:
    """The given name of a new study, else its file's, and what is asked of it."""
    if name is not None:
        return name
    path = Path(file_and_name(reference)[0])
    with suppress(OSError, ValueError, RuntimeError):  # whoever reads it will say so
        path = path.expanduser().resolve()
    return path.stem + ("" if verb == "launch" else f"-{verb}")


def member_name(family: str, share: str) -> str:
    """``curve-1-16``: as good in a file name, a URL or a shell as the name of the family."""
    return f"{family}-{share.removesuffix('x').replace('/', '-')}"


def check_new(
    reference: str, url: str, name: str | None, verb: str = "launch", shares: Sequence[str] | None = None
) -> None:
    """Refuse the launch of a study file, or with ``shares`` of a family, whose names cannot be had.

    These are names that a database would not keep or a terminal not show, those of studies that run, and
    those that are taken.
    """
    name = name_of_new(reference, name, verb)
    family = None if shares is None else Family(name, tuple(member_name(name, share) for share in shares))
    check_names(url, {name, *(family.members if family else ())}, family)


def check_names(url: str, wanted: set[str], family: Family | None) -> None:
    """Refuse names that a database would not keep or a terminal not show, and those that are taken."""
    for name in wanted:
        if not 0 < len(name) <= 512 or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise UsageError(
                f"study name {name!r:.60}: give one of 1 to 512 characters, without control characters "
                "(--name)"
            )
    file = sqlite_path(url)
    if file is None or file.exists():
        _refuse_running(url, wanted)
        with closing(Database.open(url)) as database:
            try:
                refuse_taken(database, wanted, family)
            except UsageError:
                _refuse_running(url, wanted)  # it may have been launched at this moment
                raise


def _refuse_running(url: str, wanted: set[str]) -> None:
    for name in sorted(wanted):
        if (driver := driver_of(url, name)) is not None:
            raise refusal(url, name, driver)


def refuse_taken(database: Database, wanted: set[str], family: Family | None) -> None:
    """:class:`UsageError` if one of these names is that of a study or family in the database."""
    for study, found in records.all_studies(database.storage).items():
        of = records.family_in(found)
        if of is not None and of.name in wanted:
            kind, name = "family", of.name
        elif study in wanted:
            kind, name = "study", study
        else:
            continue
        if not _is_left_over(database, study, of, family):
            ours = records.PLAN in found
            hint = f"go on with: {database.command('resume', name)}; " if ours else ""
            raise UsageError(f"{kind} {name!r} exists already; {hint}start a new one with --name")


def _is_left_over(database: Database, name: str, of: Family | None, family: Family | None) -> bool:
    """Whether a study without trials is what a launch left that was stopped in its first moments.

    It is taken over by the launch of the same study, or of the same ``family``.
    """
    begun = of is None and family is not None and name in family.members
    if not begun and _whose(of) != _whose(family):
        return False
    study = optuna.load_study(study_name=name, storage=database.storage)
    return study.directions == [StudyDirection.MINIMIZE] and not study.get_trials(deepcopy=False)


def _whose(family: Family | None) -> object:
    """What tells one family from another: at first its members stand in the order of the command line."""
    return family and (family.name, frozenset(family.members))

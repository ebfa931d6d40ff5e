"""Writing a new study down: its names checked, its place for checkpoints made, its plan last."""

from __future__ import annotations

import os
import unicodedata
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection

from widthsearch.database import records
from widthsearch.database.connection import Database, sqlite_path
from widthsearch.database.file_lock import refusal
from widthsearch.database.folder import OURS, Folder
from widthsearch.database.lock import driver_of
from widthsearch.database.records import Family
from widthsearch.driver.prepare import Prepared
from widthsearch.errors import UsageError, describe_error
from widthsearch.plans.plan import StudyPlan
from widthsearch.plans.words import slug
from widthsearch.study.budget import Budget
from widthsearch.study.file import StudyFile


def create(
    database: Database,
    name: str,
    file: StudyFile,
    prepared: Prepared,
    *,
    plan: StudyPlan,
    command: Sequence[str] = ("launch",),
    checkpoints: str | None = None,
    family: Family | None = None,
) -> optuna.Study:
    """Write a study down, for ``resume`` to run.  Called under its driver lock.

    ``command``: the verb and the options that it was asked for with, beside the changes of its file.
    """
    identity = uuid.uuid4().hex
    folder = checkpoint_folder(database.url, checkpoints, name, identity)
    study = optuna.create_study(
        study_name=name, storage=database.storage, direction="minimize", load_if_exists=True
    )
    plain = {k: asdict(v) if isinstance(v, Budget) else v for k, v in file.changes.items()}
    study.set_user_attr(records.SOURCE, {"file": str(file.path), "name": file.name})
    study.set_user_attr(records.COMMAND, list(command))
    study.set_user_attr(records.CHANGES, plain)
    study.set_user_attr(records.IDENTITY, identity)
    study.set_user_attr(records.CHECKPOINTS, folder)
    if family is not None:
        study.set_user_attr(records.FAMILY, family._asdict())
    write_plan(study, prepared, plan)
    return study


def write_plan(study: optuna.Study, prepared: Prepared, plan: StudyPlan) -> None:
    """Write down what the study does, and what must not change while it does."""
    packages = ("widthsearch", "torch", "numpy")
    study.set_user_attr(records.VERSIONS, {package: version(package) for package in packages})
    study.set_user_attr(records.FROZEN, prepared.frozen)
    study.set_user_attr(records.MODULES, prepared.modules)
    study.set_user_attr(records.FINGERPRINT, prepared.fingerprint)
    study.set_user_attr(records.PLAN, plan.to_json())  # last: it makes the study one of ours


def checkpoint_folder(url: str, given: str | None, name: str, identity: str) -> str:
    """The folder of a study's checkpoints, made to see that it can be; beside an SQLite file by default."""
    base = given or os.environ.get("WIDTHSEARCH_CHECKPOINTS")
    if base is None:
        file = sqlite_path(url)
        base = f"{file}{OURS}" if file is not None else f"widthsearch{OURS}"
    where, _, path = base.rpartition("://")
    if "@" in path.partition("/")[0]:
        raise UsageError(
            "checkpoints: a URL with a user or password would be kept in the database: leave it out"
        )
    try:
        folder = f"{base if where else Path(base).expanduser().resolve()}/{slug(name)}-{identity[:8]}"
    except (OSError, ValueError, RuntimeError) as error:  # too long, no text, the home of nobody
        raise UsageError(f"checkpoints {base!r} cannot be used: {describe_error(error)}") from None
    Folder(folder).check()
    return folder


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
        for name in sorted(wanted):
            if (driver := driver_of(url, name)) is not None:
                raise refusal(url, name, driver)
        with closing(Database.open(url)) as database:
            refuse_taken(database, wanted, family)


def refuse_taken(database: Database, wanted: set[str], family: Family | None) -> None:
    """:class:`UsageError` if one of these names is that of a study or family in the database."""
    for found in database.storage.get_all_studies():
        of = records.family_in(found.user_attrs)
        if of is not None and of.name in wanted:
            kind, name = "family", of.name
        elif found.study_name in wanted:
            kind, name = "study", found.study_name
        else:
            continue
        if not _is_left_over(database, found, family):
            ours = records.PLAN in found.user_attrs
            hint = f"go on with: {database.command('resume', name)}; " if ours else ""
            raise UsageError(f"{kind} {name!r} exists already; {hint}start a new one with --name")


def _is_left_over(database: Database, found: Any, family: Family | None) -> bool:
    """Whether a study without trials is what a launch left that was stopped in its first moments.

    It is taken over by the launch of the same study, or of the same ``family``.
    """
    of = records.family_in(found.user_attrs)
    same = of == family or (of is None and family is not None and found.study_name in family.members)
    if not same or found.directions != [StudyDirection.MINIMIZE]:
        return False
    study = optuna.load_study(study_name=found.study_name, storage=database.storage)
    return not study.get_trials(deepcopy=False)

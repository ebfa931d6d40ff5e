"""Writing a new study down: its place for checkpoints made, its plan last."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import optuna

from widthsearch.database import records
from widthsearch.database.connection import Database, sqlite_path
from widthsearch.database.folder import OURS, Folder, folder_name
from widthsearch.database.records import Family
from widthsearch.driver.prepare import Prepared
from widthsearch.errors import UsageError, describe_error
from widthsearch.plans.plan import StudyPlan
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
    with warnings.catch_warnings(action="ignore"):  # experimental, Optuna says
        study.set_metric_names(["validation loss"])
    study.set_user_attr(records.SOURCE, {"file": str(file.path), "name": file.name})
    study.set_user_attr(records.COMMAND, list(command))
    study.set_user_attr(records.CHANGES, file.plain_changes)
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
    study.set_user_attr(records.CODE, prepared.code)
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
        folder = f"{base if where else Path(base).expanduser().resolve()}/{folder_name(name, identity)}"
    except (OSError, ValueError, RuntimeError) as error:  # too long, no text, the home of nobody
        raise UsageError(f"checkpoints {base!r} cannot be used: {describe_error(error)}") from None
    Folder(folder).check()
    return folder

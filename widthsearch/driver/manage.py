"""Taking studies out of the database, and giving them other names, while nobody runs them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import optuna
import sqlalchemy

from widthsearch.database import records
from widthsearch.database.connection import Database
from widthsearch.database.folder import Folder
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import STUDIES, Family
from widthsearch.driver.names import check_names
from widthsearch.errors import CheckpointError, UsageError

_ATTRIBUTES = sqlalchemy.table(
    "study_user_attributes",
    sqlalchemy.column("study_id"),
    sqlalchemy.column("key", sqlalchemy.String),
    sqlalchemy.column("value_json", sqlalchemy.String),
)


def studies_of(name: str, database: Database) -> list[str]:
    """What a name stands for: a study, or the studies of a family, also of one whose launch was cut short.

    Raises :class:`UsageError` for an unknown name, and for that of one study of a family.
    """
    ours = {study: records.family_in(of) for study, of in records.studies_in(database.storage).items()}
    members = [study for study, family in ours.items() if family is not None and family.name == name]
    if members:
        return members
    if name not in ours:
        raise UsageError(f"no study {name!r} in {database.shown!r}; it has {', '.join(ours) or 'none'}")
    if (family := ours[name]) is not None:
        raise UsageError(f"{name!r} belongs to the family {family.name!r}, whose studies stay together")
    return [name]


def delete(name: str, database: Database) -> list[str]:
    """Delete a study, or all of a family, with its checkpoints; returns the names of what is gone.

    Raises :class:`UsageError` for an unknown name, and for a study that runs.
    """
    studies = studies_of(name, database)
    with _nobody_runs(database.url, {name, *studies}):
        for study in studies:
            found = optuna.load_study(study_name=study, storage=database.storage).user_attrs
            with suppress(CheckpointError, KeyError, TypeError, AttributeError):  # it may be anything
                Folder.of_study(found[records.CHECKPOINTS], study, found[records.IDENTITY]).clear()
            optuna.delete_study(study_name=study, storage=database.storage)
    return studies


def rename(name: str, new: str, database: Database) -> list[str]:
    """Give a study another name, or a family, whose studies are called after it; returns the new names.

    Raises :class:`UsageError` for an unknown name, for one that is taken, and for a study that runs.
    """
    studies = {study: new + study.removeprefix(name) for study in studies_of(name, database)}
    check_names(database.url, {new, *studies.values()}, None)
    with _nobody_runs(database.url, {name, new, *studies, *studies.values()}):
        statements: list[Any] = [
            sqlalchemy.update(STUDIES).where(STUDIES.c.study_name == old).values(study_name=now)
            for old, now in studies.items()
        ]
        if name not in studies:
            family = Family(new, tuple(studies.values()))
            ids = sqlalchemy.select(STUDIES.c.study_id).where(STUDIES.c.study_name.in_(family.members))
            statements.append(
                sqlalchemy.update(_ATTRIBUTES)
                .where(_ATTRIBUTES.c.key == records.FAMILY, _ATTRIBUTES.c.study_id.in_(ids))
                .values(value_json=json.dumps(family._asdict()))
            )
        # Optuna cannot rename; all at once, so that a family is never half renamed.
        assert isinstance(database.storage, optuna.storages.RDBStorage)
        with database.storage.engine.begin() as connection:
            for statement in statements:
                connection.execute(statement)
    return list(studies.values())


@contextmanager
def _nobody_runs(url: str, names: Iterable[str]) -> Iterator[None]:
    with ExitStack() as locks:
        for name in sorted(names):
            locks.enter_context(driver_lock(url, name))
        yield

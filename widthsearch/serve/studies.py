"""The summaries of all studies in a database, each made again only where the database says it changed."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.study._frozen import FrozenStudy

from widthsearch.database.connection import Database
from widthsearch.database.records import IDENTITY, PLAN, Family, family_in, load_known
from widthsearch.errors import UsageError
from widthsearch.report.search import status_of
from widthsearch.report.summary import family_summary, summary_of
from widthsearch.report.types import StudySummary, Summary

#: The database is asked at most so often.
PAUSE_SECONDS = 2.0

_STUDIES = sqlalchemy.table("studies", *map(sqlalchemy.column, ("study_id", "study_name")))
_TRIALS = sqlalchemy.table("trials", *map(sqlalchemy.column, ("study_id", "trial_id", "state")))
_COUNTS = (
    sqlalchemy.select(
        _STUDIES.c.study_name,
        _TRIALS.c.state,
        sqlalchemy.func.count(),
        sqlalchemy.func.max(_TRIALS.c.trial_id),
    )
    .join(_TRIALS, _TRIALS.c.study_id == _STUDIES.c.study_id)
    .group_by(_STUDIES.c.study_name, _TRIALS.c.state)
)


class _Known(NamedTuple):
    """A study as it was read last, what the database said of it then, and its summary or why it has none."""

    study: optuna.Study | None
    state: tuple[dict[str, Any], list[str]]
    found: StudySummary | UsageError


class Studies:
    """What is known of the studies and families of one database; for several threads."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._known: dict[str, _Known] = {}
        self._families: dict[str, Family] = {}
        self._looked, self._lock = -PAUSE_SECONDS, threading.Lock()

    def look(self) -> dict[str, Summary | UsageError]:
        """The summary of each family and study by name, or why it has none.

        Raises what the database raises.
        """
        with self._lock:
            if time.monotonic() - self._looked >= PAUSE_SECONDS:
                self._refresh()
                self._looked = time.monotonic()
            found: dict[str, Summary | UsageError] = {}
            for family in self._families.values():
                of = [self._known[name].found for name in family.members if name in self._known]
                members = [member for member in of if not isinstance(member, UsageError)]
                if len(members) == len(family.members):  # else its launch was cut short
                    found[family.name] = family_summary(family, members, self.database.url)
            return found | {name: known.found for name, known in self._known.items()}

    def _refresh(self) -> None:
        storage = self.database.storage
        assert isinstance(storage, optuna.storages.RDBStorage)
        counts: dict[str, list[str]] = defaultdict(list)
        with storage.engine.connect() as connection:
            for name, *row in connection.execute(_COUNTS):
                counts[name].append(str(row))
        ours = [s for s in storage.get_all_studies() if PLAN in s.user_attrs]
        self._known = {s.study_name: self._read(s, sorted(counts[s.study_name])) for s in ours}
        families = (family_in(s.user_attrs) for s in ours)
        self._families = {family.name: family for family in families if family is not None}

    def _read(self, now: FrozenStudy, trials: list[str]) -> _Known:
        state, known, url = (now.user_attrs, trials), self._known.get(now.study_name), self.database.url
        if known is not None and known.state == state:
            # A study that runs, or no longer does, may change without a word in the database.
            status = status_of(now, url)  # type: ignore[arg-type]  # it has the attributes that are read
            if isinstance(known.found, UsageError) or status == known.found["status"] != "running":
                return known
        study = None
        if known is not None and known.state[0].get(IDENTITY) == now.user_attrs.get(IDENTITY):
            study = known.study  # it remembers its finished trials
        try:
            study = study or load_known(now.study_name, self.database)
            return _Known(study, state, summary_of(study, url))
        except UsageError as error:
            return _Known(study, state, error)
        except KeyError:  # deleted at this moment
            return _Known(None, state, UsageError(f"study {now.study_name!r} is gone"))

"""The summaries of all studies in a database, each made again only where the database says it changed."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

import optuna
import sqlalchemy

from widthsearch.database.connection import Database
from widthsearch.database.records import IDENTITY, STUDIES, Family, family_in, load_known, studies_in
from widthsearch.errors import UsageError
from widthsearch.report.search import status_by
from widthsearch.report.summary import family_summary, summary_of
from widthsearch.report.types.kinds import StudySummary, Summary

#: The database is asked at most so often.
PAUSE_SECONDS = 2.0

_TRIALS = sqlalchemy.table("trials", *map(sqlalchemy.column, ("study_id", "trial_id", "state")))
_COUNTS = (
    sqlalchemy.select(
        STUDIES.c.study_name,
        _TRIALS.c.state,
        sqlalchemy.func.count(),
        sqlalchemy.func.max(_TRIALS.c.trial_id),
    )
    .join(_TRIALS, _TRIALS.c.study_id == STUDIES.c.study_id)
    .group_by(STUDIES.c.study_name, _TRIALS.c.state)
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
        self._names: list[str] = []
        self._families: dict[str, Family] = {}
        self._lock = threading.Lock()
        self._reading: Future[None] | None = None
        self._began = 0.0

    def look(self, patience: float | None = None) -> dict[str, Summary | UsageError | None]:
        """The summary of each family and study by name, or why it has none.

        ``patience``: seconds after which to give what is known by now, with ``None`` for studies that are
        still being read: the first time, that takes a moment for each.  Raises what the database raises.
        """
        with self._lock:
            reading = self._reading
            if reading is None or (reading.done() and time.monotonic() - self._began >= PAUSE_SECONDS):
                self._reading = reading = Future()
                self._began = time.monotonic()
                threading.Thread(target=self._work, args=(reading,), daemon=True).start()
        with suppress(TimeoutError):
            reading.result(patience)
        found: dict[str, Summary | UsageError | None] = {}
        names, families = self._names, self._families
        of = {name: known.found for name in names if (known := self._known.get(name)) is not None}
        for family in families.values():
            members = [m for name in family.members if not isinstance(m := of.get(name), UsageError | None)]
            if len(members) == len(family.members):  # else its launch was cut short, or it is being read
                found[family.name] = family_summary(family, members, self.database.url)
        return found | {name: of.get(name) for name in names}

    def _work(self, reading: Future[None]) -> None:
        try:
            self._refresh()
            reading.set_result(None)
        except BaseException as error:
            reading.set_exception(error)

    def _refresh(self) -> None:
        storage = self.database.storage
        assert isinstance(storage, optuna.storages.RDBStorage)
        counts: dict[str, list[str]] = defaultdict(list)
        with storage.engine.connect() as connection:
            for name, *row in connection.execute(_COUNTS):
                counts[name].append(str(row))
        ours = studies_in(storage)
        families = map(family_in, ours.values())
        self._families = {family.name: family for family in families if family is not None}
        self._names = list(ours)
        self._known = {name: known for name, known in self._known.items() if name in ours}
        for name in reversed(self._names):  # the latest are asked for first
            self._known[name] = self._read(name, ours[name], sorted(counts[name]))

    def _read(self, name: str, attributes: dict[str, Any], trials: list[str]) -> _Known:
        state, known, url = (attributes, trials), self._known.get(name), self.database.url
        if known is not None and known.state == state:
            # A study that runs, or no longer does, may change without a word in the database.
            status = status_by(name, attributes, url)
            if isinstance(known.found, UsageError) or status == known.found["status"] != "running":
                return known
        study = None
        if known is not None and known.state[0].get(IDENTITY) == attributes.get(IDENTITY):
            study = known.study  # it remembers its finished trials
        try:
            study = study or load_known(name, self.database)
            return _Known(study, state, summary_of(study, url))
        except UsageError as error:
            return _Known(study, state, error)
        except KeyError:  # deleted at this moment
            return _Known(None, state, UsageError(f"study {name!r} is gone"))

"""One driver per study: a lock that dies with the process that holds it, and names it.

On PostgreSQL it is an advisory lock in the database itself, so it keeps drivers on different hosts apart.
For an SQLite file it is a lock beside it, for any other database one on this host alone (``file_lock.py``).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import sqlalchemy
from sqlalchemy import BigInteger, bindparam
from sqlalchemy.pool import NullPool

from widthsearch.database.connection import (
    connect_args,
    connection_was_lost,
    fold_log,
    hide_password,
    is_postgresql,
    opening,
    parse_url,
    patiently,
)
from widthsearch.database.file_lock import GRACE_SECONDS, PREFIX, FileLock, me, refusal
from widthsearch.errors import UsageError
from widthsearch.stopping import TIDY_SECONDS, on_leaving

log = logging.getLogger(__name__)

# Of the lock's own connection: the server notices within half a minute that this host is gone (a pulled
# cable, a power cut), and never ends the session because nothing happens on it.
_SESSION = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "idle_session_timeout": "0",
}
_SET = sqlalchemy.text("SELECT set_config(name, :value, false) FROM pg_settings WHERE name = :name")
_TAKE = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)").bindparams(bindparam("key", type_=BigInteger))
# The server keeps the key in two halves.  It lists the locks of all its databases.
_HOLDER = sqlalchemy.text(
    "SELECT coalesce(a.application_name, '') FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND CAST(l.classid AS bigint) = :high AND CAST(l.objid AS bigint) = :low"
).bindparams(bindparam("high", type_=BigInteger), bindparam("low", type_=BigInteger))
_OWN_GHOST_SECONDS = 60.0  # how long a server may take to notice that our lost connection is dead


class DriverLock(Protocol):
    """The lock, held."""

    def confirm(self) -> None:
        """Make sure that it still is; the driver does so before it writes.

        Waits for a database server that went away and takes the lock again if it was lost with it.  Raises
        :class:`UsageError` if another driver has it now, :class:`DatabaseGoneError` if the database's file is
        not the one any more that was locked.
        """


@contextmanager
def driver_lock(url: str, study_name: str) -> Iterator[DriverLock]:
    """Hold the study's driver lock.  Raises :class:`UsageError` at once if another process holds it.

    It dies with its process, so that a killed driver never blocks the next one.
    """
    lock = _lock(url, study_name)
    lock.acquire()
    log.debug("driver lock of %r in %s", study_name, hide_password(url))
    try:
        with on_leaving(lambda: _tidy(url, lock)):
            yield lock
    finally:
        lock.release()


def _tidy(url: str, lock: _ServerLock | FileLock) -> None:
    """What is done where there is no time: the lock file goes, the database becomes one file if it can."""
    if isinstance(lock, FileLock):
        lock.remove_file()
    fold_log(url, patience_seconds=TIDY_SECONDS / 2)


def is_driven(url: str, study_name: str) -> bool:
    """Whether some process holds the study's driver lock now."""
    return _lock(url, study_name).is_held()


def driver_of(url: str, study_name: str) -> str | None:
    """Host and process of the study's driver; empty if they are not known; ``None`` without a driver."""
    return _lock(url, study_name).holder()


def _lock(url: str, study_name: str) -> _ServerLock | FileLock:
    return (_ServerLock if is_postgresql(url) else FileLock)(url, study_name)


class _ServerLock:
    """A session-level advisory lock of PostgreSQL, on a connection of its own."""

    def __init__(self, url: str, study_name: str) -> None:
        self._url, self._study_name = url, study_name
        digest = hashlib.sha256(f"widthsearch:{study_name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], signed=True)
        self._connection: sqlalchemy.Connection | None = None
        parsed = parse_url(url)
        with opening(url):
            self._engine = sqlalchemy.create_engine(
                parsed, connect_args=connect_args(parsed), poolclass=NullPool, isolation_level="AUTOCOMMIT"
            )

    def acquire(self) -> None:
        with opening(self._url):
            self._connect()
            give_up = time.monotonic() + GRACE_SECONDS
            while not (taken := self._take()) and time.monotonic() < give_up:
                time.sleep(0.1)
            holder = None if taken else self._holder()
        if not taken:
            self.release()
            raise refusal(self._url, self._study_name, holder)

    def confirm(self) -> None:
        give_up = time.monotonic() + _OWN_GHOST_SECONDS
        while True:
            try:
                if self._connection is None:
                    patiently(self._connect)
                    give_up = time.monotonic() + _OWN_GHOST_SECONDS
                if self._take():  # at once if it is ours already
                    return
                holder = self._holder()
            except Exception as error:
                if not connection_was_lost(error):
                    raise
                self.release()
                continue
            # Held under our own name: by our old connection, which the server still takes for alive.
            if holder not in (None, me()) or time.monotonic() > give_up:
                self.release()
                raise UsageError(
                    f"study {self._study_name!r} was taken over by another driver ({holder or 'unknown'}) "
                    "while the database was away; stop one of them"
                )
            time.sleep(0.2)

    def release(self) -> None:
        if self._connection is not None:
            # First out of SQLAlchemy's hands, which would roll back on a connection that may be dead.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def is_held(self) -> bool:
        """Asks without taking it, so that a driver that starts at this moment is not disturbed."""
        return self.holder() is not None

    def holder(self) -> str | None:
        """Host and process of whoever holds it; empty if they have no name; ``None`` if it is free."""
        with opening(self._url), self._engine.connect() as self._connection:
            return self._holder()

    def _connect(self) -> None:
        self._connection = self._engine.connect()
        for name, value in {"application_name": PREFIX + me(), **_SESSION}.items():
            self._connection.execute(_SET, {"name": name, "value": value})

    def _take(self) -> bool:
        return bool(self._execute(_TAKE, key=self._key).scalar())

    def _holder(self) -> str | None:
        """Host and process of whoever holds it; empty if they have no name; ``None`` if it is free."""
        high, low = self._key >> 32 & 0xFFFFFFFF, self._key & 0xFFFFFFFF
        name = self._execute(_HOLDER, high=high, low=low).scalar()
        return None if name is None else str(name).removeprefix(PREFIX)

    def _execute(self, statement: sqlalchemy.TextClause, **values: int) -> sqlalchemy.CursorResult[Any]:
        assert self._connection is not None
        return self._connection.execute(statement, values)

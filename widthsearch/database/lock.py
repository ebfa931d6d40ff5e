"""One driver per study: a lock that dies with the process that holds it, and names it.

On PostgreSQL it is an advisory lock in the database itself, so it keeps drivers on different hosts apart.
For an SQLite file it is a lock file beside it; for any other database a lock file on this host alone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import filelock
import sqlalchemy
from sqlalchemy import BigInteger, bindparam
from sqlalchemy.pool import NullPool

from widthsearch.database.connection import (
    connect_args,
    connection_was_lost,
    hide_password,
    is_postgresql,
    opening,
    parse_url,
    patiently,
    sqlite_path,
)
from widthsearch.errors import UsageError
from widthsearch.plans.words import slug

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
_PREFIX = "widthsearch "
_NAME_BYTES = 63  # PostgreSQL cuts an application's name here
_GRACE_SECONDS = 0.5  # `show` may hold a lock file for a moment, to see whether anybody does
_OWN_GHOST_SECONDS = 60.0  # how long a server may take to notice that our lost connection is dead


class DriverLock(Protocol):
    """The lock, held."""

    def confirm(self) -> None:
        """Make sure that it still is; the driver does so before it writes.

        Waits for a database server that went away and takes the lock again if it was lost with it.  Raises
        :class:`UsageError` if another driver has it now.
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
        yield lock
    finally:
        lock.release()


def is_driven(url: str, study_name: str) -> bool:
    """Whether some process holds the study's driver lock now."""
    return _lock(url, study_name).is_held()


def _lock(url: str, study_name: str) -> _ServerLock | _FileLock:
    return (_ServerLock if is_postgresql(url) else _FileLock)(url, study_name)


def _refusal(study_name: str, holder: str | None) -> UsageError:
    return UsageError(
        f"study {study_name!r} is being run by another driver ({holder or 'it is just starting'}); "
        f"stop that one first, or watch it with: widthsearch show {shlex.quote(study_name)}"
    )


def _me() -> str:
    """Host and process, as others are told; a long host name is cut, never the process."""
    process = f", process {os.getpid()}"
    return socket.gethostname()[: _NAME_BYTES - len(_PREFIX) - len(process)] + process


class _FileLock:
    def __init__(self, url: str, study_name: str) -> None:
        path = sqlite_path(url)

        # A database server gives no folder to lock in: then the lock holds on this host only.
        def digest(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()[:16]

        base = Path(tempfile.gettempdir()) / f"widthsearch-{digest(url)}" if path is None else path
        own = slug(study_name.lower())  # some file systems do not tell "a" from "A"
        if own != study_name:  # two names must never share a lock; no slug has a dot
            own += f".{digest(study_name)}"
        self._study_name = study_name
        self._lock = filelock.FileLock(f"{base}.{own}.lock", timeout=0)
        # Not inside the lock file: some versions of filelock empty it whenever they look at it.
        self._holder = Path(f"{base}.{own}.driver")

    def acquire(self) -> None:
        try:
            self._lock.acquire(timeout=_GRACE_SECONDS)
        except filelock.Timeout:
            holder = ""
            with suppress(OSError):
                holder = self._holder.read_text()
            raise _refusal(self._study_name, holder) from None
        with suppress(OSError):  # a full disk: the lock does without its name
            self._holder.write_text(_me())

    def confirm(self) -> None:
        """The kernel keeps the lock as long as the process lives."""

    def release(self) -> None:
        with suppress(OSError):
            self._holder.unlink()
        self._lock.release()

    def is_held(self) -> bool:
        if not Path(self._lock.lock_file).exists():
            return False
        try:
            with self._lock:
                return False
        except filelock.Timeout:
            return True


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
            give_up = time.monotonic() + _GRACE_SECONDS
            while not (taken := self._take()) and time.monotonic() < give_up:
                time.sleep(0.1)
            holder = None if taken else self._holder()
        if not taken:
            self.release()
            raise _refusal(self._study_name, holder)

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
            if holder not in (None, _me()) or time.monotonic() > give_up:
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
        with opening(self._url), self._engine.connect() as self._connection:
            return self._holder() is not None

    def _connect(self) -> None:
        self._connection = self._engine.connect()
        for name, value in {"application_name": _PREFIX + _me(), **_SESSION}.items():
            self._connection.execute(_SET, {"name": name, "value": value})

    def _take(self) -> bool:
        return bool(self._execute(_TAKE, key=self._key).scalar())

    def _holder(self) -> str | None:
        """Host and process of whoever holds it; empty if they have no name; ``None`` if it is free."""
        high, low = self._key >> 32 & 0xFFFFFFFF, self._key & 0xFFFFFFFF
        name = self._execute(_HOLDER, high=high, low=low).scalar()
        return None if name is None else str(name).removeprefix(_PREFIX)

    def _execute(self, statement: sqlalchemy.TextClause, **values: int) -> sqlalchemy.CursorResult[Any]:
        assert self._connection is not None
        return self._connection.execute(statement, values)

"""Opening the Optuna database: any URL, one line where it cannot be, patience where it goes away.

While a driver runs on an SQLite file, its latest trials are in a write-ahead log beside it: copy it then with
``sqlite3 widthsearch.db ".backup copy.db"`` (or ``VACUUM INTO``), never the ``.db`` file alone.  Once the
driver has ended, by itself or by Ctrl-C, the ``.db`` file has everything; after a kill copy
``widthsearch.db-wal`` with it.

No torch and no Ray here: `widthsearch show` starts fast.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
import tenacity
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from widthsearch.errors import UsageError
from widthsearch.plans.words import named

DEFAULT_URL = "sqlite:///widthsearch.db"
PATIENCE_SECONDS = 3600.0  # how long a driver waits for a database server that went away

# A PostgreSQL server that is gone without a farewell (a pulled cable) is noticed within half a minute.
_LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_DRIVERS = ("psycopg", "psycopg2")  # the Python drivers that are made of libpq
_GONE = ("57P01", "57P02", "57P03", "57P05", "25P03", "08")  # SQLSTATEs: shut down, starting up, cut off
_FINAL = ("authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")

T = TypeVar("T")
log = logging.getLogger(__name__)

optuna.logging.set_verbosity(optuna.logging.WARNING)


def url_from(option: str | None) -> str:
    """The storage URL: the option, else ``WIDTHSEARCH_STORAGE``, else a file in the working folder."""
    return option or os.environ.get("WIDTHSEARCH_STORAGE") or DEFAULT_URL


def secret_options(url: URL) -> list[str]:
    """The options of a URL that hold a password."""
    return [name for name in url.query if "pass" in name.lower() and name != "passfile"]


def hide_password(url: str) -> str:
    """The URL as it may be shown: its password, if any, as ``***``."""
    parsed = make_url(url)
    secret = dict.fromkeys(secret_options(parsed), "hidden")
    return parsed.update_query_dict(secret).render_as_string(hide_password=True)


def parse_url(url: str) -> URL:
    """The URL in SQLAlchemy's form; PostgreSQL without a driver means psycopg 3.  May raise UsageError."""
    try:
        url.encode()  # not the half characters that stand for bytes that are no text
        parsed = make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        parsed.get_dialect()
        if parsed.get_backend_name() != "sqlite" and url.count("@") > 1:
            raise ValueError("an @ in a password must be written %40")
    except Exception:
        # The value may hold a password in a place that only its author can see.
        shown = re.sub(r"(?is)(//[^/]*?:|pass\w*\W*).+", r"\1***", url.split("@")[-1])
        raise UsageError(
            f"storage {shown!r} is not a database URL; "
            "it should look like sqlite:///widthsearch.db or postgresql://user@host/database"
        ) from None
    return parsed


def sqlite_path(url: str) -> Path | None:
    """The file behind an SQLite URL, ``None`` for other databases."""
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        raise UsageError(f"storage {hide_password(url)!r} is in memory only: a search must be kept in a file")
    if "uri" in parsed.query or parsed.database.startswith("file:"):
        raise UsageError(f"storage {hide_password(url)!r}: give the path of the file, sqlite:///path.db")
    path = Path(parsed.database)
    with opening(url):
        path.exists()  # too long, or in a folder that is closed to us
    return path


@dataclass(frozen=True)
class Database:
    """An open Optuna database and the URL that it was opened by."""

    storage: optuna.storages.BaseStorage
    url: str

    @classmethod
    def open(cls, url: str, *, create: bool = False, patient: bool = False) -> Database:
        """See :func:`open_storage`."""
        return cls(open_storage(url, create=create, patient=patient), url)

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return hide_password(self.url)

    def command(self, verb: str, name: str, *options: str) -> str:
        """The command line that does ``verb`` to a study; see :func:`database_command`."""
        return database_command(self.url, verb, name, *options)

    def close(self) -> None:
        """Close all connections; of an SQLite file, fold its write-ahead log into it first, if nobody reads.

        Then a copy of that one file has all there is.  (The storage opens new connections if it is used.)
        """
        if not isinstance(self.storage, optuna.storages.RDBStorage):
            return
        self.storage.remove_session()
        fold_log(self.url, patience_seconds=5.0)
        self.storage.engine.dispose()


def fold_log(url: str, *, patience_seconds: float) -> None:
    """Fold an SQLite file's write-ahead log into it, unless somebody reads or writes for all that time."""
    path = sqlite_path(url)
    if path is None or not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=patience_seconds)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:  # a full disk: the log stays, and holds it all
        log.warning("the write-ahead log of %s stays beside it: %s", hide_password(url), error)


def database_command(url: str, verb: str, name: str, *options: str) -> str:
    """The command line that does ``verb`` to a study; names the storage unless it is found without."""
    where = [] if url == url_from(None) else ["--storage", hide_password(url)]
    return shlex.join(["widthsearch", verb, *named(name, *where, *options)])


@contextmanager
def opening(url: str) -> Iterator[None]:
    """Whatever goes wrong while a database is opened becomes a :class:`UsageError` without the password."""
    try:
        yield
    except ImportError as error:
        missing = error.name or getattr(error.__cause__ or error.__context__, "name", None)
        hint = "; pip install 'widthsearch[postgresql]'" if is_postgresql(url) else ""
        raise UsageError(
            f"storage {hide_password(url)!r}: its database driver is not installed ({missing}){hint}"
        ) from None
    except Exception as error:
        raise UsageError(f"storage {hide_password(url)!r} cannot be opened: {reason(error)}") from None


@contextmanager
def using() -> Iterator[None]:
    """Whatever goes wrong while an open database is used becomes a :class:`UsageError`."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UsageError(f"the database cannot be used: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What the database driver says, in one line; not the statement, nor what Optuna makes of it."""
    said = next((e.orig for e in _causes(error) if isinstance(e, DBAPIError)), None) or error
    return next(iter(str(said).splitlines()), type(said).__name__)


def is_postgresql(url: str) -> bool:
    """Whether this is the URL of a PostgreSQL server."""
    return parse_url(url).get_backend_name() == "postgresql"


def connect_args(url: URL) -> dict[str, Any]:
    """How to connect, beside what the URL itself says."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": 60}
    if url.get_backend_name() == "postgresql" and url.get_driver_name() in _DRIVERS:
        return {key: value for key, value in _LIBPQ.items() if key not in url.query}
    return {}


def open_storage(url: str, *, create: bool, patient: bool = False) -> optuna.storages.RDBStorage:
    """Open the database; with ``create``, make its file if it is not there.

    With ``patient``, a database server that goes away later is waited for whenever a connection is wanted;
    what was under way at that moment still raises, see :func:`connection_was_lost`.
    Raises :class:`UsageError` in one line if the URL is malformed or the database cannot be reached.
    """
    path, parsed = sqlite_path(url), parse_url(url)
    if path is not None and not create and not path.exists():
        raise UsageError(f"no database {str(path)!r}; launch a study first, or give --storage")
    options: dict[str, Any] = {"connect_args": connect_args(parsed)}
    if patient and path is None:
        options["pool_pre_ping"] = True  # a connection that died while nobody used it is replaced
    with opening(url):
        # Optuna fills in {SCHEMA_VERSION}: braces in a path are doubled, those in a password percent-encoded.
        braces = url.replace("{", "{{").replace("}", "}}")
        full = braces if path is not None else parsed.render_as_string(hide_password=False)
        try:
            storage = optuna.storages.RDBStorage(full, engine_kwargs=options)
        except Exception as error:
            twice = any(isinstance(cause, sqlalchemy.exc.IntegrityError) for cause in _causes(error))
            if not twice and "already exists" not in str(error):
                raise
            time.sleep(1)  # somebody else is making the tables at this moment
            storage = optuna.storages.RDBStorage(full, engine_kwargs=options)
    if path is not None:
        _tune_sqlite(storage.engine)
    elif patient:
        _wait_when_connecting(storage.engine)
    return storage


def _wait_when_connecting(engine: sqlalchemy.Engine) -> None:
    @sqlalchemy.event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, _record: Any, args: Any, options: Any) -> Any:
        return patiently(lambda: dialect.connect(*args, **options))


def patiently(action: Callable[[], T]) -> T:
    """What ``action`` returns, which is called again while the server is away.

    Raises its last error once ``PATIENCE_SECONDS`` are over, and every other error at once.
    """
    waiting = tenacity.Retrying(
        retry=tenacity.retry_if_exception(connection_was_lost),
        wait=tenacity.wait_exponential(multiplier=0.1, max=5.0),
        stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
        before_sleep=_say_once,
        reraise=True,
    )
    result = waiting(action)
    if waiting.statistics["attempt_number"] > 1:
        log.warning("the database answers again")
    return result


def _say_once(state: tenacity.RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome is not None and (error := state.outcome.exception()):
        log.warning("the database does not answer; waiting for it (%s)", reason(error))


def connection_was_lost(error: BaseException) -> bool:
    """Whether a database server went away, so that the same operation is worth another try.

    The first error of a database in the chain of causes decides.  A violated constraint, a wrong password or
    SQLite's full disk stay what they are however often one tries.
    """
    if not isinstance(error, Exception) or isinstance(error, UsageError):
        return False
    for cause in _causes(error):
        said: Any = cause.orig if isinstance(cause, DBAPIError) else cause
        libpq = type(said).__module__.split(".")[0] in _DRIVERS
        if libpq or isinstance(cause, DBAPIError):
            return bool(getattr(cause, "connection_invalidated", False)) or (libpq and _is_lost(said))
    return False


def _is_lost(said: Any) -> bool:
    if state := getattr(said, "sqlstate", None) or getattr(said, "pgcode", None):
        return str(state).startswith(_GONE)
    # While connecting there is no SQLSTATE, only text in the server's language.
    kinds = {c.__name__ for c in type(said).__mro__}
    return bool(kinds & {"OperationalError", "InterfaceError"}) and not any(f in str(said) for f in _FINAL)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _tune_sqlite(engine: sqlalchemy.Engine) -> None:
    # Readers (`show`) never block the driver, and a commit costs no fsync: after a power cut the last
    # trials may be missing (they are run again), but the file is never damaged.
    @sqlalchemy.event.listens_for(engine, "connect")
    def _set(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    engine.dispose()  # connections opened before this listener

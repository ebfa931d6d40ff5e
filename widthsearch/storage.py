"""The Optuna database: opening it, what is written into it, and the lock that keeps drivers apart.

The database is the only state of a search.  A study's attributes hold its plan, a trial's attributes one
training run; this file knows what they are called.  No torch and no Ray here: `widthsearch show` reads
with this file alone.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url

from widthsearch.errors import UsageError
from widthsearch.plan import Plan, Run

DEFAULT_URL = "sqlite:///widthsearch.db"

# Attributes of a study
PLAN = "widthsearch:plan"  # Plan.to_json()
SOURCE = "widthsearch:source"  # {"file", "name"}: where the Study was loaded from
CHANGES = "widthsearch:changes"  # field of the Study -> value given on the command line
FINGERPRINT = "widthsearch:fingerprint"  # name -> text, what must not change between launch and resume
FROZEN = "widthsearch:frozen"  # [{"name", "width", "reason"}]: would-be width variables
STATUS = "widthsearch:status"  # running | finished | interrupted | failed
STOPPED = "widthsearch:stopped_because"
DRIVER = "widthsearch:driver"  # host and process of the latest driver

# Attributes of a trial
KIND, ROUND, REPLICA, SEED = "kind", "round", "replica", "seed"
KEPT, PRUNE_RATIO = "kept", "prune_ratio"
MACS, PARAMS, TRAINING_MACS = "macs", "params", "training_macs"
ACCURACY, TEST_LOSS, TEST_ACCURACY = "accuracy", "test_loss", "test_accuracy"
SECONDS, HOST = "seconds", "host"
ERROR, INTERRUPTED = "error", "interrupted"

optuna.logging.set_verbosity(optuna.logging.WARNING)


def url_from(option: str | None) -> str:
    """The storage URL: the option, else ``WIDTHSEARCH_STORAGE``, else a file in the working folder."""
    return option or os.environ.get("WIDTHSEARCH_STORAGE") or DEFAULT_URL


def hide_password(url: str) -> str:
    """The URL as it may be shown: its password, if any, as ``***``."""
    parsed = make_url(url)
    secret = {key: "hidden" for key in parsed.query if "pass" in key.lower()}
    return parsed.update_query_dict(secret).render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
        if "@" in (parsed.host or ""):
            raise ValueError("an @ in a password must be written %40")
    except Exception:
        # The value may hold a password in a place that only its author can see: show its start alone.
        raise UsageError(
            f"storage {url.split('@')[-1]!r} is not a database URL; "
            "it should look like sqlite:///widthsearch.db or postgresql+psycopg://user@host/database"
        ) from None
    return parsed


def sqlite_path(url: str) -> Path | None:
    """The file behind an SQLite URL, ``None`` for other databases."""
    parsed = _parse(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        raise UsageError(f"storage {url!r} is in memory only: a search must be kept in a file")
    return Path(parsed.database)


def open_storage(url: str, *, create: bool) -> optuna.storages.RDBStorage:
    """Open the database; with ``create``, make it if it is not there.

    Raises :class:`UsageError` in one line if the URL is malformed or the database cannot be reached.
    """
    path = sqlite_path(url)
    if path is not None and not create and not path.exists():
        raise UsageError(f"no database {str(path)!r}; launch a study first, or give --storage")
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if path is not None else {}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
    except ImportError as error:
        raise UsageError(
            f"storage {hide_password(url)!r}: its database driver is not installed "
            f"({error.name or getattr(error.__cause__ or error.__context__, 'name', None)})"
        ) from None
    except Exception as error:
        reason = next(iter(str(getattr(error, "orig", None) or error).splitlines()), type(error).__name__)
        raise UsageError(f"storage {hide_password(url)!r} cannot be opened: {reason}") from None
    if path is not None:
        _tune_sqlite(storage.engine)
    return storage


def _tune_sqlite(engine: sqlalchemy.Engine) -> None:
    # Readers (`show`) never block the driver, and a commit costs no fsync: after a power cut the last
    # trials may be missing (they are run again), but the file is never damaged.
    @sqlalchemy.event.listens_for(engine, "connect")
    def _set(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    engine.dispose()  # connections opened before this listener


def study_names(storage: optuna.storages.BaseStorage) -> list[str]:
    """The names of all widthsearch studies in the database, oldest first."""
    return [
        s.study_name
        for s in optuna.study.get_all_study_summaries(storage=storage, include_best_trial=False)
        if PLAN in s.user_attrs
    ]


def load(name: str | None, storage: optuna.storages.BaseStorage, url: str) -> optuna.Study:
    """Load a widthsearch study; without a name, the latest.  :class:`UsageError` on an unknown name."""
    names = study_names(storage)
    if not names:
        raise UsageError(f"no study in {hide_password(url)!r} yet; launch one first")
    if name is not None and name not in names:
        raise UsageError(f"no study {name!r} in {hide_password(url)!r}; it has {', '.join(names)}")
    return optuna.load_study(study_name=name or names[-1], storage=storage)


def plan_of(study: optuna.Study) -> Plan:
    """The plan written at launch."""
    return Plan.from_json(study.user_attrs[PLAN])


def runs_of(trials: Sequence[FrozenTrial]) -> list[Run]:
    """The training runs among the trials of a study, in the order of their numbers."""
    runs = []
    for trial in trials:
        attrs = trial.user_attrs
        if KIND not in attrs or trial.state == TrialState.WAITING:
            continue  # not (yet) one of ours: asked for by hand, or orphaned before it got its slot
        states = {TrialState.COMPLETE: "complete", TrialState.RUNNING: "running"}
        state = states.get(trial.state, "interrupted" if attrs.get(INTERRUPTED) else "failed")
        runs.append(
            Run(
                key=(attrs[KIND], attrs[ROUND], attrs[REPLICA]),
                state=state,  # type: ignore[arg-type]
                widths=trial.params,
                value=trial.value if trial.state == TrialState.COMPLETE else None,
                prune_ratio=attrs.get(PRUNE_RATIO),
                error=attrs.get(ERROR, ""),
            )
        )
    return runs


def _lock(url: str, study_name: str) -> filelock.BaseFileLock:
    path = sqlite_path(url)

    # A database server gives no folder to lock in: then the lock holds on this host only.
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    base = Path(tempfile.gettempdir()) / f"widthsearch-{digest(url)}" if path is None else path
    slug = "".join(c if c.isalnum() or c in "-_" else "_" for c in study_name)[:60]
    if slug != study_name:  # two names must never share a lock
        slug += f"-{digest(study_name)}"
    return filelock.FileLock(f"{base}.{slug}.lock", timeout=0)


@contextmanager
def driver_lock(url: str, study_name: str) -> Iterator[None]:
    """Hold the study's driver lock.  Raises :class:`UsageError` at once if another process holds it.

    It dies with its process, so that a killed driver never blocks the next one.
    """
    lock = _lock(url, study_name)
    try:
        lock.acquire(timeout=0.5)  # `show` may hold it for a moment, to see whether anybody does
    except filelock.Timeout:
        holder = ""
        if study_name in study_names(storage := open_storage(url, create=False)):
            holder = load(study_name, storage, url).user_attrs.get(DRIVER, "")
        raise UsageError(
            f"study {study_name!r} is being run by another driver ({holder or 'it is just starting'}); "
            "stop that one first, or watch it with: widthsearch show " + shlex.quote(study_name)
        ) from None
    try:
        yield
    finally:
        lock.release()


def is_driven(url: str, study_name: str) -> bool:
    """Whether some process holds the study's driver lock now."""
    lock = _lock(url, study_name)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock:
            return False
    except filelock.Timeout:
        return True

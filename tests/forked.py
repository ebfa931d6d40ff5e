"""The real command in a process of its own, forked from one that has imported torch already.

As ``subprocess.Popen`` of the console script, in what the tests use of it, but for the seconds that a fresh
interpreter takes for its imports.  Ray is not imported there: it reads its environment when it is.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, TextIO

IMPORTED = ["torch._dynamo", "optuna", "rich", "widthsearch.cli", "widthsearch.driver.launch", "forked"]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(IMPORTED)


class Forked:
    """A command that runs: ``pid``, ``stdout``, ``stderr``, ``returncode`` and the methods of a ``Popen``."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        *,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        start_new_session: bool = False,
    ) -> None:
        self.args = arguments
        self.stdout, out = _end_of(stdout)
        self.stderr, err = (None, out) if stderr is subprocess.STDOUT else _end_of(stderr)
        ends = _Ends(out, err)
        given = (arguments, dict(environment), str(Path.cwd()), ends, start_new_session)
        self._process = _server.Process(target=_run, args=given)
        self._process.start()
        for fd in {out, err}:
            os.close(fd)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As that of a ``Popen``: negative for a signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it writes, once it has ended."""
        texts = ["", ""]

        def read(k: int, stream: TextIO) -> None:
            texts[k] = stream.read()

        readers = [
            threading.Thread(target=read, args=(k, stream), daemon=True)
            for k, stream in enumerate((self.stdout, self.stderr))
            if stream is not None
        ]
        for reader in readers:
            reader.start()
        began = time.monotonic()
        self.wait(timeout)
        for reader in readers:
            reader.join(None if timeout is None else max(1.0, timeout - (time.monotonic() - began)))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """If it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Asked to."""
        self.send_signal(signal.SIGTERM)


class _Ends:
    """Where a command writes to: file descriptors that travel with it."""

    def __init__(self, out: int, err: int) -> None:
        self.out, self.err = out, err

    def __getstate__(self) -> Any:
        return DupFd(self.out), DupFd(self.err)

    def __setstate__(self, state: Any) -> None:
        self.out, self.err = (end.detach() for end in state)


def _end_of(given: Any) -> tuple[TextIO | None, int]:
    """What is read here, if anything is, and the file descriptor that is written to there."""
    if given is subprocess.PIPE:
        reads, writes = os.pipe()
        return open(reads), writes  # noqa: PTH123, SIM115
    return None, os.dup(given if isinstance(given, int) else given.fileno())


def _run(arguments: list[str], environment: dict[str, str], folder: str, ends: _Ends, session: bool) -> None:
    if session:
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as an interpreter starts
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = [p for p in sys.path if p not in ("", folder)]
    for fd, own, name in ((1, ends.out, "stdout"), (2, ends.err, "stderr")):
        os.dup2(own, fd)
        unbuffered = "PYTHONUNBUFFERED" in environment
        raw = open(fd, "wb", buffering=0 if unbuffered else -1, closefd=False)  # noqa: PTH123, SIM115
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", write_through=unbuffered, line_buffering=fd == 2))
    os.close(ends.out)
    os.close(ends.err)
    sys.argv = ["widthsearch", *arguments]
    from widthsearch.cli import main

    main()

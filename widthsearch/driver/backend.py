"""Where a search that is started here prints, and where its trainings run.

Heavy imports (torch, Ray) happen inside the functions.
"""

from __future__ import annotations

import functools
import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from widthsearch.show.console import err, out, say

if TYPE_CHECKING:
    from rich.console import Console

    from widthsearch.database.ledger import Callback, Ledger
    from widthsearch.driver.run import Backend, Session
    from widthsearch.show.progress import Tracker
    from widthsearch.stopping import Stop
    from widthsearch.study.file import StudyFile

_USUAL = gc.get_threshold()
#: Importing torch and reading a thousand trials make hundreds of thousands of objects, and all of them stay.
#: To look through them for rubbish every 700 objects takes a quarter of the time to the first training.
_SELDOM = (50_000, 20, 20)


def collect_seldom() -> None:
    """Have Python look for rubbish seldom, until a training starts in this process."""
    gc.set_threshold(*_SELDOM)


def _collect_as_usual() -> None:
    """A training may leave rubbish that holds gigabytes."""
    if gc.get_threshold() == _SELDOM:
        gc.set_threshold(*_USUAL)


class _Messages(logging.Handler):
    """What the package logs while a search runs.

    A warning (waiting for a database) is for everybody and goes through the display.  What ``--verbose`` asks
    for goes to stderr, but where that is the terminal of a live display, through it: it would be torn.
    """

    def __init__(self, progress: Tracker) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self._progress.say(record.getMessage())
        elif self._progress.console.is_terminal and err.is_terminal:
            self._progress.say(self.format(record))
        else:
            say(self.format(record), err)


@contextmanager
def session_of(
    url: str,
    workers: int | None,
    address: str | None,
    checkpoints: str | None = None,
    console: Console = out,
    verbose: int = 0,
    tensorboard: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Iterator[Session]:
    """The session of a search that is started here; leaves the terminal clean at its end.

    ``url`` of the database; ``workers`` at a time (``None``: one per core, 0: in this process); ``address``
    of a Ray cluster (``None``: a Ray of its own); ``tensorboard``: the folder for its scalars; ``callbacks``:
    called after each training that ended.
    """
    from widthsearch.driver.run import Session
    from widthsearch.show.progress import LiveTracker, Tracker
    from widthsearch.show.tensorboard import Board

    if workers is None and address is None:
        workers = len(os.sched_getaffinity(0))
    board = None if tensorboard is None else Board(tensorboard)
    progress = (LiveTracker if console.is_terminal else Tracker)(console, board)
    progress.uses(workers or 1)
    logger, handler = logging.getLogger("widthsearch"), _Messages(progress)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    try:
        yield Session(url, _backend(workers, address), progress, checkpoints, callbacks)
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        progress.end()


def _backend(workers: int | None, address: str | None) -> Backend:
    if workers == 0:
        from widthsearch.driver.run import run_in_process

        def backend(ledger: Ledger, file: StudyFile, stop: Stop) -> None:
            _collect_as_usual()
            run_in_process(ledger, file, stop)

        return backend
    from widthsearch.cluster.environment import check_address, check_admission, prepare_environment

    if address is not None:
        check_address(address)
    prepare_environment(address)
    from widthsearch.cluster.workers import (
        run_on_ray,  # only now: Ray reads its environment when it is imported
    )

    if address is not None:
        check_admission(address)
    return functools.partial(run_on_ray, workers=workers, address=address)

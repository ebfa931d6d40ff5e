"""Running one study to its end: the one process that asks and tells."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from widthsearch.database import records
from widthsearch.database.ledger import Callback, Ledger, Progress
from widthsearch.errors import DatabaseGoneError, UsageError
from widthsearch.plans.plan import Done, Failed, Slot
from widthsearch.stopping import Stop, stop_on_signals
from widthsearch.study.file import StudyFile
from widthsearch.training.ranks import Ranks, runner_of
from widthsearch.training.trial import TrialRunner

log = logging.getLogger(__name__)

#: Runs the ledger's trials until there is nothing left to do or the user stops it.
Backend = Callable[[Ledger, StudyFile, Stop], None]


@dataclass(frozen=True)
class Session:
    """Where a search is kept, where its trainings run, and what a person sees of it.

    ``url`` of the database; ``checkpoints``: the folder or URL that all workers share; ``callbacks``: called
    after each training that ended, as those of the study.
    """

    url: str
    backend: Backend
    progress: Progress
    checkpoints: str | None = None
    callbacks: Sequence[Callback] = ()


@dataclass(frozen=True)
class Ended:
    """How a driver ended: ``finished``, ``interrupted`` or ``failed``, and why."""

    name: str
    status: str
    because: str


def run_in_process(ledger: Ledger, file: StudyFile, stop: Stop) -> None:
    """Run one trial after the other right here, without Ray: the same results, and a debugger works."""
    runner = runner_of(file, ledger.plan, (ledger.checkpoints.url, ledger.identity))
    with closing(runner):
        _run_all(ledger, runner)


def _run_all(ledger: Ledger, runner: TrialRunner | Ranks) -> None:
    while isinstance(slot := ledger.next_step(), Slot):
        slots, numbers = zip(*ledger.take(slot), strict=True)
        for number, outcome in zip(numbers, runner.run_all(slots), strict=True):
            ledger.end(number, outcome)


def run(ledger: Ledger, file: StudyFile, session: Session) -> Ended:
    """Run the session's backend and write down how it ended.  Called under the driver lock."""
    name = ledger.study.study_name
    ledger.callbacks = (*file.study.callbacks, *session.callbacks)
    family = records.family_in(ledger.study.user_attrs)
    with stop_on_signals(name if family is None else family.name) as stop:
        ledger.close_orphans()
        ledger.write(records.DRIVER, f"{socket.gethostname()}, process {os.getpid()}")
        ledger.write(records.STATUS, "running")
        ledger.progress.begin(ledger.plan, ledger.study)
        log.info("driving %r; checkpoints in %s", name, ledger.checkpoints.url)
        try:
            session.backend(ledger, file, stop)
        except KeyboardInterrupt:
            pass
        except BaseException as error:
            with suppress(Exception):  # if the database is what failed, the next driver does this
                ledger.close_orphans()
                ledger.write(records.STATUS, "interrupted")
            if isinstance(error, UsageError) and not isinstance(error, DatabaseGoneError):
                raise UsageError(f"{error} (study {name!r} is kept and can be resumed)") from error
            raise
        ledger.close_orphans()
        match ledger.next_step():
            case Done(because=because):
                status = "finished"
            case Failed(because=because):
                status = "failed"
            case _:
                status, because = "interrupted", "interrupted"
        ledger.write(records.STOPPED, because)
        ledger.write(records.STATUS, status)
    log.info("%r is %s: %s", name, status, because)
    if status != "interrupted":
        ledger.checkpoints.clear()
    return Ended(name, status, because)

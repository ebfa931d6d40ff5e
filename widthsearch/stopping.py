"""Ctrl-C, SIGTERM and a lost terminal: the first stops a search gently, a second one at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: A gentle stop that takes longer (a hanging cluster, a database that is away) becomes one at once.
PATIENCE_SECONDS = 8.0


def interrupt() -> None:
    """Stop whatever runs in the main thread of this process."""
    raise KeyboardInterrupt


class Stop:
    """What a signal does to the search: ``gently`` is called in the main thread, on the first one."""

    def __init__(self, study_name: str) -> None:
        self.gently: Callable[[], None] = interrupt
        self._line = (
            f"left at once, nothing is lost; go on with: widthsearch resume {shlex.quote(study_name)}"
        )
        self._timer: threading.Timer | None = None

    def listen(self) -> None:
        """Take the signals (again, if a library took them); what nohup has this process ignore stays so."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: self._on_signal())

    def _on_signal(self) -> None:
        if self._timer is not None:
            self._leave()
        self._timer = threading.Timer(PATIENCE_SECONDS, self._leave)
        self._timer.daemon = True
        self._timer.start()
        self.gently()

    def _leave(self) -> None:
        # Not through rich or print: the main thread may be in the middle of either.
        show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
        os.write(2, f"{show_cursor}\n{self._line}\n".encode())
        os._exit(130)

    def end(self) -> None:
        """The search has come to its end: nothing is to be left any more."""
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def stop_on_signals(study_name: str) -> Iterator[Stop]:
    """On the first signal stop gently; on a second, or if that takes long, leave at once.

    Nothing is lost by leaving at once: the database and the checkpoints hold all there is.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop = Stop(study_name)
    stop.listen()
    try:
        yield stop
    finally:
        stop.end()
        for number, handler in before.items():
            signal.signal(number, handler)

"""Ctrl-C, SIGTERM and a lost terminal: the first stops a search gently, a second one at once."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: A gentle stop that takes longer (a hanging cluster, a database that is away) becomes one at once.
PATIENCE_SECONDS = 8.0
TIDY_SECONDS = 1.0
INTERRUPTED = 130  # exit code
_last: list[Callable[[], None]] = []  # what is done before this process ends at once


def interrupt() -> None:
    """Stop whatever runs in the main thread of this process."""
    raise KeyboardInterrupt


def leave(message: str) -> None:
    """End this process now, whatever it is doing: not through print, nor through anybody's ``finally``."""
    show_cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
    os.write(2, f"{show_cursor}{message}\n".encode())
    for action in reversed(_last):
        tidying = threading.Thread(target=action, daemon=True)
        tidying.start()
        tidying.join(TIDY_SECONDS)
    os._exit(INTERRUPTED)


@contextmanager
def on_leaving(action: Callable[[], None]) -> Iterator[None]:
    """For as long as this holds, :func:`leave` calls ``action``, beside whatever runs, and waits a moment.

    So it must do no harm at any time, nor where it is cut short.
    """
    _last.append(action)
    try:
        yield
    finally:
        _last.remove(action)


def leave_on_signals() -> None:
    """Before there is anything to lose: end at once.

    (A KeyboardInterrupt in the middle of an import can land where Python ignores it.)
    """
    listen(lambda: leave("interrupted"))


def listen(action: Callable[[], None]) -> None:
    """On any of the signals call ``action`` in the main thread."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # what nohup has this process ignore stays so
            signal.signal(number, lambda *_: action())


class Stop:
    """What the first signal does to the search: ``gently`` is called in the main thread."""

    def __init__(self) -> None:
        self.gently: Callable[[], None] = interrupt

    def listen(self) -> None:
        """Take the signals (again, if a library took them)."""
        listen(lambda: self.gently())


@contextmanager
def stop_on_signals(study_name: str) -> Iterator[Stop]:
    """On the first signal stop gently; on a second, or if that takes long, leave at once.

    Nothing is lost by leaving at once: the database and the checkpoints hold all there is.  Outside of the
    main thread, where Python handles no signals, nothing is done.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # Signals are counted by a thread of its own: the main one may be deep in a library that does not return.
    ours, watched = socket.socketpair()
    ours.setblocking(False)
    before_fd = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    words = ["widthsearch", "resume", *(["--"] if study_name.startswith("-") else []), study_name]
    line = f"left at once, nothing is lost; go on with: {shlex.join(words)}"
    threading.Thread(target=_count, args=(watched, line), daemon=True).start()
    # Where Python ignores exceptions (while it frees an object, say) the first signal would be lost.
    before_hook = sys.unraisablehook
    sys.unraisablehook = lambda lost: (
        leave(f"\n{line}") if lost.exc_type is KeyboardInterrupt else before_hook(lost)
    )
    stop.listen()
    try:
        yield stop
    finally:
        sys.unraisablehook = before_hook
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()  # ends the thread


def _count(signals: socket.socket, line: str) -> None:
    """Leave at the second signal, or some time after the first."""
    with signals:
        while received := signals.recv(1):
            if received[0] in SIGNALS:
                break
        else:
            return  # the search ended without any
        signals.settimeout(PATIENCE_SECONDS)
        try:
            while received := signals.recv(1):
                if received[0] in SIGNALS:
                    leave(f"\n{line}")
        except TimeoutError:
            leave(f"\n{line}")

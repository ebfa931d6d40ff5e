"""Around every call of the user's code: whatever it raises is one line, whatever it changes is put back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from widthsearch.errors import CheckpointError, TrainingError, UsageError, describe_error
from widthsearch.stopping import SIGNALS

#: A training that does not end when its time is over (it catches all exceptions) is told again so often.
AGAIN_SECONDS = 5.0

_folder: str | None = None  # where the study file went when it was imported: all of its functions run there


class _TimeIsOverError(BaseException):
    """Raised in the middle of a training; no ``except Exception`` of the user's holds it."""


@contextmanager
def users_code(
    refusal: type[UsageError | TrainingError] = UsageError,
    what: str = "",
    *,
    path: Path | None = None,
) -> Iterator[None]:
    """Run the user's code: whatever it raises becomes a ``refusal`` in one line that begins with ``what``.

    Also ``sys.exit()`` and a ``KeyboardInterrupt`` of its own making; our own errors stay what they are, and
    where a signal did arrive, the code is interrupted, even if it catches that.  The working folder and the
    handlers of signals are what they were afterwards; where a study file changes the folder when it is
    imported (``path``), its functions run there.  The code finds no argument on its command line: a study
    file may parse some, and gets its defaults.
    """
    global _folder
    ours, arguments = _here(), sys.argv
    sys.argv = [str(path or arguments[0])] if arguments else []
    interruption: BaseException | None = None
    handlers = {n: signal.getsignal(n) for n in SIGNALS} if _in_main_thread() else {}

    def noticed(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
        def handle(number: int, frame: Any) -> None:
            nonlocal interruption
            try:
                handler(number, frame)
            except BaseException as raised:
                interruption = raised
                raise

        return handle

    for number, handler in handlers.items():
        if callable(handler):
            signal.signal(number, noticed(handler))
    if path is None:
        _go(_folder)
    try:
        yield
        if interruption is not None:
            raise interruption
    except (UsageError, TrainingError, _TimeIsOverError):
        raise
    except BaseException as error:
        if interruption is not None:
            raise interruption from None
        raise refusal(what + describe_error(error, path)) from error
    finally:
        if path is not None:
            _folder = there if (there := _here()) != ours else None
        _go(ours)
        sys.argv = arguments
        for number, handler in handlers.items():
            if handler is not None:  # of a library in C: it cannot be set again
                signal.signal(number, handler)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise :class:`TrainingError` in the middle of what takes longer than so many seconds.

    In the main thread alone, and not before a call into a library returns: what hangs in there is not ended.
    """
    if seconds is None or not _in_main_thread():
        yield
        return
    over = False

    def end(*_: Any) -> None:
        nonlocal over
        over = True
        raise _TimeIsOverError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    except (CheckpointError, KeyboardInterrupt):
        raise
    except BaseException:
        if not over:
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)
    if over:
        raise TrainingError(too_long(seconds))


def too_long(seconds: float) -> str:
    """Why a training was ended."""
    return f"it took longer than Study(timeout={seconds:g}) seconds"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _here() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # somebody has removed it
        return None


def _go(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)

"""The ways in which a search can refuse: wrong input, a failed training, a full disk."""

from __future__ import annotations

from pathlib import Path


class UsageError(Exception):
    """Wrong use or a bad study.  One line that quotes the bad value and says what would be right."""


class DatabaseGoneError(UsageError):
    """The study under a driver is gone, or another one is in its place: nothing more is written."""


class TrainingError(Exception):
    """A training run ended without a usable result (a loss that is not finite, say)."""


class CheckpointError(UsageError):
    """Checkpoints cannot be kept where they were to be kept: the search stops, and can be resumed."""


def describe_error(error: BaseException, path: Path | None = None) -> str:
    """An exception of the user's code in one line; with ``path``, the last line number inside that file."""
    line, tb = None, error.__traceback__
    while tb is not None:
        if path is not None and tb.tb_frame.f_code.co_filename == str(path):
            line = tb.tb_lineno
        tb = tb.tb_next
    if isinstance(error, SyntaxError):
        line = error.lineno
    try:
        lines = str(error).splitlines()
    except BaseException as failure:  # whatever it is, of the user's code as well
        lines = [f"(its text cannot be had: str() raises {type(failure).__name__})"]
    text = next((s.strip() for s in lines if s.strip()), "")
    text = "".join(c if c.isprintable() else "?" for c in text)  # half characters, a terminal's commands
    return type(error).__name__ + (f": {text}" if text else "") + (f" (line {line})" if line else "")

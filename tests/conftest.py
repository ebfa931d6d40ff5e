"""Fixtures of the tests that run the command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import STARTED, Finished, clean_process, command, trials, write_study

# One thread, here and in all that is started: two test processes on two cores, each with two threads that wait for
# one another in a loop, take up to five times as long.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Run in the background of a script, or under nohup, pytest is told to ignore these, and what it starts would too.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler)


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test in a folder of its own, with nothing from the user's environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("WIDTHSEARCH_STORAGE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    with clean_process():
        yield
    for process in STARTED:
        process.kill()  # what it started dies with it


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_study(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A study that ran to its end, undisturbed: shared, read only."""
    folder = tmp_path_factory.mktemp("finished")
    file, url = write_study(folder), f"sqlite:///{folder / 'widthsearch.db'}"
    result = command("launch", file, "--storage", url)
    return Finished(file, url, result, trials(url))

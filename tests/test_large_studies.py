"""A thousand trials in the database: every command still answers at once, and the next trial is asked at once."""

from __future__ import annotations

import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from commands import Quiet, interrupt, real_command, start, trials, write_study
from optuna.trial import TrialState
from played import fill, outcome_of

from widthsearch.database.connection import Database
from widthsearch.database.ledger import Ledger
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import load, plan_of, runs_of
from widthsearch.plans.plan import Slot
from widthsearch.plans.search import next_step

MANY = 1000
COMMAND_SECONDS = 3.0  # from the start of its process
ASK_SECONDS = 0.1  # .04 on an idle machine; beside other tests each of its many small commits waits
TRIES = 5  # until one is fast enough: other programs may run on this machine

pytestmark = [pytest.mark.usefixtures("working_folder"), pytest.mark.slow]

# Two ways to a thousand trials: many rounds, and few rounds whose verdict is trained on many fresh seeds.
SHAPES = {
    "many rounds": {"rounds": 100, "replicas": 10, "seeds": 10, "report_seeds": 8},
    "many seeds": {"rounds": 2, "replicas": 16, "seeds": 16, "report_seeds": 500},
}


class Large(NamedTuple):
    file: Path
    url: str

    def copy(self, folder: Path) -> str:
        """The URL of a copy of the database that may be written into."""
        copy = folder / "widthsearch.db"
        with closing(sqlite3.connect(self.file)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)  # what is still in the write-ahead log as well
        return f"sqlite:///{copy}"


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Large:
    """An interrupted study with a thousand finished trials, and more to do."""
    folder = tmp_path_factory.mktemp("large")
    file, database = write_study(folder), folder / "widthsearch.db"
    url = f"sqlite:///{database}"
    # Neither balance nor patience ends the search before its last round.
    interrupt(file, 0, url, **request.param, tolerance=0.0, patience=200)
    fill(load("tiny", Database.open(url)), MANY)
    return Large(database, url)


def test_the_thousand_trials_are_those_that_the_search_would_have_made(large: Large) -> None:
    study = load("tiny", Database.open(large.url))
    plan, found = plan_of(study).plan, study.get_trials()
    runs = runs_of(found)
    assert [r.state for r in runs] == ["interrupted"] + MANY * ["complete"]
    assert isinstance(next_step(plan, runs), Slot)  # there is more to do
    for k in random.Random(1).sample(range(MANY), 20):
        step = next_step(plan, runs[: 1 + k])
        assert isinstance(step, Slot)
        assert (step.key, dict(step.widths)) == (runs[1 + k].key, runs[1 + k].widths)


def slowdown() -> float:
    """How much slower this machine is now than two idle cores, on which this loop takes a fifth of a second."""
    loop = [sys.executable, "-c", "sum(i * i for i in range(3_000_000))"]
    began = time.perf_counter()
    subprocess.run(loop, check=True)
    return max(1.0, (time.perf_counter() - began) / 0.2)


def fastest(*args: str | Path) -> float:
    """The seconds that the real command takes, on an idle machine."""
    seconds = []
    for _ in range(TRIES):
        if seconds and min(seconds) < COMMAND_SECONDS:
            break
        slower = slowdown()
        began = time.perf_counter()
        result = real_command(*args)
        seconds.append((time.perf_counter() - began) / slower)
        assert result.code == 0, result.err
    return min(seconds)


@pytest.mark.parametrize("args", [("show",), ("show", "--json"), ("list",)], ids=" ".join)
def test_what_there_is_is_shown_at_once(large: Large, args: tuple[str, ...]) -> None:
    seconds = fastest(*args, "--storage", large.url)
    print(f"{' '.join(args)}: {seconds:.2f} s")
    assert seconds < COMMAND_SECONDS


def test_resume_starts_training_at_once(large: Large, tmp_path: Path) -> None:
    """From the start of the process; torch alone takes two of the seconds."""
    seconds = []
    for _ in range(TRIES):
        if seconds and min(seconds) < COMMAND_SECONDS:
            break
        url, slower = large.copy(tmp_path), slowdown()
        began = time.perf_counter()
        process = start("resume", "--workers", "0", "--storage", url, PYTHONUNBUFFERED="1")
        assert process.stdout is not None
        while f"going on after {MANY} finished trials" not in process.stdout.readline():
            assert process.poll() is None
        seconds.append((time.perf_counter() - began) / slower)  # what comes next is asking
        assert f"trial {MANY + 1}" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert len(trials(url)) > MANY + 1
    print(f"resume: {min(seconds):.2f} s")
    assert min(seconds) < COMMAND_SECONDS


def test_the_next_trial_is_asked_and_told_at_once(large: Large, tmp_path: Path) -> None:
    url, noise = large.copy(tmp_path), random.Random(2)
    study = load("tiny", Database.open(url))
    asks, tells = [], []
    with driver_lock(url, "tiny") as lock:
        ledger = Ledger(study, Quiet(), lock)
        for _ in range(30):
            began = time.perf_counter()
            slot = ledger.next_step()
            assert isinstance(slot, Slot)
            number = ledger.ask(slot)
            asked = time.perf_counter()
            outcome = {"val_loss": 1.0, **outcome_of(ledger.plan.plan, slot, noise)}
            ledger.tell(number, outcome)
            asks.append(asked - began)
            tells.append(time.perf_counter() - asked)
    complete = [t for t in study.get_trials() if t.state == TrialState.COMPLETE]
    assert len(complete) == MANY + 30
    slower = slowdown()
    ask, tell = fastest_median(asks) / slower, fastest_median(tells) / slower
    print(f"ask {1000 * ask:.0f} ms, tell {1000 * tell:.0f} ms")
    assert ask < ASK_SECONDS
    assert tell < ASK_SECONDS


def fastest_median(seconds: list[float]) -> float:
    """The median of the best third in a row."""
    third = len(seconds) // TRIES
    return min(statistics.median(seconds[k : k + third]) for k in range(0, len(seconds), third))

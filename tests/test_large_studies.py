"""Five hundred trials in the database: every command answers with work in proportion, and asking is a constant.

What is counted are Python's calls and the database's statements, not seconds: those depend on what else the
machine does.  (A million calls are about a second of an idle core.)
"""

from __future__ import annotations

import cProfile
import pstats
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import sqlalchemy
from commands import MODEL, Quiet, clean_process, command, here, interrupt, trials, write_study
from optuna.trial import TrialState
from played import fill, outcome_of

from widthsearch.database.connection import Database
from widthsearch.database.ledger import Ledger
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import load, plan_of, runs_of
from widthsearch.driver.resume import resume as resume_here
from widthsearch.plans.plan import Slot
from widthsearch.plans.search import next_step

FEW, MANY = 50, 500

pytestmark = [pytest.mark.usefixtures("working_folder"), pytest.mark.slow]

# Two ways to many trials: many rounds, and few rounds whose verdict is trained on many fresh seeds.
SHAPES = {
    "many rounds": {"rounds": 100, "replicas": 10, "seeds": 10, "report_seeds": 8},
    "many seeds": {"rounds": 2, "replicas": 16, "seeds": 16, "report_seeds": 500},
}

# In a network of two layers there are soon no widths that no round has proposed.
_HIDDEN = ", ".join(f"nn.Linear({8 if k == 0 else 40}, 40), nn.ReLU()" for k in range(4))
FOUR = f"return nn.Sequential({_HIDDEN}, nn.Linear(40, 3))"

DISAGREEING = 4.0  # units: so that all replicas of a measure are made

TIMES = 10
BATCHES = 50  # statements that read all trials, so many at a time


class Work(NamedTuple):
    """What something took."""

    calls: int
    statements: int


def work(action: Callable[[], object]) -> Work:
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
    profile = cProfile.Profile()
    try:
        profile.runcall(action)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", count)
    return Work(int(pstats.Stats(profile).total_calls), statements)  # type: ignore[attr-defined]


class Large(NamedTuple):
    files: dict[int, Path]  # by the number of finished trials

    def url(self, many: int) -> str:
        return f"sqlite:///{self.files[many]}"

    def copy(self, many: int, folder: Path) -> str:
        """The URL of a copy of the database that may be written into."""
        copy = folder / f"{many}.db"
        with closing(sqlite3.connect(self.files[many])) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)  # what is still in the write-ahead log as well
        return f"sqlite:///{copy}"


@pytest.fixture(
    scope="module",
    params=[
        SHAPES["many rounds"],
        pytest.param(SHAPES["many seeds"], marks=pytest.mark.nightly),
    ],
    ids=SHAPES.keys(),
)
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Large:
    """An interrupted study with hundreds of finished trials, and more to do; and one with a tenth of them."""
    folder = tmp_path_factory.mktemp("large")
    file = write_study(folder, (MODEL, FOUR))
    found = Large({many: folder / f"{many}.db" for many in (FEW, MANY)})
    for many in found.files:
        # Neither balance nor patience ends the search before its last round.
        interrupt(file, 0, found.url(many), **request.param, tolerance=0.0, patience=200)
        fill(load("tiny", Database.open(found.url(many))), many, DISAGREEING)
    return found


def test_the_trials_are_those_that_the_search_would_have_made(large: Large) -> None:
    study = load("tiny", Database.open(large.url(MANY)))
    plan, found = plan_of(study).plan, study.get_trials()
    runs = runs_of(found)
    assert [r.state for r in runs] == ["interrupted"] + MANY * ["complete"]
    assert isinstance(next_step(plan, runs), Slot)  # there is more to do
    for k in random.Random(1).sample(range(MANY), 20):
        step = next_step(plan, runs[: 1 + k])
        assert isinstance(step, Slot)
        assert (step.key, dict(step.widths)) == (runs[1 + k].key, runs[1 + k].widths)


@pytest.mark.parametrize("args", [("show",), ("show", "--json"), ("list",)], ids=" ".join)
def test_what_there_is_is_shown_with_work_in_proportion(large: Large, args: tuple[str, ...]) -> None:
    few, many = (work(lambda n=n: command(*args, "--storage", large.url(n))) for n in (FEW, MANY))
    print(args, few, many)
    assert many.calls - few.calls < 2500 * (MANY - FEW)
    assert few.statements < 60 and many.statements < few.statements + BATCHES


def test_a_search_goes_on_with_work_in_proportion(large: Large, tmp_path: Path) -> None:
    """From the database to the next trial."""

    def resume(url: str, many: int) -> None:
        with clean_process():
            ended = resume_here(
                "tiny", here(Quiet(many + 1), url), file=str(large.files[many].parent / "tiny.py")
            )
        assert ended.status == "interrupted"
        assert len(trials(url)) == many + 2

    few, many = (work(lambda n=n: resume(large.copy(n, tmp_path), n)) for n in (FEW, MANY))
    print("resume", few, many)
    assert many.calls - few.calls < 4000 * (MANY - FEW)
    assert few.statements < 300 and many.statements < few.statements + BATCHES


def test_the_next_trial_is_asked_and_told_with_work_in_proportion(large: Large, tmp_path: Path) -> None:
    asked, told, noise = {}, {}, random.Random(2)
    for many in (FEW, MANY):
        url = large.copy(many, tmp_path)
        study = load("tiny", Database.open(url))
        asks, tells = [], []
        with driver_lock(url, "tiny") as lock:
            ledger = Ledger(study, Quiet(), lock)
            for _ in range(TIMES):
                numbers: list[tuple[int, Slot]] = []

                def ask() -> None:
                    slot = ledger.next_step()  # noqa: B023
                    assert isinstance(slot, Slot)
                    numbers.append((ledger.ask(slot), slot))  # noqa: B023

                asks.append(work(ask))
                ((number, slot),) = numbers
                outcome = {"val_loss": 1.0, **outcome_of(ledger.plan.plan, slot, noise, DISAGREEING)}
                tells.append(work(lambda: ledger.tell(number, outcome)))  # noqa: B023
        assert sum(t.state == TrialState.COMPLETE for t in study.get_trials()) == many + TIMES
        asked[many], told[many] = sorted(asks)[TIMES // 2], sorted(tells)[TIMES // 2]
    print("ask", asked, "tell", told)
    assert asked[MANY].calls < asked[FEW].calls + 400 * (MANY - FEW)
    assert told[MANY].calls < 1.5 * told[FEW].calls
    assert asked[MANY].statements <= asked[FEW].statements + 10
    assert told[MANY].statements <= told[FEW].statements + 10

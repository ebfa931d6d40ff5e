"""A tiny study, and the command line run on it: shared by the tests that look from outside."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import optuna
import pytest
import torch
from forked import Forked
from optuna.trial import FrozenTrial, TrialState

from widthsearch import cli
from widthsearch.database import records
from widthsearch.database.connection import Database
from widthsearch.database.folder import Folder
from widthsearch.database.ledger import Progress
from widthsearch.driver.launch import launch
from widthsearch.driver.resume import study_of
from widthsearch.driver.run import Session, run_in_process
from widthsearch.plans.plan import Slot
from widthsearch.stopping import SIGNALS

STUDY = '''
"""Does a tiny network on random numbers want other widths?"""

import torch
from torch import nn

from widthsearch import Budget, Recipe, Study


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.out = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def model():
    return Net()


def data():
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return (x[:64], y[:64]), (x[64:], y[64:])


study = Study(
    model=model,
    data=data,
    budget=Budget(params="0.5x", macs="any"),
    recipe=Recipe(epochs=1, batch_size=32, lr=0.1),
    rounds=1,
    replicas=2,
    seeds=2,
    final_seeds=0,
    report_seeds=2,
    step_sizes=[0.6],
    doublings=0,
)
'''
TRIALS = 11  # 3 of both starts, 2 measures, 2 scores, and 2 more of each network for the report

Edit = tuple[str, str]


def write_study(folder: Path, *edits: Edit, name: str = "tiny") -> Path:
    """The study file above, with each ``(old, new)`` replaced."""
    text = STUDY
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the study file"
        text = text.replace(old, new)
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


# Edits of the study file
HEADER = "class Net(nn.Module):"
BUDGET, RECIPE, ROUNDS = (
    'budget=Budget(params="0.5x", macs="any")',
    "recipe=Recipe(epochs=1, batch_size=32, lr=0.1)",
    "rounds=1",
)
MODEL, DATA = "return Net()", "return (x[:64], y[:64]), (x[64:], y[64:])"


def setting(text: str) -> Edit:
    return (ROUNDS, f"{ROUNDS},\n    {text}")


def custom_loss(body: str, recipe: str = "") -> tuple[Edit, Edit]:
    """A loss of the user's own: its body says what to do before the usual cross-entropy."""
    code = f"def loss(output, target):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    code += "    return nn.functional.cross_entropy(output, target)\n\n\n"
    return ("def model():", f"{code}def model():"), (RECIPE, f"{RECIPE[:-1]}, loss=loss{recipe})")


# Running the command -------------------------------------------------------------------------------------


class Result(NamedTuple):
    code: int
    out: str
    err: str


@contextmanager
def clean_process() -> Iterator[None]:
    """Leave no trace of a study file that was loaded, of a training or of a command, in this process."""
    path, modules, threads = list(sys.path), set(sys.modules), torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith("_study_"):
                del sys.modules[name]
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def command(*args: str | Path) -> Result:
    """Run ``widthsearch ARGS`` in this process; searches run without Ray."""
    given = [str(a) for a in args]
    if given[0] in ("launch", "resume") and "--workers" not in given:
        given += ["--workers", "0"]
    out, err = io.StringIO(), io.StringIO()
    with clean_process(), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.app(given, prog_name="widthsearch")
    code = end.value.code
    return Result(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


STARTED: list[Forked] = []  # what a failed test leaves running is killed after it


def start(*args: str | Path, **given: Any) -> Forked:
    """Start the real command in a process of its own, in the working folder.

    ``stdout``, ``stderr`` and ``start_new_session`` are as those of ``subprocess.Popen``; other keywords are
    variables of its environment.
    """
    STARTED[:] = [p for p in STARTED if p.poll() is None]
    streams = {k: given.pop(k) for k in ("stdout", "stderr", "start_new_session") if k in given}
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = Forked([*map(str, args)], {**env, "TERM": "xterm-256color", **given}, **streams)
    STARTED.append(process)
    return process


def real_command(*args: str | Path, timeout: float = 300, **environment: str) -> Result:
    """Run the real command to its end."""
    process = start(*args, **environment)
    out, err = process.communicate(timeout=timeout)
    return Result(process.returncode, out, err)


def assert_refused(result: Result, *fragments: str) -> None:
    """One line on stderr that starts with ``error:`` and holds the fragments; exit code 2."""
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    for fragment in fragments:
        assert fragment in lines[0]
    assert result.code == 2


class Quiet:
    """A progress display that shows nothing, and presses Ctrl-C when the given trial is about to run."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.workers = 1

    def begin(self, plan: Any, study: optuna.Study) -> None:
        pass

    def started(self, number: int, slot: Slot) -> None:
        if number == self.stop_at:
            raise KeyboardInterrupt

    def uses(self, workers: int) -> None:
        pass

    def finished(self, number: int, slot: Slot, outcome: Mapping[str, Any]) -> None:
        pass

    def failed(self, number: int, slot: Slot, error: str) -> None:
        pass

    def dropped(self, number: int) -> None:
        pass

    def say(self, text: str) -> None:
        pass


URL = "sqlite:///widthsearch.db"


def here(progress: Progress, url: str = URL, checkpoints: str | None = None) -> Session:
    """A session in this process, without Ray."""
    return Session(url, run_in_process, progress, checkpoints)


def interrupt(file: Path, stop_at: int, url: str = URL, name: str | None = None, **changes: Any) -> None:
    """Launch the study and stop it when trial ``stop_at`` is about to run."""
    with clean_process():
        ended = launch(str(file), here(Quiet(stop_at), url), name=name, changes=changes)
    assert ended.status == "interrupted"


def worker(file: Path, name: str = "tiny") -> tuple[Any, Slot]:
    """A worker of Ray's for the study of that name, in this process, and what it would train next."""
    from widthsearch.cluster.workers import TrialActor, what_workers_need  # imports Ray

    study = records.load(name, Database.open(URL))
    folder = Folder.of_study(study.user_attrs[records.CHECKPOINTS], name, study.user_attrs[records.IDENTITY])
    plan = records.plan_of(study)
    ledger: Any = SimpleNamespace(study=study, plan=plan, checkpoints=folder, identity="")
    actor = object.__new__(TrialActor)
    actor.setup({"slots": []}, what_workers_need(ledger, study_of(study, str(file))))
    slot = plan.next_step([])
    assert isinstance(slot, Slot)
    return actor, slot


def trained_by(actor: Any, slot: Slot) -> dict[str, Any]:
    """What the worker sends back; how much the package logs is afterwards as it was."""
    level = logging.getLogger("widthsearch").level
    actor.reset_config({"slots": [{**vars(slot), "widths": dict(slot.widths)}]})
    with clean_process():
        sent = json.loads(actor.step()["outcome"])
    assert logging.getLogger("widthsearch").level == level
    return sent


def trials(url: str = URL, name: str = "tiny") -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=url).get_trials()


def snapshot(url: str = URL, name: str = "tiny") -> Any:
    """Everything the database holds about a study."""
    study = optuna.load_study(study_name=name, storage=url)
    return study.user_attrs, study.get_trials()


def complete(found: list[FrozenTrial]) -> dict[tuple[Any, ...], Any]:
    """What the completed trials found, by slot; without what may differ from run to run."""
    results = {}
    for t in found:
        if t.state == TrialState.COMPLETE:
            a = t.user_attrs
            key = tuple(a.get(k) for k in ("kind", "round", "replica", "step", "arm", "repeat", "budget"))
            if a.get("arm") == "report":  # told apart by its widths
                key += (str(sorted(t.params.items())),)
            assert key not in results
            rest = {k: v for k, v in a.items() if k not in ("seconds", "host")}
            results[key] = (t.params, t.value, rest, t.constraints)
    return results


class Finished(NamedTuple):
    file: Path
    url: str
    result: Result
    trials: list[FrozenTrial]

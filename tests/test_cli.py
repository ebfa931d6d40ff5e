"""The command line from outside: what it refuses and how, what it keeps when stopped, what it prints."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from widthsearch import cli, search
from widthsearch.plan import Slot
from widthsearch.storage import driver_lock

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
    budget=Budget(params="0.5x"),
    recipe=Recipe(epochs=1, batch_size=32, lr=0.1),
    rounds=1,
    replicas=2,
    seeds=2,
    report_seeds=2,
)
'''
TRIALS = 10  # 2 measures, 2 scores, 2 baselines, and 2 more of each network for the report

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
BUDGET, RECIPE, ROUNDS = (
    'budget=Budget(params="0.5x")',
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
    """Leave no trace of a study file that was loaded, or of a training, in this process."""
    path, modules, threads = list(sys.path), set(sys.modules), torch.get_num_threads()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith("_study_"):
                del sys.modules[name]
        torch.set_num_threads(threads)


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


def start(*args: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start the real command in a process of its own, in the working folder."""
    script = Path(sys.executable).with_name("widthsearch")
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return subprocess.Popen(
        [str(script), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**env, "TERM": "xterm-256color", **environment},
    )


def real_command(*args: str | Path, **environment: str) -> Result:
    """Run the real command to its end."""
    process = start(*args, **environment)
    out, err = process.communicate(timeout=120)
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

    def begin(self, plan: Any, study: optuna.Study) -> None:
        pass

    def started(self, number: int, slot: Slot) -> None:
        if number == self.stop_at:
            raise KeyboardInterrupt

    def finished(self, number: int, slot: Slot, outcome: Mapping[str, Any]) -> None:
        pass

    def failed(self, number: int, slot: Slot, error: str) -> None:
        pass


URL = "sqlite:///widthsearch.db"


def interrupt(file: Path, stop_at: int, url: str = URL, **changes: Any) -> None:
    """Launch the study and stop it when trial ``stop_at`` is about to run."""
    with clean_process():
        ended = search.launch(
            str(file),
            name=None,
            url=url,
            changes=changes,
            backend=search.run_in_process,
            progress=Quiet(stop_at),
        )
    assert ended.status == "interrupted"


def trials(url: str = URL, name: str = "tiny") -> list[FrozenTrial]:
    return optuna.load_study(study_name=name, storage=url).get_trials()


def snapshot(url: str = URL, name: str = "tiny") -> Any:
    """Everything the database holds about a study."""
    study = optuna.load_study(study_name=name, storage=url)
    return study.user_attrs, study.get_trials()


def complete(found: list[FrozenTrial]) -> dict[tuple[str, int, int], Any]:
    """What the completed trials found, by slot; without what may differ from run to run."""
    results = {}
    for t in found:
        if t.state == TrialState.COMPLETE:
            a = t.user_attrs
            key = (a["kind"], a["round"], a["replica"])
            assert key not in results
            rest = {k: v for k, v in a.items() if k not in ("seconds", "host")}
            results[key] = (t.params, t.value, rest, t.constraints)
    return results


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test in a folder of its own, with nothing from the user's environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("WIDTHSEARCH_STORAGE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    with clean_process():
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_study(tmp_path)


class Finished(NamedTuple):
    file: Path
    url: str
    result: Result
    trials: list[FrozenTrial]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A study that ran to its end, undisturbed: shared, read only."""
    folder = tmp_path_factory.mktemp("finished")
    file, url = write_study(folder), f"sqlite:///{folder / 'widthsearch.db'}"
    result = command("launch", file, "--storage", url)
    return Finished(file, url, result, trials(url))


# Refused launches ----------------------------------------------------------------------------------------


class Bad(NamedTuple):
    edits: tuple[Edit, ...]
    says: tuple[str, ...]
    args: tuple[str, ...] = ()


HEADER = "class Net(nn.Module):"
BAD_STUDIES = {
    "file raises": Bad(((HEADER, f"1 / 0\n\n\n{HEADER}"),), ("tiny.py", "ZeroDivisionError", "line 10")),
    "file raises in a helper": Bad(
        ((HEADER, f"def f(x):\n    return x.nope\n\n\nf(1)\n\n\n{HEADER}"),), ("'nope'", "line 11")
    ),
    "file exits": Bad(((HEADER, f"raise SystemExit(0)\n\n\n{HEADER}"),), ("tiny.py", "SystemExit", "line 10")),
    "syntax error": Bad(((HEADER, HEADER[:-1]),), ("tiny.py", "SyntaxError", "line 10")),
    "import error": Bad((("import torch\n", "import torhc\n"),), ("torhc", "line 4")),
    "model raises": Bad(((MODEL, "raise OSError('no weights\\nat all')"),), ("model() raised OSError: no weights",)),
    "model does not fit the data": Bad((("nn.Linear(8, 16)", "nn.Linear(9, 16)"),), ("Net", "2x8")),
    "model is no module": Bad(((MODEL, "return 'a network'"),), ("'a network'", "torch.nn.Module")),
    "model is the class": Bad(((MODEL, "return Net"),), ("Net", "torch.nn.Module")),
    "data raises": Bad(((DATA, "raise KeyError('left')"),), ("data() raised KeyError: 'left'",)),
    "data is nothing": Bad(((DATA, "return None"),), ("NoneType", "(train, validation[, test])")),
    "data is one split": Bad(((DATA, "return [(x, y)]"),), ("data() returned", "(train, validation[, test])")),
    "data is numpy": Bad(((DATA, "return (x.numpy(), y.numpy()), (x, y)"),), ("train", "tensors")),
    "data has another length": Bad(((DATA, "return (x, y), (x, y[:7])"),), ("validation", "96", "7")),
    "data is a number": Bad(((DATA, "return (x, y), 5"),), ("validation", "int", "dataset")),
    "data is too little": Bad(((DATA, "return (x[:1], y[:1]), (x, y)"),), ("train", "fewer than 2")),
    "label too high": Bad(((DATA, "return (x, y), (x, y + 1)"),), ("validation", "label 3", "3 classes", "0 to 2")),
    "label negative": Bad(((DATA, "return (x, y - 5), (x, y)"),), ("train", "label -5", "0 to 2")),
    "labels are floats": Bad(((DATA, "return (x, y.float()), (x, y)"),), ("loss", "RuntimeError")),
    "loss raises": Bad(custom_loss("raise ValueError('bad target')"), ("loss", "ValueError: bad target")),
    "loss is no scalar": Bad(custom_loss("return output"), ("loss", "(2, 3)", "scalar")),
    "loss is no function": Bad(((RECIPE, f"{RECIPE[:-1]}, loss='mse')"),), ("loss", "'mse'")),
    # Budget
    "budget too small": Bad(((BUDGET, "budget=Budget(params=10)"),), ("params=10", "too small", "params=17")),
    "budget too small for over-wide": Bad(
        ((BUDGET, "budget=Budget(params=17)"), setting("over=1.5")), ("params=17", "over")
    ),
    "budget too small for the minimum": Bad(
        ((BUDGET, "budget=Budget(macs=100)"), setting("minimum=8")), ("macs=100", "too small", "macs=152")
    ),
    "budget not a Budget": Bad(((BUDGET, "budget='0.5x'"),), ("'0.5x'", "Budget(macs=")),
    "budget without limits": Bad(((BUDGET, "budget=Budget()"),), ("empty", "Budget(macs='0.25x')")),
    "budget of an unknown resource": Bad(((BUDGET, "budget=Budget(flops='0.5x')"),), ("flops", "line")),
    **{
        f"budget amount {amount}": Bad(
            ((BUDGET, f"budget=Budget(params={amount})"),), (f"params={amount}", wanted)
        )
        for amount, wanted in {
            "'abc'": "'0.25x'", "''": "'0.25x'", "'-1'": "'0.25x'", "'1 GB'": "'0.25x'", "'nan'": "'0.25x'",
            "'0x'": "above 0", "'1/0x'": "above 0", "0": "above 0", "-1": "above 0", "[1]": "above 0",
            "inf": "above 0",
        }.items() if amount != "inf"
    },
    "--budget of an unknown resource": Bad((), ("'flops=1'", "'flops'", "macs, params"), ("--budget", "flops=1")),
    "--budget without amount": Bad((), ("'macs'", "macs=0.25x"), ("--budget", "macs")),
    "--budget with half an amount": Bad((), ("'macs='", "macs=0.25x"), ("--budget", "macs=0.5x,macs=")),
    "--budget empty": Bad((), ("''", "macs=0.25x"), ("--budget", "")),
    "--budget of nonsense": Bad((), ("macs='abc'", "'0.25x'"), ("--budget", "macs=abc")),
    "--budget of nothing": Bad((), ("params='0x'", "above 0"), ("--budget", "macs=0.5x,params=0x")),
    "--budget negative": Bad((), ("macs='-1'", "'0.25x'"), ("--budget", "macs=-1")),
    "--budget twice the same": Bad((), ("'macs'", "twice"), ("--budget", "macs=0.5x,macs=0.2x")),
    "--budget too small": Bad((), ("macs=3", "too small"), ("--budget", "macs=3")),
    # Settings
    "unknown variable in minimum": Bad((setting("minimum={'fc9': 4}"),), ("'fc9'", "fc1, fc2")),
    "minimum of 0": Bad((setting("minimum=0"),), ("minimum", "0 ", "whole number")),
    "multiple_of with an unknown variable": Bad((setting("multiple_of={'out': 4}"),), ("'out'", "fc1, fc2")),
    "multiple_of a fraction": Bad((setting("multiple_of={'fc1': 1.5}"),), ("1.5", "'fc1'", "whole number")),
    **{
        f"Study({text})": Bad((setting(text),), (f"Study({text})", wanted))
        for text, wanted in {
            "over=1": "above 1", "over='big'": "finite number", "pressure='heavy'": "neurons, cost",
            "patience=0": "whole number", "tolerance=-0.1": "0", "tolerance='low'": "number",
            "tolerance=float('nan')".replace("float('nan')", "nan"): "number",
            "retries=-1": "at least 0", "retries=1.5": "whole number", "threads=0": "whole number",
            "seed=-1": "at least 0", "seed='a'": "whole number", "seed=2.0": "whole number",
            f"seed={2**70}": "whole number",
        }.items() if "nan" not in text
    },
    "Study(rounds=0)": Bad(((ROUNDS, "rounds=0"),), ("Study(rounds=0)", "at least 1")),
    "Study(replicas=2.5)": Bad((("replicas=2", "replicas=2.5"),), ("Study(replicas=2.5)", "whole number")),
    "Study(seeds=True)": Bad(((" seeds=2", " seeds=True"),), ("Study(seeds=True)", "whole number")),
    "Study(report_seeds=1)": Bad((("report_seeds=2", "report_seeds=1"),), ("Study(report_seeds=1)", "at least 2")),
    "Study(recipe={})": Bad(((RECIPE, "recipe={}"),), ("Study(recipe={})", "Recipe")),
    "Study(model=Net())": Bad((("model=model", "model=5"),), ("Study(model=5)", "function")),
    "Study(lr=...)": Bad((setting("lr=0.1"),), ("'lr'", "line")),
    **{
        f"Recipe({text})": Bad(((RECIPE, f"recipe=Recipe({text})"),), (f"Recipe({text})", wanted))
        for text, wanted in {
            "epochs=0": "at least 1", "epochs=1.5": "whole number", "batch_size=-1": "at least 1",
            "lr=0": "above 0", "lr='fast'": "above 0", "optimizer='lion'": "sgd, adamw",
            "schedule='linear'": "one-cycle, cosine, constant", "momentum=1": "below 1",
            "momentum='a'": "below 1", "weight_decay=-1": "0", "weight_decay='a'": "0",
            "label_smoothing=1.5": "below 1", "device='gpu0'": "device", "device='cuda:99'": "device",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_STUDIES.values(), ids=BAD_STUDIES.keys())
def test_bad_study_is_refused_and_nothing_is_written(bad: Bad, tmp_path: Path) -> None:
    file = write_study(tmp_path, *bad.edits)
    before = set(tmp_path.iterdir())
    result = command("launch", file, *bad.args)
    assert_refused(result, *bad.says)
    assert result.out == ""
    assert {p for p in tmp_path.iterdir() if p.name != "__pycache__"} == before


def test_refused_launch_leaves_the_other_studies_alone(finished: Finished, tmp_path: Path) -> None:
    file = write_study(tmp_path, (MODEL, "raise OSError"), name="other")
    before = snapshot(finished.url)
    assert_refused(command("launch", file, "--storage", finished.url), "model() raised OSError")
    assert snapshot(finished.url) == before
    assert optuna.get_all_study_names(finished.url) == ["tiny"]

"""Wrong use is refused in one line, with exit code 2, and nothing is written; what is printed, exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
import torch
from commands import (
    BUDGET,
    DATA,
    HEADER,
    MODEL,
    RECIPE,
    ROUNDS,
    STUDY,
    TRIALS,
    URL,
    Edit,
    Finished,
    Result,
    assert_refused,
    clean_process,
    command,
    complete,
    custom_loss,
    interrupt,
    real_command,
    setting,
    snapshot,
    trials,
    write_study,
)
from optuna.trial import TrialState

from widthsearch import Budget
from widthsearch.database.lock import driver_lock

pytestmark = pytest.mark.usefixtures("working_folder")

# Refused launches ----------------------------------------------------------------------------------------


def dataset(getitem: str, length: str = "return 10") -> Edit:
    """The data as a dataset of the user's own."""
    body = f"def __len__(self): {length}\n        def __getitem__(self, i): {getitem}"
    return (DATA, f"class Own(torch.utils.data.Dataset):\n        {body}\n    return Own(), (x, y)")


class Bad(NamedTuple):
    edits: tuple[Edit, ...]
    says: tuple[str, ...]
    args: tuple[str, ...] = ()


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
    "model exits": Bad(((MODEL, "raise SystemExit(3)"),), ("model() raised SystemExit",)),
    "model with nothing to train": Bad(((MODEL, "return Net().requires_grad_(False)"),), ("Net", "no parameter")),
    "model is no module": Bad(((MODEL, "return 'a network'"),), ("'a network'", "torch.nn.Module")),
    "model is the class": Bad(((MODEL, "return Net"),), ("Net", "torch.nn.Module")),
    "data raises": Bad(((DATA, "raise KeyError('left')"),), ("data() raised KeyError: 'left'",)),
    "data exits": Bad(((DATA, "raise SystemExit('no data here')"),), ("data() raised SystemExit: no data",)),
    "data is nothing": Bad(((DATA, "return None"),), ("NoneType", "(train, validation[, test])")),
    "data is one split": Bad(((DATA, "return [(x, y)]"),), ("data() returned", "(train, validation[, test])")),
    "data is numpy": Bad(((DATA, "return (x.numpy(), y.numpy()), (x, y)"),), ("train", "tensors")),
    "data has another length": Bad(((DATA, "return (x, y), (x, y[:7])"),), ("validation", "96", "7")),
    "data is a number": Bad(((DATA, "return (x, y), 5"),), ("validation", "int", "dataset")),
    "data is too little": Bad(((DATA, "return (x[:1], y[:1]), (x, y)"),), ("train", "fewer than 2")),
    "data is a dict": Bad(((DATA, "return {0: x, 'y': y}, (x, y)"),), ("train", "(x, y)")),
    "data is a loader": Bad(
        ((DATA, "return (x, y), torch.utils.data.DataLoader(list(zip(x, y)))"),), ("validation", "DataLoader", "dataset")
    ),
    "dataset raises": Bad((dataset("raise OSError('disk full')"),), ("train", "OSError: disk full")),
    "dataset of inputs alone": Bad((dataset("return (x[i],)"),), ("train", "(x, y)")),
    "dataset of texts": Bad((dataset("return 'one', 'two'"),), ("train", "tensors")),
    "dataset without length": Bad((dataset("return x[i], y[i]", "raise TypeError"),), ("train",)),
    "validation has another width": Bad(((DATA, "return (x, y), (x[:, :5], y)"),), ("validation", "x5")),
    "validation has another type": Bad(((DATA, "return (x, y), (x.double(), y)"),), ("validation",)),
    "test has another width": Bad(((DATA, "return (x, y), (x, y), (x[:, :5], y)"),), ("test", "x5")),
    "test label too high": Bad(((DATA, "return (x, y), (x, y), (x, y + 7)"),), ("test", "label 9", "0 to 2")),
    "label too high": Bad(((DATA, "return (x, y), (x, y + 1)"),), ("validation", "label 3", "3 classes", "0 to 2")),
    "label negative": Bad(((DATA, "return (x, y - 5), (x, y)"),), ("train", "label -5", "0 to 2")),
    "labels are floats": Bad(((DATA, "return (x, y.float()), (x, y)"),), ("train has float targets", "y.long()")),
    "loss raises": Bad(custom_loss("raise ValueError('bad target')"), ("loss", "ValueError: bad target")),
    "loss is no scalar": Bad(custom_loss("return output"), ("loss", "(4, 3)", "scalar")),
    "loss is a number": Bad(custom_loss("return 1.0"), ("loss", "1.0", "scalar")),
    "loss is nothing": Bad(custom_loss("return None"), ("loss", "None", "scalar")),
    "loss without gradient": Bad(custom_loss("return output.detach().sum()"), ("loss", "gradient")),
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
    "budget of an unknown resource": Bad(((BUDGET, "budget=Budget(flops='0.5x')"),), ("flops", "macs, params")),
    **{
        f"budget amount {amount}": Bad(
            ((BUDGET, f"budget=Budget(params={amount})"),), (f"params={amount}", wanted)
        )
        for amount, wanted in {
            "'abc'": "'0.25x'", "''": "'0.25x'", "'-1'": "'0.25x'", "'1 GB'": "'0.25x'", "'nan'": "'0.25x'",
            "'1e400'": "'0.25x'", "'0x'": "above 0", "'1/0x'": "above 0", "0": "above 0", "-1": "above 0",
            "[1]": "above 0",
        }.items()
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
            "measure_length=0": "above 0", "measure_length=1.5": "share of the recipe's epochs",
            "over=1": "above 1", "over='big'": "finite number", "pressure='heavy'": "neurons, cost",
            "patience=0": "whole number", "tolerance=-0.1": "0", "tolerance='low'": "number",
            "retries=-1": "at least 0", "retries=1.5": "whole number", "threads=0": "whole number",
            "seed=-1": "at least 0", "seed='a'": "whole number", "seed=2.0": "whole number",
            f"seed={2**70}": "whole number",
        }.items()
    },
    **{
        f"Study(step_sizes={given})": Bad(
            (("step_sizes=[0.6]", f"step_sizes={given}"),), (f"Study(step_sizes={given})", "above 0", "at most 2")
        )
        for given in ("[]", "[0]", "[1, 3]", "'fast'", "0.5", "[True]")
    },
    "Study(rounds=0)": Bad(((ROUNDS, "rounds=0"),), ("Study(rounds=0)", "at least 1")),
    "Study(replicas=2.5)": Bad((("replicas=2", "replicas=2.5"),), ("Study(replicas=2.5)", "whole number")),
    "Study(seeds=True)": Bad(((" seeds=2", " seeds=True"),), ("Study(seeds=True)", "whole number")),
    "Study(report_seeds=1)": Bad((("report_seeds=2", "report_seeds=1"),), ("Study(report_seeds=1)", "at least 2")),
    "Study(recipe={})": Bad(((RECIPE, "recipe={}"),), ("Study(recipe={})", "Recipe")),
    "Study(model=Net())": Bad((("model=model", "model=5"),), ("Study(model=5)", "function")),
    "Study(lr=...)": Bad((setting("lr=0.1"),), ("Study(lr=...)", "Recipe(lr=...)")),
    **{
        f"Recipe({text})": Bad(((RECIPE, f"recipe=Recipe({text})"),), (f"Recipe({text})", wanted))
        for text, wanted in {
            "epochs=0": "at least 1", "epochs=1.5": "whole number", "batch_size=-1": "at least 1",
            "lr=0": "above 0", "lr='fast'": "above 0", "optimizer='lion'": "sgd, adamw",
            "schedule='linear'": "one-cycle, cosine, constant", "momentum=1": "below 1",
            "momentum='a'": "below 1", "weight_decay=-1": "0", "weight_decay='a'": "0",
            "label_smoothing=1.5": "below 1", "device='gpu0'": "device", "device='cuda:99'": "device",
            "num_workers=-1": "0 (the training itself) to 256", "num_workers=True": "whole number",
            "pin_memory=1": "True or False", "collate_fn='pad'": "collate_fn(samples) -> (x, y)",
            "steps_per_epoch=0": "at least 1", "ema=1": "below 1", "clip_grad_norm=0": "above 0", "warmup=1": "below 1", "steps_per_epoch=7": "train has a length",
        }.items()
    },
}  # fmt: skip


def assert_nothing_found(file: Path, result: Result) -> None:
    """Nothing is said but how far it came."""
    assert result.out in (f"reading {file}\n", f"reading {file}\ntracing the network\n")


@pytest.mark.parametrize("bad", BAD_STUDIES.values(), ids=BAD_STUDIES.keys())
def test_bad_study_is_refused_and_nothing_is_written(bad: Bad, tmp_path: Path) -> None:
    file = write_study(tmp_path, *bad.edits)
    before = set(tmp_path.iterdir())
    result = command("launch", file, *bad.args)
    assert_refused(result, *bad.says)
    assert_nothing_found(file, result)
    assert {p for p in tmp_path.iterdir() if p.name != "__pycache__"} == before


def test_refused_launch_leaves_the_other_studies_alone(finished: Finished, tmp_path: Path) -> None:
    file = write_study(tmp_path, (MODEL, "raise OSError"), name="other")
    before = snapshot(finished.url)
    assert_refused(command("launch", file, "--storage", finished.url), "model() raised OSError")
    assert snapshot(finished.url) == before
    assert optuna.get_all_study_names(finished.url) == ["tiny"]


def test_study_files_that_are_none(tmp_path: Path) -> None:
    for name, content in {"notes.txt": b"study = 1", "nul.py": b"\0", "bytes.py": b"x = '\xe9'"}.items():
        Path(name).write_bytes(content)
        assert_refused(command("launch", name), name)
    assert_refused(command("launch", tmp_path), str(tmp_path), "Python file")
    assert_refused(command("launch", "nope.py:study"), "'nope.py'")


def test_any_encoding_that_python_reads_will_do(tmp_path: Path) -> None:
    file = tmp_path / "tiny.py"
    file.write_bytes(b"# coding: latin-1\n# \xe9\n" + STUDY.encode())
    assert command("launch", file).code == 0


def test_the_real_command_refuses_in_one_line(tmp_path: Path) -> None:
    file = write_study(tmp_path, ("nn.Linear(8, 16)", "nn.Linear(9, 16)"))
    result = real_command("launch", file, "--workers", "0")
    assert_refused(result, "Net", "2x8")
    assert_nothing_found(file, result)
    assert not Path("widthsearch.db").exists()


def test_it_says_its_versions_also_as_a_module() -> None:
    script = real_command("--version")
    module = subprocess.run(
        [sys.executable, "-m", "widthsearch", "--version"], capture_output=True, text=True
    )
    assert script.code == module.returncode == 0
    assert script.out == module.stdout
    assert script.out.startswith(f"widthsearch {version('widthsearch')} (torch {torch.__version__}, ")


# Databases -----------------------------------------------------------------------------------------------


def test_files_that_are_no_database(tiny: Path) -> None:
    Path("notes.db").write_text("hello " * 99)
    Path("folder.db").mkdir()
    Path("empty.db").touch()
    for args in (("launch", tiny), ("show",), ("resume",), ("list",)):
        for name in ("notes.db", "folder.db"):
            assert_refused(command(*args, "--storage", f"sqlite:///{name}"), name, "cannot be opened")
    assert Path("notes.db").read_text() == "hello " * 99
    for verb in ("show", "resume"):
        assert_refused(command(verb, "--storage", "sqlite:///empty.db"), "empty.db", "no study", "launch")
    assert_refused(command("show", "--storage", "sqlite:///no/such/x.db"), "no/such/x.db")
    assert_refused(command("list"), "widthsearch.db", "launch")


@pytest.mark.parametrize(
    "url",
    [
        "postgres://me:secret@host/x",
        "postgres//me:secret@host/x",
        "postgresql://me:secret@host:port/x",
        "postgresql://me:sec@secret@host/x",
        "postgresql://host/x?user=me&password=secret",
        "mysql+nodriver://me:secret@host/x",
    ],
)
def test_no_storage_url_however_wrong_shows_its_password(
    tiny: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WIDTHSEARCH_STORAGE", url)
    for args in (("launch", tiny), ("show",), ("resume", "tiny")):
        result = command(*args)
        assert_refused(result, "host")
        assert "secret" not in result.err


def test_a_missing_database_driver_is_named(tiny: Path) -> None:
    result = command("launch", tiny, "--storage", "oracle+cx_oracle://me:secret@127.0.0.1:1/x")
    assert_refused(result, "oracle", "driver", "cx_Oracle")


def test_another_programs_study_is_left_alone(tiny: Path) -> None:
    theirs = optuna.create_study(storage=URL, study_name="tiny", direction="maximize")
    assert_refused(command("launch", tiny), "'tiny'", "--name")
    assert theirs.user_attrs == {}
    theirs = optuna.create_study(storage=URL, study_name="theirs")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert_refused(command("launch", tiny, "--name", "theirs"), "'theirs'", "--name")
    assert len(theirs.trials) == 1


def test_a_launch_killed_before_its_plan_was_written_is_repeated(finished: Finished, tiny: Path) -> None:
    optuna.create_study(storage=URL, study_name="tiny")
    assert_refused(command("resume", "tiny"), "no study")
    assert command("launch", tiny).code == 0
    assert complete(trials()) == complete(finished.trials)


# Names ---------------------------------------------------------------------------------------------------


def test_the_line_to_resume_can_be_pasted_into_a_shell(tiny: Path, tmp_path: Path) -> None:
    odd = tmp_path / "my study.py"
    tiny.rename(odd)
    interrupt(odd, 2)
    assert "widthsearch resume 'my study'" in command("show").out
    url = "sqlite:///my other.db"
    interrupt(odd, 2, url)
    assert "resume 'my study' --storage 'sqlite:///my other.db'" in command("show", "--storage", url).out


def test_two_studies_whose_names_look_alike_do_not_block_each_other(tiny: Path) -> None:
    interrupt(tiny, 2)
    with driver_lock(URL, "a b"):
        assert command("launch", tiny, "--name", "a_b").code == 0


# Failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", ["KeyError('[/x] boom')", "AssertionError('[/x] boom')", "OSError('[/x] boom')"]
)
def test_whatever_a_training_raises_is_a_failed_trial(tmp_path: Path, error: str) -> None:
    file = write_study(tmp_path, *custom_loss(f"if len(output) > 4: raise {error}"), setting("retries=1"))
    result = command("launch", file)
    assert_refused(result, "no training at the start came to its end", "[/x] boom")
    assert "[/x] boom" in result.out
    assert "[/x] boom" in command("show").out
    states = [(t.user_attrs["kind"], t.user_attrs["replica"], t.state.name) for t in trials()]
    assert states.count(("baseline", 0, "FAIL")) == 2  # once, and one retry


def test_what_was_given_up_is_tried_again_by_resume(finished: Finished, tmp_path: Path) -> None:
    """A full GPU after three trainings: one measure is lost, and all scores; later a fresh seed is."""
    broken = tmp_path / "broken"
    failing = custom_loss(
        f"""
        import pathlib
        from widthsearch.plans.plan import Slot
        broken = pathlib.Path({str(broken)!r})
        last = Slot("report", 0, 3, {{}}).random_seed(0)
        if len(output) == 32 and output.requires_grad and broken.exists():
            if broken.read_text() == "all" or torch.initial_seed() == last:
                raise RuntimeError("CUDA out of memory")
        """
    )
    interrupt(write_study(tmp_path, *failing), 3)
    broken.write_text("all")
    assert_refused(command("resume"), "every score of round 1 failed", "CUDA out of memory")
    given_up = len(trials())
    result = command("resume")
    assert "trying 2 given-up trainings again" in result.out and "CUDA out of memory" in result.out
    assert len(trials()) == given_up + 2 * 3  # as often as at first
    broken.write_text("last")
    assert command("resume").code == 0
    assert parse_strictly(command("show", "--json").out)["gain"] is None
    broken.unlink()
    result = command("resume")
    assert (result.code, "given-up" in result.out) == (0, True)
    assert {k: v[:2] for k, v in complete(trials()).items()} == {
        k: v[:2] for k, v in complete(finished.trials).items()
    }
    assert "is finished; more rounds" in command("resume").out


def test_a_failed_study_stays_failed_and_resume_says_why(tmp_path: Path) -> None:
    file = write_study(tmp_path, *custom_loss("return (output * float('nan')).sum()"))
    command("launch", file)
    before = len(trials())
    result = command("resume", "tiny")
    assert_refused(result, "training loss is nan")
    assert "trying 2 given-up trainings again" in result.out
    assert len(trials()) == 2 * before
    assert "failed" in command("list").out
    shown = parse_strictly(command("show", "--json").out)
    assert "training loss is nan" in shown["stopped_because"]


def test_one_lost_measure_and_too_few_fresh_seeds(tmp_path: Path) -> None:
    """Measure 1 and fresh seed 3 never succeed: the rest goes on, and there is no verdict from one pair."""
    losing = """
        from widthsearch.plans.plan import Slot
        lost = [Slot("measure", 0, 1, {}), Slot("report", 0, 3, {})]
        if torch.initial_seed() in [slot.random_seed(0) for slot in lost]:
            return output.sum() * float("nan")
        """
    assert command("launch", write_study(tmp_path, *custom_loss(losing))).code == 0
    failed = [t for t in trials() if t.state == TrialState.FAIL]
    assert len(failed) == 3 * 3  # the measure, and a fresh seed of two networks
    for key in (("measure", 1), ("report", 3), ("baseline", 3)):
        tries = [t for t in failed if (t.user_attrs["kind"], t.user_attrs["replica"]) == key]
        assert len({t.user_attrs["seed"] for t in tries}) == 1
        assert len(tries) == 3
    shown = parse_strictly(command("show", "--json").out)
    assert shown["status"] == "finished"
    assert shown["rounds"][0]["replicas"] == 1
    assert shown["gain"] is None
    assert shown["decision"]["answer"] == "no verdict" and "No verdict" in command("show").out


# Resume --------------------------------------------------------------------------------------------------


def test_what_was_said_at_launch_holds_at_resume(tiny: Path) -> None:
    interrupt(tiny, 3, budget=Budget(params="0.7x", macs="any"), rounds=2)
    assert command("resume").code == 0
    shown = parse_strictly(command("show", "--json").out)
    assert shown["budget"] == {"macs": None, "params": 270, "latency": None}


def test_a_file_that_is_gone_or_broken_loses_nothing(tiny: Path) -> None:
    interrupt(tiny, 3)
    before = snapshot()
    assert_refused(command("resume", "--study", "nope.py"), "'nope.py'")
    assert_refused(command("resume", "--study", f"{tiny}:wrong"), "'wrong'", "study")
    tiny.write_text("import nope\n")
    assert_refused(command("resume"), "tiny.py has changed since launch", "code of Net")
    assert_refused(command("resume", "--force"), "tiny.py", "nope", "line 1")
    tiny.unlink()
    assert_refused(command("resume"), "tiny.py", "--study")
    assert snapshot() == before


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ((BUDGET, 'budget=Budget(params="0.3x")'), "budget"),
        (("nn.Linear(8, 16), nn.Linear(16, 12)", "nn.Linear(8, 20), nn.Linear(20, 12)"), "widths"),
        ((" seeds=2", " seeds=1"), "seeds"),
        (setting("seed=1"), "seed"),
        (setting("minimum=4"), "minimum"),
    ],
    ids=["budget", "widths", "seeds", "seed", "minimum"],
)
def test_what_the_trials_so_far_depend_on_cannot_be_forced(tmp_path: Path, edit: Edit, says: str) -> None:
    """Else networks of different widths or seeds would end up in one mean, under one name."""
    interrupt(write_study(tmp_path), 7)
    before = snapshot()
    write_study(tmp_path, edit)
    assert_refused(command("resume", "--force"), says, "new study")
    assert snapshot() == before


def test_more_rounds_can_be_forced(tmp_path: Path) -> None:
    interrupt(write_study(tmp_path, setting("tolerance=0.0")), 7)
    write_study(tmp_path, (ROUNDS, "rounds=2,\n    tolerance=0.0"))
    assert_refused(command("resume"), "rounds: 1 -> 2")
    assert command("resume", "--force").code == 0


# What is printed -----------------------------------------------------------------------------------------


def parse_strictly(text: str) -> Any:
    """JSON without Python's own NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


WIDTHS = {"fc1": int, "fc2": int}
NUMBERS = {"fc1": float, "fc2": float}
STATISTICS = {"mean": float, "se": float, "n": int}
NETWORK = {"widths": WIDTHS, "macs": int, "params": int, "val_loss": STATISTICS, "val_accuracy": STATISTICS}
AGREED = {
    "study": str,
    "status": str,
    "storage": str,
    "decision": {"sentence": str, "answer": str, "widths": WIDTHS},
    "progress": {"done": int, "at_most": int, "running": list, "seconds_left": type(None)},
    "budget": {"macs": type(None), "params": int},
    "seed": {"widths": WIDTHS, "macs": int, "params": int},
    "baseline": NETWORK,
    "recommended": {"round": (int, type(None)), **NETWORK},
    "gain": {"mean": float, "ci95": list, "n": int},
    "rounds": [
        {
            "round": int,
            "over_wide": WIDTHS,
            "kept": NUMBERS,
            "prune_ratio": NUMBERS,
            "prune_ratio_se": NUMBERS,
            "spread": float,
            "balanced": bool,
            "proposal": WIDTHS,
            "val_loss": STATISTICS,
        }
    ],
    "cost": {"training_macs": int, "in_uniform_trainings": float},
    "trials": {"COMPLETE": int},
    "stopped_because": str,
}


def assert_form(value: Any, form: Any, where: str = "") -> None:
    """Every agreed key is there and has its type; there may be more."""
    if isinstance(form, dict):
        for key, inner in form.items():
            assert key in value, f"{where}.{key}"
            assert_form(value[key], inner, f"{where}.{key}")
    elif isinstance(form, list):
        for i, item in enumerate(value):
            assert_form(item, form[0], f"{where}[{i}]")
    else:
        assert isinstance(value, form), f"{where}: {value!r}"


def test_json_has_every_agreed_key_and_type(finished: Finished) -> None:
    shown = parse_strictly(command("show", "tiny", "--json", "--storage", finished.url).out)
    assert_form(shown, AGREED)
    assert len(shown["rounds"]) == 1
    assert [type(end) for end in shown["gain"]["ci95"]] == [float, float]
    for network in (shown["seed"], shown["baseline"], shown["recommended"]):
        assert network["widths"].keys() == WIDTHS.keys()


@pytest.mark.parametrize("stop_at", range(0, TRIALS, 3))
def test_json_is_json_at_any_moment(tiny: Path, stop_at: int) -> None:
    interrupt(tiny, stop_at)
    shown = parse_strictly(command("show", "--json").out)
    assert AGREED.keys() <= shown.keys()
    assert shown["status"] == "interrupted"
    assert shown["gain"] is None
    if stop_at == 0:
        assert shown["rounds"] == []
        assert shown["recommended"] is None
        assert shown["baseline"]["val_loss"] is None
        assert shown["cost"] == {**shown["cost"], "training_macs": 0, "in_uniform_trainings": None}


def test_json_of_single_trainings(tiny: Path) -> None:
    assert command("launch", tiny, "--replicas", "1", "--seeds", "1").code == 0
    shown = parse_strictly(command("show", "--json").out)
    assert shown["rounds"][0]["val_loss"]["n"] == 1
    assert shown["rounds"][0]["val_loss"]["se"] is None


def test_cost_counts_the_samples_that_are_there(tmp_path: Path) -> None:
    file = write_study(tmp_path, ("batch_size=32", "batch_size=3200"))
    assert command("launch", file).code == 0
    assert {t.user_attrs["training_macs"] / t.user_attrs["macs"] for t in trials()} == {3 * 64}


def test_a_real_launch_into_a_pipe_is_plain_text_and_stderr_empty(finished: Finished, tiny: Path) -> None:
    result = real_command("launch", tiny, "--workers", "0")
    assert result.code == 0
    assert result.err == ""
    assert "\x1b" not in result.out
    assert result.out.count("loss ") >= TRIALS  # a line per trial
    assert complete(trials()) == complete(finished.trials)
    shown = real_command("show", NO_COLOR="1", COLUMNS="60")
    assert (shown.code, shown.err) == (0, "")
    assert "\x1b" not in shown.out


def test_nothing_of_a_study_file_stays_in_this_process(tiny: Path) -> None:
    """The helpers of these tests clean up, or one test could pass on what another one loaded."""
    before = list(sys.path), torch.get_num_threads(), loaded()
    with clean_process():
        command("launch", tiny)
    assert (list(sys.path), torch.get_num_threads(), loaded()) == before


def loaded() -> list[str]:
    return [name for name in sys.modules if name.startswith("_study_")]

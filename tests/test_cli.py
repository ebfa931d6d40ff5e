"""Studies that cannot be searched: each is refused in one line, with exit code 2, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import optuna
import pytest
from commands import (
    BUDGET,
    DATA,
    HEADER,
    MODEL,
    RECIPE,
    ROUNDS,
    Edit,
    Finished,
    assert_refused,
    command,
    custom_loss,
    setting,
    snapshot,
    write_study,
)

pytestmark = pytest.mark.usefixtures("working_folder")

# Refused launches ----------------------------------------------------------------------------------------


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

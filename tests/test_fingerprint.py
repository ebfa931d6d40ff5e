"""Same study, same result: every edit that can change a training is noticed, and nothing else is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import clean_process, command, custom_loss, write_study
from torch import Tensor, nn

from widthsearch.errors import UsageError
from widthsearch.plans.search import SearchPlan
from widthsearch.study import data as reading
from widthsearch.study.data import digests_of
from widthsearch.study.file import load_study
from widthsearch.study.fingerprint import code_of
from widthsearch.study.values import said
from widthsearch.training.trial import TrialRunner

pytestmark = pytest.mark.usefixtures("working_folder")

STUDY = """
from helper import Net, scaled
import torch
RATE = 0.1
torch.manual_seed(0)
def model():
    '''A network.'''
    return Net(RATE)
study = Study(model=model, data=lambda: load(1), budget=Budget(macs="0.5x"), rounds=3, recipe=Recipe(loss=lambda o, y: o))
"""
HELPER = "from deep.inner import scale\nclass Net:\n    width = 3\ndef scaled(x):\n    return scale(x)\n"
INNER = "def scale(x):\n    return 2 * x\n"
FILES = {
    "study.py": STUDY,
    "helper.py": HELPER,
    "deep/__init__.py": "",
    "deep/inner.py": INNER,
    "other.py": "x = 1\n",
}


def digests(edits: dict[str, str]) -> dict[str, str]:
    changed = {**FILES, **{f"{name}.py": text for name, text in edits.items()}}  # the study first
    return code_of({name: text.encode() for name, text in changed.items()})


def changed(edits: dict[str, str]) -> set[str]:
    before, now = digests({}), digests(edits)
    return {name for name in {*before, *now} if before.get(name) != now.get(name)}


@pytest.mark.parametrize(
    ("edits", "names"),
    [
        ({"study": STUDY.replace("RATE = 0.1", "RATE = 0.2")}, {"code of RATE"}),
        ({"study": STUDY.replace("manual_seed(0)", "manual_seed(1)")}, {"code of the top level"}),
        ({"study": STUDY.replace("import Net, scaled", "import Other as Net, scaled")}, {"code of the top level"}),
        ({"study": STUDY.replace("lambda: load(1)", "lambda: load(2)")}, {"code of study"}),
        ({"study": STUDY.replace("lambda o, y: o", "lambda o, y: -o")}, {"code of study"}),
        ({"study": STUDY.replace("lambda o, y: o", "mse, collate_fn=lambda s: s")}, {"code of study"}),
        ({"study": STUDY.replace("model=model", "model=scaled")}, {"code of study"}),
        ({"study": STUDY.replace("rounds=3", "**more")}, {"code of study"}),
        ({"helper": HELPER.replace("width = 3", "width = 4")}, {"code of helper.Net"}),
        ({"deep/inner": INNER.replace("2 * x", "3 * x")}, {"code of deep.inner.scale"}),
        ({"deep/__init__": "import math"}, {"code of deep.the top level"}),
    ],
)  # fmt: skip
def test_code_that_can_change_a_training_is_noticed_by_its_name(
    edits: dict[str, str], names: set[str]
) -> None:
    assert changed(edits) == names


@pytest.mark.parametrize(
    "edits",
    [
        {"study": STUDY.replace("RATE = 0.1", "# how fast\nRATE   =   0.1")},
        {"study": STUDY.replace("A network.", "The network.")},
        {"study": STUDY.replace("rounds=3", "rounds=5")},  # compared as a setting
        {"helper": '"""Of the module."""\n' + HELPER.replace("class Net:", "\n\nclass Net:  # wide")},
        {"other": "x = 2\n"},  # nobody imports it
    ],
)
def test_comments_layout_docstrings_and_what_is_not_imported_are_no_change(edits: dict[str, str]) -> None:
    assert changed(edits) == set()


def test_relative_imports_and_submodules_are_followed() -> None:
    files = {
        "study.py": "import pack.a\n",
        "pack/__init__.py": "",
        "pack/a.py": "from . import b\nfrom .sub.c import d\n",
        "pack/b.py": "",
        "pack/sub/__init__.py": "",
        "pack/sub/c.py": "d = 1",
    }
    found = code_of({name: text.encode() for name, text in files.items()})
    assert "code of pack.sub.c.d" in found and "code of pack.a.the top level" in found


class Focal:
    def __init__(self, gamma: float, weight: Tensor | None = None) -> None:
        self.gamma, self.weight = gamma, weight

    def __call__(self, output: Any, target: Any) -> Any:
        return output


def test_an_object_is_said_by_what_it_holds_not_by_its_address() -> None:
    for make in (
        lambda: Focal(2.0),
        lambda: Focal(2.0, torch.ones(3)),
        lambda: partial(Focal, gamma=2),
        lambda: partial(print, Focal(1)),
        lambda: Focal(2.0).__call__,
        lambda: nn.CrossEntropyLoss(weight=torch.ones(3)),
        lambda: {"a": [Focal(1), (np.ones(2),)], "b": {1, 2}},
        object,
    ):
        assert said(make()) == said(make())
        assert " at 0x" not in said(make())
    for a, b in (
        (Focal(2.0), Focal(3.0)),
        (Focal(1, torch.ones(3)), Focal(1, torch.tensor([1.0, 1, 2]))),
        (partial(Focal, gamma=2), partial(Focal, gamma=3)),
        (Focal(2.0).__call__, Focal(3.0).__call__),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), nn.CrossEntropyLoss(weight=torch.zeros(3))),
        (nn.Linear(2, 3), nn.Linear(2, 4)),
    ):
        assert said(a) != said(b)
    assert (
        said(0.1) == "0.1"
        and said((0.1,)) == "(0.1,)"
        and said(["a"]) == "['a']"
        and said(a_function) == "a_function"
    )
    looped = Focal(1)
    looped.me = looped  # type: ignore[attr-defined]
    assert said(looped) == said(looped)


def a_function() -> None:
    """A function, said by its name."""


# Data ----------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, size: int, changed: int = -1, noise: Any = None, seconds: float = 0.0) -> None:
        self.size, self.changed, self.noise = size, changed, noise

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Any:
        more = 0.0 if self.noise is None else self.noise()
        return torch.tensor([float(i), float(i == self.changed)]) + more, i % 3


def of(split: Any, before: dict[str, str] | None = None) -> dict[str, str]:
    return digests_of((split, split), before)


def test_every_row_of_a_tensor_and_its_type_count() -> None:
    x, y = torch.arange(2000.0)[:, None], torch.arange(2000)
    other = x.clone()
    other[1234] += 1e-3
    known = of((x, y))
    assert of((x.clone(), y)) == known
    for split in ((other, y), (x, y.flip(0)), (x.double(), y), (x[:-1], y[:-1]), (x.T.reshape(1000, 2), y)):
        assert of(split) != known
    assert of((x.bfloat16(), y)) != known  # a type that numpy does not have


def test_every_sample_of_a_dataset_counts_where_that_takes_seconds() -> None:
    known = of(Rows(500))
    assert known["data.train"].startswith("Rows of 500 ")
    assert all(of(Rows(500, changed=i)) != known for i in (0, 123, 499))
    assert of(Rows(501)) != known


def test_of_a_slow_dataset_a_part_counts_and_says_how_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READING_SECONDS", 0.0)
    known = of(Rows(500))
    assert known["data.train"].startswith("Rows of 500, 8 of them ")
    monkeypatch.setattr(reading, "READING_SECONDS", 1e9)  # a faster machine reads as many as at launch
    assert of(Rows(500), known) == known
    assert of(Rows(500, changed=62), known) != known  # one of these
    assert of(Rows(500, changed=63), known) == known


def test_augmentation_does_not_matter_and_private_noise_is_told() -> None:
    assert of(Rows(20, noise=lambda: torch.rand(1))) == of(Rows(20, noise=lambda: torch.rand(1)))
    assert of(Rows(20, noise=np.random.random)) == of(Rows(20, noise=np.random.random))
    own = np.random.default_rng()
    assert of(Rows(20, noise=own.random))["data.train"] == "Rows of 20, each time other samples"


# From launch to resume -----------------------------------------------------------------------------------


def test_an_edited_helper_is_refused_and_the_undone_edit_goes_on(tmp_path: Path) -> None:
    helper = tmp_path / "activation_of_ours.py"
    helper.write_text("import torch\ndef act(x):\n    return torch.relu(x)\n")
    file = write_study(tmp_path, ("import torch\n", "import torch\nfrom activation_of_ours import act\n"))
    file.write_text(file.read_text().replace("torch.relu(self.fc1(x))", "act(self.fc1(x))"))
    assert command("launch", file).code == 0
    text = helper.read_text()
    helper.write_text(text.replace("torch.relu", "torch.tanh"))
    result = command("resume", "--rounds", "2")
    assert result.code == 2 and "code of activation_of_ours.act" in result.err
    helper.write_text("# of ours\n" + text)
    assert command("resume", "--rounds", "2").code == 0


def test_a_loss_object_is_no_change(tmp_path: Path) -> None:
    name, body = custom_loss("pass")
    file = write_study(tmp_path, name, body)
    text = file.read_text().replace("loss=loss", "loss=functools.partial(loss)")
    file.write_text("import functools\n" + text)
    assert command("launch", file).code == 0
    assert command("resume", "--rounds", "2").code == 0


def test_a_worker_with_other_data_says_so(tmp_path: Path) -> None:
    with clean_process():
        file = load_study(str(write_study(tmp_path)))
        plan = SearchPlan(None)  # type: ignore[arg-type]  # never asked
        known = digests_of(file.study.data())
        TrialRunner(file.study, plan, None, known)
        with pytest.raises(UsageError, match=r"the data on .* is not that of the launch: data.train: "):
            TrialRunner(file.study, plan, None, {**known, "data.train": "1x2 abc", "rounds": "3"})

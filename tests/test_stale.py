"""Numbers made from a width in a constructor do not follow it: the user is told, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import vectors
from torch import Tensor, nn

from widthsearch.driver.inspection import describe
from widthsearch.driver.prepare import prepare
from widthsearch.space import trace
from widthsearch.study.file import load_study

Run = Callable[[Any, Tensor], Tensor]


class Holds(nn.Module):
    """A function of 16 units with a number that the module holds."""

    def __init__(self, run: Run, number: Any) -> None:
        super().__init__()
        self.run, self.number = run, number

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def around(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), *modules, nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


STALE: dict[str, tuple[Run, Any, str]] = {
    "RMSNorm": (lambda m, x: F.normalize(x, dim=-1) * m.number, 16**0.5, "4 = 16 ** 0.5"),
    "norm": (lambda m, x: x / (x.norm(dim=-1, keepdim=True) * m.number), 16**-0.5, "0.25 = 16 ** -0.5"),
    "mean": (lambda m, x: x * (x.sum(-1, keepdim=True) / m.number), 16, "16"),
    "share": (lambda m, x: x * (x.sum(-1, keepdim=True) * m.number), 1 / 16, "0.0625 = 1 / 16"),
    "root": (lambda m, x: x * math.sqrt(m.number), 16, "16"),
    "tensor": (lambda m, x: m.number * x, torch.tensor(16.0).sqrt(), "4 = 16 ** 0.5"),
}


@pytest.mark.parametrize(("run", "number", "formula"), STALE.values(), ids=STALE.keys())
def test_a_number_of_a_width_that_does_not_follow_is_told(run: Run, number: Any, formula: str) -> None:
    space = trace(around(Holds(run, number)), vectors(5))
    assert list(space.widths.values()) == [16, 12]
    (line,) = space.stale()
    assert line.startswith(f"Holds.number = {formula} does not follow the width of 0: ")
    assert space.resize({"0": 64, "2": 12}).get_submodule("1").number == number
    assert describe(space)["stale"] == [line]


def test_one_line_tells_of_all_modules_of_a_kind() -> None:
    run, number, _ = STALE["RMSNorm"]
    space = trace(around(Holds(run, number), Holds(run, number)), vectors(5))
    (line,) = space.stale()
    assert line.startswith("Holds.number = 4 = 16 ** 0.5 in 2 modules does not follow the width of 0: ")


FINE: dict[str, tuple[Run, Any]] = {
    "dropout": (lambda m, x: F.dropout(x, m.number, m.training), 0.25),
    "epsilon": (lambda m, x: x / (x.norm(dim=-1, keepdim=True) + m.number), 1 / 16),
    "leak": (lambda m, x: F.leaky_relu(x, m.number), 0.25),
    "another number": (lambda m, x: x * m.number, 0.3),
    "a root of few": (lambda m, x: x.unflatten(-1, (4, 4)).mul(m.number).flatten(-2), 2.0),
    "never read": (lambda m, x: x, 4.0),
    "a size that follows": (lambda m, x: x.view(-1, m.number) / m.number**0, 16),
}


@pytest.mark.parametrize(("run", "number"), FINE.values(), ids=FINE.keys())
def test_nothing_is_told_of_other_numbers(run: Run, number: Any) -> None:
    assert trace(around(Holds(run, number)), vectors(5)).stale() == []


@pytest.mark.parametrize(
    ("run", "widths"),
    [
        (lambda m, x: F.normalize(x, dim=-1) * x.shape[-1] ** 0.5, [12]),  # its width is kept
        (lambda m, x: F.rms_norm(x, x.shape[-1:]), [16, 12]),
        (lambda m, x: x * x.mean(-1, keepdim=True), [16, 12]),
    ],
)
def test_what_the_line_proposes_follows(run: Run, widths: list[int]) -> None:
    space = trace(around(Holds(run, None)), vectors(5))
    assert list(space.widths.values()) == widths
    assert space.stale() == []


STUDY = """
import torch
import torch.nn.functional as F
from torch import nn
from widthsearch import Budget, Study


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = width**0.5

    def forward(self, x):
        return F.normalize(x, dim=-1) * self.scale


def model():
    return nn.Sequential(nn.Linear(5, 16), RMSNorm(16), nn.Linear(16, 3))


def data():
    pair = torch.randn(8, 5), torch.randint(0, 3, (8,))
    return pair, pair


study = Study(model=model, data=data, budget=Budget(macs="0.5x"))
"""


def test_launch_tells_of_it_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STUDY)
    notes = prepare(load_study(str(tmp_path / "mine.py"))).notes
    assert any(line.startswith("RMSNorm.scale = 4 = 16 ** 0.5 does not follow") for line in notes)

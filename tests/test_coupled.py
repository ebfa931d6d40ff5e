"""Coupled structures: splits, shuffles, groups, heads, gated MLPs, recurrent cells, sizes stated as attributes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Between, images, randomise, vectors
from test_space import counted_macs, parameter_count, random_widths
from torch import Tensor, nn

from widthsearch.space import WidthSpace, trace


class Shuffle(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, the others are convolved, then both are interleaved."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        h = c // 2
        self.stem = nn.Conv2d(3, c, 3, padding=1)
        self.branch = nn.Sequential(
            nn.Conv2d(h, h, 1), nn.BatchNorm2d(h), nn.Conv2d(h, h, 3, padding=1, groups=h), nn.Conv2d(h, h, 1)
        )
        self.fc = nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Any:
        a, b = self.stem(x).chunk(2, 1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """Fused q, k and v; the number of heads is a stated size or what is left over."""

    def __init__(self, heads: int = 4, size: int = 8, *, stated: bool) -> None:
        super().__init__()
        self.heads, self.size, self.stated = heads, size, stated
        self.embed = nn.Linear(6, 24)
        self.qkv = nn.Linear(24, 3 * heads * size)
        self.proj = nn.Linear(heads * size, 24)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        b, t, _ = x.shape
        heads = self.heads if self.stated else -1
        q, k, v = self.qkv(x).view(b, t, 3, heads, self.size).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        return self.out(x + self.proj(y))


class GatedMLP(nn.Module):
    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 20), nn.Linear(10, 4)
        self.gate = gate

    def forward(self, x: Tensor) -> Any:
        return self.down(self.gate(self.up(x)))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.cell = getattr(nn, kind)(6, 12, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.cell(x)[0][:, -1])


def swiglu(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return a * F.silu(b)


sequence = vectors(5, 6)
COUPLED: dict[str, tuple[nn.Module, tuple[Any, ...], list[int]]] = {
    "channel shuffle": (Shuffle(), images(), [8, 8]),
    "heads, stated": (Attention(stated=True), sequence, [24, 4]),
    "heads, left over": (Attention(stated=False), sequence, [24, 4]),
    "glu": (GatedMLP(F.glu), vectors(6), [10]),
    "swiglu": (GatedMLP(swiglu), vectors(6), [10]),
    "chunk, swapped": (Between(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), images(), [4, 6]),
    "grouped convolution, by groups": (Between(nn.Conv2d(8, 8, 3, groups=4)), images(), [4, 6]),
    "grouped convolution, by channels": (Between(nn.Conv2d(8, 8, 3, groups=2)), images(), [4, 4, 6]),
    "lstm": (Recurrent("LSTM"), sequence, [12]),
    "gru": (Recurrent("GRU"), sequence, [12]),
}
EACH = pytest.mark.parametrize(("model", "example", "widths"), COUPLED.values(), ids=COUPLED.keys())


def space_of(model: nn.Module, example: tuple[Any, ...]) -> WidthSpace:
    torch.manual_seed(0)
    return trace(randomise(copy.deepcopy(model)).eval(), example)


@EACH
def test_coupled_units_are_found_and_cost_what_torch_counts(
    model: nn.Module, example: tuple[Any, ...], widths: list[int]
) -> None:
    space = space_of(model, example)
    assert sorted(space.widths.values()) == sorted(widths)
    for seed in range(3):
        other = random_widths(space, seed, least=2)
        resized = space.resize(other)
        assert space.cost.at(other) == {
            "macs": counted_macs(resized, example),
            "params": parameter_count(resized),
        }
        assert resized(*example).shape == model(*example).shape


@EACH
def test_coupled_units_can_be_removed(model: nn.Module, example: tuple[Any, ...], widths: list[int]) -> None:
    space = space_of(model, example)
    numbers = np.random.default_rng(0)
    keep = {name: numbers.permutation(width) >= width // 2 for name, width in space.widths.items()}
    kept = np.concatenate(list(keep.values()))
    closed = copy.deepcopy(space.model)
    parameters = dict(closed.named_parameters())
    with torch.no_grad():
        for axis in space.consumers:
            dead = np.flatnonzero((axis.unit >= 0) & ~kept[axis.unit])
            parameters[axis.parameter].index_fill_(axis.dim, torch.as_tensor(dead), 0.0)
        got, expected = space.compact(keep)(*example), closed(*example)
        assert (got - expected).abs().max() < 1e-5
        assert (space.model(*example) - expected).abs().max() > 1e-5


def test_stated_sizes_follow_a_resize() -> None:
    space = space_of(Attention(stated=True), sequence)
    heads = next(name for name, width in space.widths.items() if width == 4)
    resized = space.resize({**space.widths, heads: 7})
    assert isinstance(resized, Attention)
    assert (resized.heads, resized.size, resized.qkv.out_features) == (7, 8, 3 * 7 * 8)
    assert type(space.model.heads) is int  # the user's own model is not touched


def test_a_slice_of_units_that_some_weight_reads() -> None:
    space = space_of(Between(lambda x: x[:, 4:], 4), images())
    frozen = {f.name: f.reason for f in space.frozen}
    assert "first" not in space.widths or space.widths["first"] == 4
    assert frozen.get("first", "no weight reads its units") == "no weight reads its units"

"""Coupled structures: splits, shuffles, groups, heads, gated MLPs, recurrent cells, sizes stated as attributes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import costs_are_torchs, half_of_each, random_widths, removal
from networks import Between, images, randomise, vectors
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


class Block(nn.Module):
    """A transformer's residual stream under some normalisation, with a gated MLP."""

    def __init__(self, norm: Callable[[int], nn.Module], d: int = 12, hidden: int = 10) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, d), nn.Linear(d, 3)
        self.norms = nn.ModuleList([norm(d), norm(d)])
        self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norms[0](x))))
        return self.out(self.norms[1](x))


class HandWritten(nn.Module):
    """Llama's RMSNorm or a LayerNorm, from single operations."""

    def __init__(self, d: int, kind: str) -> None:
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.ones(d)), kind

    def forward(self, x: Tensor) -> Any:
        if self.kind == "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight
        if self.kind == "std":
            return (x - x.mean(dim=-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5) * self.weight
        var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(var + 1e-5) * self.weight


class ResponseNorm(nn.Module):
    """ConvNeXt V2's global response normalisation: a mean over channels of a norm over positions."""

    def forward(self, x: Tensor) -> Any:
        g = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x * g / (g.mean(1, keepdim=True) + 1e-6) + x


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
    "layer norm": (Block(nn.LayerNorm), sequence, [12, 10]),
    "layer norm without weights": (
        Block(partial(nn.LayerNorm, elementwise_affine=False)),
        sequence,
        [12, 10],
    ),
    "rms norm": (Block(nn.RMSNorm), sequence, [12, 10]),
    "rms norm by hand": (Block(partial(HandWritten, kind="rms")), sequence, [12, 10]),
    "layer norm by hand": (Block(partial(HandWritten, kind="var_mean")), sequence, [12, 10]),
    "standard deviation": (Block(partial(HandWritten, kind="std")), sequence, [12, 10]),
    "group norm, one group": (Between(nn.GroupNorm(1, 8)), images(), [8, 6]),
    "group norm, by channels": (Between(nn.GroupNorm(2, 8)), images(), [4, 6]),
    "group norm, by groups": (Between(nn.GroupNorm(4, 8)), images(), [4, 6]),
    "response norm": (Between(ResponseNorm()), images(), [8, 6]),
    "pixel shuffle": (Between(nn.PixelShuffle(2), 2), images(), [2, 6]),
    "pixel unshuffle": (Between(nn.PixelUnshuffle(2), 32), images(size=18), [8, 6]),
    "channel shuffle, native": (Between(nn.ChannelShuffle(2)), images(), [4, 6]),
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
    assert costs_are_torchs(space, example)
    resized = space.resize(random_widths(space, seed=0, least=2))
    assert resized(*example).shape == model(*example).shape


@EACH
def test_coupled_units_can_be_removed(model: nn.Module, example: tuple[Any, ...], widths: list[int]) -> None:
    space = space_of(model, example)
    found = removal(space, example, half_of_each(space))
    assert found.opened < 1e-5
    assert found.error < 1e-5
    assert found.effect > 1e-3


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

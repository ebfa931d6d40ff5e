"""One network written in many styles has the same widths and costs the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from networks import images, vectors
from torch import Tensor, nn

from widthsearch.space import WidthSpace, trace


class Net(nn.Module):
    """Parts (modules, or parameters of a shape) and a forward pass that uses them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module | tuple[int, ...]) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.randn(part) * 0.3) if isinstance(part, tuple) else part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


# A convolutional network ---------------------------------------------------------------------------------


def in_one_sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 20),
        nn.Tanh(),
        nn.Linear(20, 5),
    )


def with_functions() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(m.bn(m.conv1(x))), 2)
        x = torch.relu(m.conv2(x)).mean((2, 3))
        return m.fc2(m.fc1(x).tanh())

    return Net(
        run,
        fc2=nn.Linear(20, 5),
        fc1=nn.Linear(12, 20),
        conv2=nn.Conv2d(8, 12, 3, padding=1, bias=False),
        bn=nn.BatchNorm2d(8),
        conv1=nn.Conv2d(3, 8, 3, padding=1),
    )


def with_parameters() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        x = F.conv2d(x, m.w1, m.b1, padding=1)
        x = F.batch_norm(x, None, None, m.gamma, m.beta, training=True).clamp(min=0)
        x = F.conv2d(F.max_pool2d(x, kernel_size=2), m.w2, padding=1).relu_()
        x = x.flatten(2).mean(-1)
        return torch.addmm(m.b4, torch.tanh(F.linear(x, m.w3, m.b3)), m.w4.t())

    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "gamma": (8,), "beta": (8,), "w2": (12, 8, 3, 3)}
    return Net(run, **shapes, w3=(20, 12), b3=(20,), w4=(5, 20), b4=(5,))


def with_lists_and_matrix_products() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        for conv in m.convs:
            x = conv(x)
        x = torch.einsum("nchw->nc", x) / (x.shape[2] * x.shape[3])
        return (x @ m.w3 + m.b3).tanh().matmul(m.w4) + m.b4

    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.ReLU())
    return Net(run, convs=nn.ModuleList([first, second]), w3=(12, 20), b3=(20,), w4=(20, 5), b4=(5,))


# A residual block ----------------------------------------------------------------------------------------


def residual(add: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.out(F.relu(add(x, m.conv2(F.relu(m.conv1(x))))).mean((2, 3)))

    return lambda: Net(
        run,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        conv1=nn.Conv2d(8, 6, 1),
        conv2=nn.Conv2d(6, 8, 3, padding=1),
        out=nn.Linear(8, 5),
    )


def plus_equals(x: Tensor, y: Tensor) -> Tensor:
    y += x
    return y


# Attention with 5 heads of 4 in a residual stream of 24, and an MLP of 16 -----------------------------------


def transformer(attend: Callable[[Any, Tensor], Tensor], **parts: Any) -> Callable[[], nn.Module]:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.embed(x)
        x = x + attend(m, m.norm1(x))
        x = x + m.down(F.gelu(m.up(m.norm2(x))))
        return m.out(x.mean(1))

    def make() -> nn.Module:
        layers = {"embed": nn.Linear(6, 24), "up": nn.Linear(24, 16), "down": nn.Linear(16, 24)}
        norms = {"norm1": nn.LayerNorm(24), "norm2": nn.LayerNorm(24), "out": nn.Linear(24, 3)}
        attention = {k: v if isinstance(v, tuple) else nn.Linear(*v) for k, v in parts.items()}
        return Net(run, **layers, **norms, **attention)

    return make


SIZE = 4
SEPARATE = {"q": [24, 20], "k": [24, 20], "v": [24, 20], "proj": [20, 24]}
FUSED = {"qkv": [24, 60], "proj": [20, 24]}


def by_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * SIZE**-0.5).softmax(-1) @ v


def together(m: Any, heads: Tensor) -> Tensor:
    """(N, heads, T, size) back to (N, T, D)."""
    return m.proj(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def three_layers(m: Any, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    q, k, v = (layer(x).view(n, t, -1, SIZE).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return together(m, F.scaled_dot_product_attention(q, k, v))


def three_layers_and_softmax(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (-1, SIZE)).permute(0, 2, 1, 3) for layer in (m.q, m.k, m.v))
    return together(m, by_softmax(q, k, v))


def fused_view(m: Any, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    q, k, v = m.qkv(x).reshape(n, t, 3, -1, SIZE).permute(2, 0, 3, 1, 4)
    return together(m, F.scaled_dot_product_attention(q, k, v))


def fused_chunks(m: Any, x: Tensor) -> Tensor:
    n, t, _ = x.shape
    q, k, v = (part.view(n, t, -1, SIZE).transpose(1, 2) for part in m.qkv(x).chunk(3, dim=-1))
    return together(m, F.scaled_dot_product_attention(q, k, v))


def fused_einsum(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).unflatten(-1, (3, -1, SIZE)).unbind(2)
    scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * SIZE**-0.5
    heads = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v)
    return m.proj(heads.flatten(2))  # type: ignore[no-any-return]


# Attention whose heads divide the residual stream: heads and its width are one variable -------------------


class EncoderLayer(nn.Module):
    """The blocks of nanoGPT, BERT and torch's own encoder layer: heads of D / heads."""

    def __init__(self, attention: str, d: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.d, self.heads, self.attention = d, heads, attention
        self.embed, self.out = nn.Linear(6, d), nn.Linear(d, 3)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 16), nn.Linear(16, d)
        if attention == "torch":
            self.own = nn.MultiheadAttention(d, heads, batch_first=True)
            return
        self.proj = nn.Linear(d, d)
        if attention == "three":
            self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        else:
            self.qkv = nn.Linear(d, 3 * d)

    def attend(self, x: Tensor) -> Any:
        n, t, d = x.shape
        if self.attention == "torch":
            return self.own(x, x, x, need_weights=False)[0]
        if self.attention == "split":
            parts = self.qkv(x).split(self.d, dim=2)
        else:
            parts = (
                (self.q(x), self.k(x), self.v(x)) if self.attention == "three" else self.qkv(x).chunk(3, -1)
            )
        q, k, v = (part.view(n, t, self.heads, d // self.heads).transpose(1, 2) for part in parts)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().view(n, t, d))

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        x = x + self.attend(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.out(x.mean(1))


def torchs_encoder(depth: int | None) -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.out(m.encoder(m.embed(x)).mean(1))  # type: ignore[no-any-return]

    layer = nn.TransformerEncoderLayer(24, 4, 16, batch_first=True, norm_first=True, activation="gelu")
    encoder = layer if depth is None else nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
    return Net(run, embed=nn.Linear(6, 24), encoder=encoder, out=nn.Linear(24, 3))


# A gated MLP ---------------------------------------------------------------------------------------------


def gated(gate: Callable[[Any, Tensor], Tensor], **parts: Any) -> Callable[[], nn.Module]:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.down(gate(m, m.embed(x)))  # type: ignore[no-any-return]

    layers = {"embed": (6, 12), "down": (10, 3), **parts}
    return lambda: Net(run, **{name: nn.Linear(*sizes) for name, sizes in layers.items()})


def halves(m: Any, x: Tensor) -> Tensor:
    a, b = m.up(x).chunk(2, -1)
    return a * b.sigmoid()


def slices(m: Any, x: Tensor) -> Tensor:
    y = m.up(x)
    half = y.shape[-1] // 2
    return y[..., :half] * y[..., half:].sigmoid()


# Recurrent networks over (N, T, 6) with a state of 10 -------------------------------------------------------


def recurrent(read: Callable[[Any, Tensor], Tensor], **parts: Any) -> Callable[[], nn.Module]:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.out(read(m, m.embed(x)))  # type: ignore[no-any-return]

    return lambda: Net(run, embed=nn.Linear(6, 7), out=nn.Linear(10, 3), **{k: v() for k, v in parts.items()})


def by_cells(m: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(x.shape[0], m.cell.weight_hh.shape[1])
    for step in x.unbind(1):
        if isinstance(m.cell, nn.LSTMCell):
            h, c = m.cell(step, (h, c))
        else:
            h = m.cell(step, h)
    return h


def lstm_by_hand(m: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(x.shape[0], m.w.weight.shape[1])
    for t in range(x.shape[1]):
        i, f, g, o = (m.u(x[:, t]) + m.w(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h


def gru_by_hand(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], m.w.in_features, device=x.device)
    for t in range(x.shape[1]):
        (r, z, n), (hr, hz, hn) = m.u(x[:, t]).chunk(3, 1), m.w(h).chunk(3, 1)
        z = torch.sigmoid(z + hz)
        h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
    return h


# All of them ---------------------------------------------------------------------------------------------


class Family(NamedTuple):
    example: tuple[Tensor, ...]
    widths: list[int]  # all different, so that a width says which variable it is
    styles: dict[str, Callable[[], nn.Module]]


sequence = vectors(5, 6)
FAMILIES = {
    "convolutions": Family(
        images(),
        [8, 12, 20],
        {
            "sequential": in_one_sequence,
            "functional": with_functions,
            "parameters": with_parameters,
            "lists and @": with_lists_and_matrix_products,
        },
    ),
    "residual": Family(
        images(),
        [6, 8],
        {
            "+": residual(lambda x, y: x + y),
            "torch.add": residual(torch.add),
            "add with alpha": residual(lambda x, y: y.add(x, alpha=0.5)),
            "+=": residual(plus_equals),
            "add_": residual(lambda x, y: y.add_(x)),
            "sum of a list": residual(lambda x, y: sum([x, y])),  # type: ignore[arg-type, return-value]
            "sum of a stack": residual(lambda x, y: torch.stack([x, y]).sum(0)),
            "lerp": residual(lambda x, y: torch.lerp(x, y, 0.5)),
        },
    ),
    "attention": Family(
        sequence,
        [5, 16, 24],
        {
            "three layers": transformer(three_layers, **SEPARATE),
            "three layers, softmax": transformer(three_layers_and_softmax, **SEPARATE),
            "fused, view": transformer(fused_view, **FUSED),
            "fused, chunk": transformer(fused_chunks, **FUSED),
            "fused, einsum": transformer(fused_einsum, **FUSED),
        },
    ),
    "heads that divide the stream": Family(
        sequence,
        [4, 16],
        {
            "split": lambda: EncoderLayer("split"),
            "chunk": lambda: EncoderLayer("chunk"),
            "three layers": lambda: EncoderLayer("three"),
            "nn.MultiheadAttention": lambda: EncoderLayer("torch"),
            "nn.TransformerEncoderLayer": lambda: torchs_encoder(None),
            "nn.TransformerEncoder": lambda: torchs_encoder(1),
        },
    ),
    "gated MLP": Family(
        vectors(6),
        [10, 12],
        {
            "two layers": gated(lambda m, x: m.a(x) * m.b(x).sigmoid(), a=(12, 10), b=(12, 10)),
            "chunk": gated(halves, up=(12, 20)),
            "slices": gated(slices, up=(12, 20)),
            "glu": gated(lambda m, x: F.glu(m.up(x)), up=(12, 20)),
            "view": gated(
                lambda m, x: (lambda y: y[:, 0] * y[:, 1].sigmoid())(m.up(x).view(x.shape[0], 2, -1)),
                up=(12, 20),
            ),
        },
    ),
    "LSTM": Family(
        sequence,
        [7, 10],
        {
            "module": recurrent(
                lambda m, x: m.lstm(x)[0][:, -1], lstm=lambda: nn.LSTM(7, 10, batch_first=True)
            ),
            "last state": recurrent(
                lambda m, x: m.lstm(x)[1][0][-1], lstm=lambda: nn.LSTM(7, 10, batch_first=True)
            ),
            "time first": recurrent(
                lambda m, x: m.lstm(x.transpose(0, 1))[0][-1], lstm=lambda: nn.LSTM(7, 10)
            ),
            "cells": recurrent(by_cells, cell=lambda: nn.LSTMCell(7, 10)),
            "by hand": recurrent(lstm_by_hand, u=lambda: nn.Linear(7, 40), w=lambda: nn.Linear(10, 40)),
        },
    ),
    "GRU": Family(
        sequence,
        [7, 10],
        {
            "module": recurrent(
                lambda m, x: m.gru(x)[0][:, -1], gru=lambda: nn.GRU(7, 10, batch_first=True)
            ),
            "cells": recurrent(by_cells, cell=lambda: nn.GRUCell(7, 10)),
            "by hand": recurrent(gru_by_hand, u=lambda: nn.Linear(7, 30), w=lambda: nn.Linear(10, 30)),
        },
    ),
}  # fmt: skip
EACH = [
    pytest.param(family, style, id=f"{name}: {label}")
    for name, family in FAMILIES.items()
    for label, style in family.styles.items()
]


def cost_when(space: WidthSpace, other: Callable[[int], int]) -> dict[str, int]:
    return space.cost.at({name: other(width) for name, width in space.widths.items()})


@pytest.mark.sample(12)
@pytest.mark.parametrize(("family", "style"), EACH)
def test_every_style_has_the_same_widths_and_cost(family: Family, style: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    space = trace(style(), family.example)
    assert space.frozen == ()
    assert sorted(space.widths.values()) == family.widths
    first = trace(next(iter(family.styles.values()))(), family.example)
    for other in (lambda w: w, lambda w: 2 * w + 1, lambda w: max(1, w // 3)):
        assert cost_when(space, other) == cost_when(first, other)

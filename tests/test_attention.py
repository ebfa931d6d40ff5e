"""Attention: heads are units, or their size is; torch's own module; scales that follow a resize."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactness import costs_are_torchs, half_of_each, removal
from networks import randomise, vectors
from torch import Tensor, nn

from widthsearch.space import WidthSpace, trace

SEQUENCE = vectors(5, 6)


class SelfAttention(nn.Module):
    """Queries and keys of one size, values of another; ``how`` the products are written."""

    def __init__(self, how: str, heads: int = 1, size: int = 8, value_size: int = 6) -> None:
        super().__init__()
        self.how, self.heads = how, heads
        if how == "stated scale":
            self.scale = size**-0.5
        self.embed = nn.Linear(6, 12)
        self.q, self.k = nn.Linear(12, heads * size), nn.Linear(12, heads * size)
        self.v, self.out = nn.Linear(12, heads * value_size), nn.Linear(heads * value_size, 3)

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.embed(x))
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "stated scale":
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        elif self.how == "by hand, unscaled":
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = (torch.matmul(q, k.mT) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class TorchsOwn(nn.Module):
    def __init__(self, *, need_weights: bool = True, **options: Any) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, 24), nn.Linear(24, 3)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True, **options)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return self.out(x + self.attention(x, x, x, need_weights=self.need_weights)[0])


def space_of(model: nn.Module, **options: Any) -> WidthSpace:
    torch.manual_seed(0)
    return trace(randomise(copy.deepcopy(model)).eval(), SEQUENCE, **options)


def assert_exact(space: WidthSpace) -> None:
    """Cost is torch's count, closing units is removing them, and it matters."""
    assert costs_are_torchs(space, SEQUENCE)
    half = half_of_each(space)
    for name in space.widths:
        keep = {n: np.ones(w, dtype=bool) for n, w in space.widths.items()}
        found = removal(space, SEQUENCE, {**keep, name: half[name]})
        assert found.error < 1e-5, name
        assert found.effect > 1e-4, name


@pytest.mark.parametrize("how", ["fused", "stated scale", "by hand, unscaled"])
def test_the_size_of_a_single_head_is_searched(how: str) -> None:
    space = space_of(SelfAttention(how))
    assert list(space.widths.values()) == [12, 8, 6]
    assert_exact(space)


@pytest.mark.parametrize("how", ["fused", "stated scale", "by hand, unscaled"])
def test_heads_are_searched_by_default_and_their_size_where_heads_are_kept(how: str) -> None:
    model = SelfAttention(how, heads=4)
    heads, sizes = space_of(model), space_of(model, keep_heads=True)
    assert list(heads.widths.values()) == [12, 4]
    assert list(sizes.widths.values()) == [12, 8, 6]
    assert_exact(heads)
    assert_exact(sizes)
    resized = sizes.resize(dict(zip(sizes.widths, (12, 5, 7), strict=True)))
    assert (resized.q.out_features, resized.v.out_features) == (4 * 5, 4 * 7)


def test_a_stated_scale_follows_the_size_of_the_heads() -> None:
    space = space_of(SelfAttention("stated scale"))
    assert space.resize(dict(zip(space.widths, (12, 16, 6), strict=True))).scale == 0.25
    assert space.model.scale == 8**-0.5  # the user's own model is not touched


def test_a_scale_that_gates_cannot_follow_is_found_by_trying() -> None:
    space = space_of(SelfAttention("by hand"))
    assert list(space.widths.values()) == [12, 6]
    assert [(f.name, f.width) for f in space.frozen] == [("q", 8)]
    assert "closing its units is not the same as removing them" in space.frozen[0].reason


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": False, "dropout": 0.0}])
def test_torchs_own_module_moves_heads_and_model_width_together(
    options: dict[str, Any], need_weights: bool
) -> None:
    space = space_of(TorchsOwn(need_weights=need_weights, **options))
    assert list(space.widths.values()) == [4]  # of one head and six model units each
    assert_exact(space)
    attention = space.resize({"embed": 7}).attention
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (42, 7, 6)
    assert (attention.kdim, attention.vdim) == (42, 42)


def test_what_only_trying_rejects_is_told_even_if_the_rest_of_it_is_kept() -> None:
    """Kept heads are no news, but a literal size of the values is."""

    class Literal(SelfAttention):
        def forward(self, x: Tensor) -> Any:
            x = torch.tanh(self.embed(x))
            q, k = (f(x).unflatten(2, (4, -1)).transpose(1, 2) for f in (self.q, self.k))
            v = self.v(x).unflatten(2, (-1, 6)).transpose(1, 2)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    space = space_of(Literal("fused", heads=4), keep_heads=True)
    assert list(space.widths.values()) == [12, 8]
    assert [f.name for f in space.frozen] == ["v"]
    assert "another width does not run" in space.frozen[0].reason


class Padded(nn.Module):
    """Tokens, of which 0 is padding that torch's own encoder leaves out."""

    def __init__(self, width: int = 24, heads: int = 4, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 32, batch_first=True)
        self.embed, self.out = nn.Embedding(20, width, padding_idx=0), nn.Linear(width, 2)
        self.encoder = nn.TransformerEncoder(layer, 2, **options)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.encoder(self.embed(x), src_key_padding_mask=x == 0)[:, 0])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("model", "nested"),
    [
        (Padded(), {2: True, 3: False}),
        (Padded(18, 3), {2: True, 3: False}),
        (Padded(enable_nested_tensor=False), {2: False, 3: False}),
    ],
)
def test_torchs_encoder_leaves_padding_out_at_even_and_odd_numbers_of_heads(
    model: Padded, nested: dict[int, bool]
) -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    space = trace(model.eval(), tokens)
    for heads, expected in nested.items():
        keep = {
            name: np.arange(width) < (heads if name == "embed" else 8) for name, width in space.widths.items()
        }
        for copied in (space.resize({**space.widths, "embed": heads}), space.compact(keep)):
            assert copied.encoder.use_nested_tensor is expected
            plain = copied.eval()(tokens)  # with gradients torch does not take its fast path
            with torch.no_grad():
                assert torch.allclose(copied(tokens), plain, atol=1e-5)


class OwnAttention(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class OwnLayer(nn.TransformerEncoderLayer):
    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        x = self.norm1(x + self.self_attn(x)[0])
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class OwnEncoder(nn.TransformerEncoder):
    def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def test_an_encoder_of_other_parts_stays_as_it_is() -> None:
    encoder = OwnEncoder(OwnLayer(32, 4, 64, batch_first=True), 1)
    encoder.layers[0].self_attn = OwnAttention(32, 32)
    space = space_of(nn.Sequential(nn.Linear(6, 32), encoder, nn.Linear(32, 3)))
    assert space.widths == {"0": 32, "1.layers.0.linear1": 64}
    assert space.resize({"0": 20, "1.layers.0.linear1": 30})[1].use_nested_tensor == encoder.use_nested_tensor


class Alone(nn.Module):
    """Torch's own module without a residual, which would tie what it makes to what it reads."""

    def __init__(self, out: nn.Module, **options: Any) -> None:
        super().__init__()
        self.embed, self.other, self.out = nn.Linear(6, 24), nn.Linear(6, 16), out
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Any:
        q = self.embed(x)
        k = self.other(x) if self.attention.kdim == self.other.out_features else q
        return self.out(self.attention(q, k, k, need_weights=False)[0])


@pytest.mark.parametrize("options", [{}, {"kdim": 16, "vdim": 16}])
def test_torchs_own_module_makes_what_can_be_typed(options: dict[str, Any]) -> None:
    space = space_of(Alone(nn.Linear(24, 3), **options))
    assert space.widths["embed"] == 4
    assert "attention.out_proj" not in space.widths
    assert_exact(space)
    found = space.resize({**space.widths, "embed": 3}).attention
    typed = nn.MultiheadAttention(
        found.embed_dim, found.num_heads, kdim=found.kdim, vdim=found.vdim, batch_first=True
    )
    typed.load_state_dict(found.state_dict())


def test_an_output_of_torchs_own_module_that_cannot_follow_keeps_its_heads() -> None:
    space = space_of(Alone(nn.Identity()))
    assert "embed" not in space.widths
    (reason,) = (f.reason for f in space.frozen if f.name == "embed")
    assert reason.startswith("attention: nn.MultiheadAttention reads and makes embed_dim units")


class ByHand(nn.Module):
    """One head, with a number of its own in ``logits``."""

    def __init__(self, logits: Callable[[Any, Tensor, Tensor], Tensor], **numbers: Any) -> None:
        super().__init__()
        self.logits, self.numbers = logits, tuple(numbers)
        for name, number in numbers.items():
            setattr(self, name, number)
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        return self.out(self.logits(self, self.q(x), self.k(x).mT).softmax(-1) @ self.v(x))


@pytest.mark.parametrize(
    ("logits", "number", "at_64"),
    [
        (lambda m, q, k: q @ k / math.sqrt(m.number), 16, 64),
        (lambda m, q, k: (q / math.sqrt(m.number)) @ k, 16, 64),
        (lambda m, q, k: (q @ k).masked_fill(k[:, :1] > 1e9, -math.inf) / m.number**0.5, 16, 64),
        (lambda m, q, k: m.number**-0.5 * (q @ k), 16, 64),
        (lambda m, q, k: q @ k * (1 / math.sqrt(m.number)), 16, 64),
        (lambda m, q, k: q @ k / m.number, 4.0, 8.0),
        (lambda m, q, k: (q * m.number) @ k, 0.25, 0.125),
        (lambda m, q, k: (q * m.number**0.5) @ (k * m.number**0.5), 0.25, 0.125),
        (lambda m, q, k: torch.baddbmm(q.new_zeros(1), q, k, beta=0, alpha=m.number), 0.25, 0.125),
        (lambda m, q, k: q @ k * m.number, np.float64(0.25), 0.125),
        (lambda m, q, k: q @ k * float(m.number), 0.25, 0.125),
        (lambda m, q, k: q @ k * torch.tensor(m.number), 0.25, 0.125),
        (lambda m, q, k: q @ k * q.new_full((), m.number), 0.25, 0.125),
        (lambda m, q, k: F.pad(q * m.number, (0, 0, 0, 1))[:, :-1] @ k, 0.25, 0.125),
        (lambda m, q, k: torch.roll(q * m.number, 1, 1) @ k, 0.25, 0.125),
        (lambda m, q, k: (q * m.number)[:, torch.arange(q.shape[1]).flip(0)] @ k, 0.25, 0.125),
    ],
)
def test_a_number_that_scales_a_product_follows_what_it_is_summed_over(
    logits: Callable[[Any, Tensor, Tensor], Tensor], number: float, at_64: float
) -> None:
    space = space_of(ByHand(logits, number=number))
    assert space.widths == {"q": 16, "v": 12}
    assert_exact(space)
    assert space.resize({"q": 64, "v": 12}).number == at_64
    assert space.at({"q": 64, "v": 12}).model.number == at_64
    assert space.stale() == []


def test_a_number_of_numpys_has_its_methods_while_it_is_traced() -> None:
    by_hand = ByHand(lambda m, q, k: q @ k * m.number.astype("float32").item(), number=np.float64(0.3))
    assert space_of(by_hand).widths == {"q": 16, "v": 12}
    by_type = ByHand(lambda m, q, k: q @ k * type(m.number)(0.3) * type(m.size)(2), number=0.5, size=3)
    assert space_of(by_type).widths == {"q": 16, "v": 12}


def test_a_number_of_the_same_value_that_scales_no_product_stays() -> None:
    """A share to drop of 0.25 is no scale, though 16 ** -0.5 is as much."""

    def fused(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.q(x), m.k(x), m.v(x)
        p = m.dropout if m.training else 0.0
        return m.out(F.scaled_dot_product_attention(q, k, v, dropout_p=p, scale=m.scale))

    class Fused(ByHand):
        def forward(self, x: Tensor) -> Any:
            return fused(self, x)

    space = space_of(Fused(torch.matmul, dropout=0.25, scale=0.25, unread=0.25))
    assert space.widths == {"q": 16, "v": 12}
    resized = space.resize({"q": 64, "v": 12})
    assert (resized.dropout, resized.scale, resized.unread) == (0.25, 0.125, 0.25)

    by_hand = ByHand(
        lambda m, q, k: F.dropout(q @ k * m.scale, m.dropout, m.training), scale=0.25, dropout=0.25
    )
    resized = space_of(by_hand).resize({"q": 64, "v": 12})
    assert (resized.dropout, resized.scale) == (0.25, 0.125)


def test_a_number_that_scales_a_product_and_something_else_stays() -> None:
    both = ByHand(lambda m, q, k: F.dropout(q @ k * m.number, m.number, m.training), number=0.25)
    space = space_of(both)
    assert space.resize({"q": 64, "v": 12}).number == 0.25
    assert [line.partition(" does")[0] for line in space.stale()] == ["ByHand.number = 0.25 = 16 ** -0.5"]

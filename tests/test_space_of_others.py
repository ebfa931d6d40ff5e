"""What the code of other people does: tables, caches, closures, noise, sizes in configs, computed weights."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import costs_are_torchs, half_of_each, removal
from networks import Run, vectors
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from widthsearch.errors import UsageError
from widthsearch.space import WidthSpace, trace

try:
    import einops
except ImportError:  # no part of the test environment: the cache of our own stands for it
    einops = None

VECTOR, SEQUENCE = vectors(5), vectors(6, 5)


def searched(model: nn.Module, example: Any, widths: list[int]) -> WidthSpace:
    """A space that a search can use: what it finds is exact, also seen at other widths."""
    space = trace(model.eval(), example)
    assert list(space.widths.values()) == widths, space.frozen
    wide = {name: 2 * width for name, width in space.widths.items()}
    assert space.at(wide).widths == wide
    assert costs_are_torchs(space, example)
    found = removal(space, example, half_of_each(space))
    assert found.error < 1e-5
    assert found.effect > 1e-3
    return space


# ---------------------------------------------------------------- fixed tables


class Positions(nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", table)

    def forward(self, x: Tensor) -> Any:
        return x + self.table[: x.shape[1]]


def with_table(table: Tensor) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), Positions(table), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def sinusoids(shape: tuple[int, ...]) -> Tensor:
    return torch.outer(torch.arange(shape[0]), 0.5 ** torch.arange(shape[1])).sin()


def test_a_fixed_table_freezes_its_width_at_all_widths() -> None:
    space = searched(with_table(sinusoids((9, 16))), SEQUENCE, [12])
    assert [(f.name, f.width) for f in space.frozen] == [("0", 16)]
    assert [f.name for f in space.at({"2": 30}).frozen] == ["0"]


def test_a_table_that_is_the_same_for_all_units_is_resized() -> None:
    space = searched(with_table(torch.arange(9.0)[:, None].repeat(1, 16)), SEQUENCE, [16, 12])
    assert torch.equal(
        space.resize({"0": 5, "2": 4}).get_buffer("1.table"), torch.arange(9.0)[:, None].repeat(1, 5)
    )


def test_a_table_is_made_by_a_function_of_the_users() -> None:
    space = trace(with_table(sinusoids((9, 16))), SEQUENCE, buffers={"*.table": sinusoids})
    assert list(space.widths.values()) == [16, 12]
    assert torch.equal(space.resize({"0": 6, "2": 4}).get_buffer("1.table"), sinusoids((9, 6)))
    assert space.at({"0": 20, "2": 4}).widths == {"0": 20, "2": 4}
    with pytest.raises(UsageError, match=r"no such buffer; there are: 1.table"):
        trace(with_table(sinusoids((9, 16))), SEQUENCE, buffers={"pe": sinusoids})


# ---------------------------------------------------------------- attention


@functools.lru_cache
def split_shape(batch: int, time: int, heads: int) -> tuple[int, ...]:
    return batch, time, heads, -1


class Attention(nn.Module):
    """Weights so small that fresh attention is a mean; ``split`` makes heads of a (N, T, D) tensor."""

    def __init__(self, split: Callable[[Any, Tensor], Tensor], dim: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale, self.split = heads, (dim // heads) ** -0.5, split
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        for linear in (self.qkv, self.out):
            nn.init.trunc_normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (self.split(self, t) for t in self.qkv(x).chunk(3, -1))
        y = (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))


def attentive(split: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), *(Attention(split) for _ in range(2)), nn.Linear(32, 3))


def cached(m: Any, t: Tensor) -> Tensor:
    return t.view(split_shape(*t.shape[:2], m.heads)).transpose(1, 2)


def by_einops(m: Any, t: Tensor) -> Tensor:
    return einops.rearrange(t, "b n (h d) -> b h n d", h=m.heads)


@pytest.mark.parametrize("split", [cached, *([by_einops] if einops else [])])
@pytest.mark.parametrize("ran_before", [False, True])
def test_a_cache_by_value_does_not_hide_whose_size_it_is(split: Any, ran_before: bool) -> None:
    model, example = attentive(split), vectors(40, 5)
    if ran_before:
        model(*example)
    space = searched(model, example, [32, 4, 4])
    wide = space.resize(dict(zip(space.widths, (48, 6, 3), strict=True)))
    assert [m.heads for m in wide.modules() if isinstance(m, Attention)] == [6, 3]


def test_einops_layers_keep_their_sizes_in_dicts() -> None:
    layers = pytest.importorskip("einops.layers.torch")

    class Own(Attention):
        def __init__(self) -> None:
            super().__init__(lambda m, t: m.rearrange(t))
            self.rearrange = layers.Rearrange("b n (h d) -> b h n d", h=4)

    model = nn.Sequential(nn.Linear(5, 32), Own(), nn.Linear(32, 3))
    space = searched(model, vectors(40, 5), [32, 4])
    assert repr(space.resize(dict(zip(space.widths, (32, 7), strict=True)))[1].rearrange).endswith("h=7)")  # type: ignore[index]


def test_heads_that_cannot_follow_leave_their_size_to_search() -> None:
    """The number of heads is a literal: a nearly uniform attention must not hide that."""
    space = searched(
        attentive(lambda m, t: t.view(*t.shape[:2], 4, -1).transpose(1, 2)), vectors(40, 5), [32, 8, 8]
    )
    narrow = space.resize(dict(zip(space.widths, (32, 5, 6), strict=True)))
    assert [m.scale for m in narrow.modules() if isinstance(m, Attention)] == [5**-0.5, 6**-0.5]


def test_a_size_in_a_slice_with_dots_is_that_of_its_dimension() -> None:
    class Rotary(Attention):
        """As many heads as turned places: 4."""

        def __init__(self) -> None:
            super().__init__(lambda m, t: m.turned(t.view(*t.shape[:2], m.heads, -1).transpose(1, 2)))
            self.turn = 4

        def turned(self, t: Tensor) -> Tensor:
            return torch.cat([-t[..., : self.turn], t[..., self.turn :]], -1)

    space = searched(nn.Sequential(nn.Linear(5, 32), Rotary(), nn.Linear(32, 3)), SEQUENCE, [32, 4])
    assert space.resize(dict(zip(space.widths, (32, 6), strict=True)))[1].turn == 4  # type: ignore[index]


# ---------------------------------------------------------------- closures


class Closed(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"up": nn.Linear(16, 24), "down": nn.Linear(24, 16)})
        mlp = self.mlp
        inner = lambda x: torch.relu(mlp["up"](x))  # noqa: E731
        self.apply_mlp = {
            "closure": lambda x: mlp["down"](inner(x)),
            "default": lambda x, m=mlp: m["down"](torch.relu(m["up"](x))),
            "partial": functools.partial(lambda m, x: m["down"](torch.relu(m["up"](x))), mlp),
            "list": [lambda x: mlp["down"](inner(x))],
        }[how]

    def forward(self, x: Tensor) -> Any:
        f = self.apply_mlp[0] if isinstance(self.apply_mlp, list) else self.apply_mlp
        return x + f(x)


@pytest.mark.parametrize("how", ["closure", "default", "partial", "list"])
def test_functions_that_hold_layers_are_copied_with_them(how: str) -> None:
    model = nn.Sequential(nn.Linear(5, 16), Closed(how), nn.Linear(16, 3))
    space = searched(model, VECTOR, [16, 24])
    for copied in (
        space.resize({"0": 7, "1.mlp.up": 9}),
        space.at(space.widths).model,
        space.compact(half_of_each(space)),
    ):
        copied(*VECTOR).sum().backward()
        assert all(p.grad is not None for p in copied.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_layer_that_no_copy_can_reach_is_refused_by_name() -> None:
    shared = nn.Linear(16, 16)

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.registered = shared

        def forward(self, x: Tensor) -> Any:
            return shared(x)  # not self.registered

    with pytest.raises(
        UsageError, match=r"1.registered.weight is used in the forward of '1' through something"
    ):
        trace(nn.Sequential(nn.Linear(5, 16), Outside(), nn.Linear(16, 3)), VECTOR)


# ---------------------------------------------------------------- noise


def variational(m: Any, x: Tensor) -> Any:
    mean, spread = m.mean(torch.relu(m.enc(x))), m.spread(torch.relu(m.enc(x)))
    return m.out(torch.relu(m.dec(mean + torch.randn_like(mean) * spread.exp()))), mean, spread


def randomly_masked(m: Any, x: Tensor) -> Any:
    x = m.enc(x)
    kept = torch.rand(x.shape[:2], device=x.device).argsort(1)[:, :3]
    return m.out(torch.relu(m.dec(x.gather(1, kept[..., None].repeat(1, 1, x.shape[-1])))))


def monte_carlo(m: Any, x: Tensor) -> Any:
    x = F.dropout(torch.relu(m.enc(x)), 0.3, training=True)
    return m.out(torch.relu(m.dec(x)) * torch.empty(m.dec.weight.shape[0], device=x.device).uniform_(0.5, 1))


@pytest.mark.parametrize(
    ("run", "middle", "example"),
    [(variational, 4, VECTOR), (randomly_masked, 16, SEQUENCE), (monte_carlo, 16, VECTOR)],
)
def test_noise_in_eval_mode_hides_no_variable(run: Any, middle: int, example: Any) -> None:
    latent = {"mean": nn.Linear(16, 4), "spread": nn.Linear(16, 4)} if run is variational else {}
    model = Run(run, enc=nn.Linear(5, 16), **latent, dec=nn.Linear(middle, 12), out=nn.Linear(12, 5))
    space = trace(model.eval(), example)
    assert list(space.widths.values()) == [16, 12]


# ---------------------------------------------------------------- sizes


@dataclasses.dataclass(frozen=True)
class Config:
    dim: int
    inner: int


class Gated(nn.Module):
    def __init__(self, config: Any, read: Callable[[Any], int]) -> None:
        super().__init__()
        self.config, self.read = config, read
        self.up, self.back = nn.Linear(16, 48), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Any:
        inner = self.read(self.config)
        a, b = self.up(x).split([inner, inner], -1)
        return x + self.back(a * torch.sigmoid(b))


@pytest.mark.parametrize(
    ("config", "read"),
    [
        (types.SimpleNamespace(dim=16, inner=24), lambda c: c.inner),
        (Config(16, 24), lambda c: c.inner),
        ({"block": {"inner": 24}}, lambda c: c["block"]["inner"]),
        ([16, (24, 1)], lambda c: c[1][0]),
    ],
)
def test_sizes_in_configs_follow_block_by_block(config: Any, read: Any) -> None:
    model = nn.Sequential(nn.Linear(5, 16), Gated(config, read), Gated(config, read), nn.Linear(16, 3))
    space = searched(model, VECTOR, [16, 24, 24])
    resized: Any = space.resize(dict(zip(space.widths, (7, 5, 9), strict=True)))
    assert [read(resized[k].config) for k in (1, 2)] == [5, 9]
    assert read(config) == 24


class Asserts(nn.Module):
    def __init__(self, reads: int, makes: int) -> None:
        super().__init__()
        self.channels, self.out_channels, self.conv = reads, makes, nn.Conv2d(reads, makes, 3)

    def forward(self, x: Tensor) -> Any:
        assert x.shape[1] == self.channels
        x = self.conv(x)
        if x.shape[1] != self.out_channels:
            raise ValueError(f"{x.shape[1]} channels")
        return x.relu()


def test_sizes_that_are_only_compared_follow() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Asserts(8, 8), Asserts(8, 12), nn.Flatten(2), Run(lambda m, x: x.mean(-1)), nn.Linear(12, 2)
    )  # fmt: skip
    space = searched(model, vectors(3, 8, 8), [8, 8, 12])
    resized: Any = space.resize(dict(zip(space.widths, (5, 6, 7), strict=True)))
    assert [(resized[k].channels, resized[k].out_channels) for k in (1, 2)] == [(5, 6), (6, 7)]


def halves(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    half = x.shape[-1] // 2
    p, q = x.split((half, half), -1)
    return m.b(torch.cat([p.relu(), q], -1))


def test_halves_by_a_tuple_of_sizes_are_halves() -> None:
    searched(Run(halves, a=nn.Linear(5, 16), b=nn.Linear(16, 3)), VECTOR, [8])


def test_what_an_lstm_projects_to_stays_below_its_state() -> None:
    def net(hidden: int, projected: int) -> nn.Module:
        cell = nn.LSTM(5, hidden, proj_size=projected, batch_first=True)
        return Run(lambda m, x: m.out(m.cell(x)[0]), cell=cell, out=nn.Linear(projected, 3))

    space = searched(net(16, 4), SEQUENCE, [4])
    resized: Any = space.resize({"cell.weight_hh_l0": 6})
    assert (resized.cell.hidden_size, resized.cell.proj_size) == (24, 6)
    uneven = trace(net(16, 5), SEQUENCE)
    assert [(f.width, f.reason) for f in uneven.frozen] == [
        (16, "cell: nn.LSTM needs a hidden size above its proj_size"),
        (5, "cell: nn.LSTM needs a hidden size above its proj_size"),
    ]


# ---------------------------------------------------------------- computed weights


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, w / (w.std(1, keepdim=True) + 1e-5), self.bias)


class StandardisedByBatchNorm(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        w = F.batch_norm(self.weight[None], None, None, training=True, momentum=0.0)
        return F.linear(x, w[0], self.bias)


class LowRank(nn.Linear):
    def __init__(self, reads: int, makes: int) -> None:
        super().__init__(reads, makes)
        self.down, self.up = nn.Parameter(torch.randn(4, reads)), nn.Parameter(torch.randn(makes, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.up @ self.down, self.bias)


def pruned(reads: int, makes: int) -> nn.Module:
    return prune.identity(nn.Linear(reads, makes), "weight")  # type: ignore[no-untyped-call]


COMPUTED: dict[str, Callable[[int, int], nn.Module]] = {
    "weight_norm": lambda i, o: parametrizations.weight_norm(nn.Linear(i, o)),
    "weight_norm of a convolution": lambda i, o: nn.Sequential(
        nn.Unflatten(1, (i, 1)), parametrizations.weight_norm(nn.Conv1d(i, o, 1)), nn.Flatten()
    ),
    "weight_norm of a transposed convolution": lambda i, o: nn.Sequential(
        nn.Unflatten(1, (i, 1)), parametrizations.weight_norm(nn.ConvTranspose1d(i, o, 1)), nn.Flatten()
    ),
    "weight_norm of a whole weight": lambda i, o: parametrizations.weight_norm(nn.Linear(i, o), dim=None),  # type: ignore[arg-type]
    "standardised by batch_norm": StandardisedByBatchNorm,
    "old weight_norm": lambda i, o: old_weight_norm(nn.Linear(i, o)),
    "spectral_norm": lambda i, o: parametrizations.spectral_norm(nn.Linear(i, o)),
    "old spectral_norm": lambda i, o: old_spectral_norm(nn.Linear(i, o)),
    "pruning mask": pruned,
    "standardised": Standardised,
    "low rank": LowRank,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("layer", COMPUTED.values(), ids=COMPUTED.keys())
def test_computed_weights_are_gated_exactly(layer: Callable[[int, int], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer(5, 16), nn.ReLU(), layer(16, 12), nn.ReLU(), layer(12, 3))
    ranks = [4, 4, 4] if layer is LowRank else []
    space = searched(model, VECTOR, [16, 12, *ranks])
    assert (
        list(space.widths)[:2] == [n + (".1" if "Flatten" in str(model) else "") for n in ("0", "2")] or ranks
    )
    widths = dict(zip(space.widths, (9, 7, 2, 2, 2), strict=False))
    resized = space.resize(widths).train()
    resized(*VECTOR).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in resized.parameters())


class Splines(nn.Module):
    """A layer of a Kolmogorov-Arnold network, as efficient-kan writes it: B-splines of each input on a fixed grid."""

    def __init__(self, reads: int, makes: int, intervals: int = 5, order: int = 3) -> None:
        super().__init__()
        self.in_features, self.out_features, self.order = reads, makes, order
        self.grid: Tensor
        knots = torch.arange(-order, intervals + order + 1) * (2 / intervals) - 1
        self.register_buffer("grid", knots.repeat(reads, 1))
        self.base, self.scaler = (nn.Parameter(torch.randn(makes, reads) / 4) for _ in range(2))
        self.coefficients = nn.Parameter(torch.randn(makes, reads, intervals + order) / 4)

    def bases(self, x: Tensor) -> Tensor:
        """Cox and de Boor's recursion: (N, inputs) to (N, inputs, intervals + order)."""
        assert x.shape[1] == self.in_features
        x, knots = x.unsqueeze(-1), self.grid
        b = ((x >= knots[:, :-1]) & (x < knots[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            rising = (x - knots[:, : -(k + 1)]) / (knots[:, k:-1] - knots[:, : -(k + 1)])
            falling = (knots[:, k + 1 :] - x) / (knots[:, k + 1 :] - knots[:, 1:-k])
            b = rising * b[:, :, :-1] + falling * b[:, :, 1:]
        return b

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.coefficients * self.scaler.unsqueeze(-1)).view(self.out_features, -1)
        return F.linear(F.silu(x), self.base) + F.linear(self.bases(x).flatten(1), weight)


def test_splines_of_units_on_a_grid_follow_them() -> None:
    torch.manual_seed(0)
    space = searched(nn.Sequential(Splines(5, 8), Splines(8, 6), Splines(6, 3)), VECTOR, [8, 6])
    resized: Any = space.resize(dict(zip(space.widths, (5, 9), strict=True)))
    assert torch.equal(resized[2].grid, Splines(9, 3).grid)


class Identity(Splines):
    """Starts as the identity, whose coefficients are means of knots (Marsden 1970)."""

    def __init__(self, reads: int, makes: int) -> None:
        super().__init__(reads, makes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.coefficients.copy_(self.grid.unfold(1, self.order, 1)[:, 1:-1].mean(-1))


def test_reset_parameters_may_read_a_table() -> None:
    torch.manual_seed(0)
    space = searched(nn.Sequential(Identity(5, 8), Identity(8, 6), Identity(6, 3)), VECTOR, [8, 6])
    wide: Any = space.resize(dict(zip(space.widths, (20, 9), strict=True)))[1]
    x = torch.linspace(-1, 0.99, 3 * 20).view(3, 20)
    torch.testing.assert_close(torch.einsum("nik,ik->ni", wide.bases(x), wide.coefficients[4]), x)


def test_reset_parameters_that_fails_at_other_widths_is_a_reason() -> None:
    class Sized(nn.Linear):
        def __init__(self, reads: int, makes: int) -> None:
            self.made = makes
            super().__init__(reads, makes, bias=False)  # which nobody would initialise

        def reset_parameters(self) -> None:
            self.weight.data.view(self.made, -1, self.in_features).normal_()

    space = trace(nn.Sequential(Sized(5, 8), nn.Linear(8, 3)), VECTOR)
    assert not space.widths
    assert "reset_parameters of '0' fails at other widths: RuntimeError: shape" in space.frozen[0].reason


# ---------------------------------------------------------------- nothing is lost in silence


class HiddenToo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.head = (
            nn.Linear(*s) for s in ((5, 16), (16, 24), (24, 16), (16, 3))
        )

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.up(x)))
        return {"logits": self.head(x), "last_hidden_state": x}


def test_a_hidden_state_that_is_returned_is_named() -> None:
    space = trace(HiddenToo(), VECTOR)
    assert space.widths == {"up": 24}
    assert [(f.name, f.width) for f in space.frozen] == [("stem", 16)]
    assert space.frozen[0].reason.startswith("an output of the network")


@pytest.mark.parametrize("output", ["logits", 0])
def test_of_several_outputs_one_may_count(output: str | int) -> None:
    model = HiddenToo()
    if output == 0:
        model.register_forward_hook(lambda module, inputs, out: tuple(out.values()))
    space = trace(model, VECTOR, output=output)
    assert space.widths == {"stem": 16, "up": 24}
    assert not space.frozen
    wide = space.at({"stem": 20, "up": 7})
    assert wide.widths == {"stem": 20, "up": 7}
    assert removal(wide, VECTOR, half_of_each(wide)).error < 1e-5
    with pytest.raises(UsageError, match="output='other': the model returns dict without it"):
        trace(HiddenToo(), VECTOR, output="other")

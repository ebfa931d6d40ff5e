"""Single operations and layers between two linear ones: which widths they leave, exactly gated and resized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import costs_are_torchs, counted_macs, half_of_each, random_widths, removal
from networks import Run, randomise, vectors
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from widthsearch.space import WidthSpace, trace
from widthsearch.training.gates import Gates


def warped(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    out: Tensor = m.b(F.grid_sample(y, m.flow(y).permute(0, 2, 3, 1).tanh(), align_corners=False))
    return out


def pooled_and_back(m: Any, x: Tensor) -> Tensor:
    y, places = F.max_pool2d(m.a(x), 2, return_indices=True)
    out: Tensor = m.b(F.max_unpool2d(m.up(m.down(y)), places, 2))
    return out


def of_several_lengths(m: Any, x: Tensor) -> Tensor:
    packed = pack_padded_sequence(m.embed(x), torch.tensor([6, 4]), batch_first=True)
    steps, _ = pad_packed_sequence(m.lstm(packed)[0], batch_first=True)
    out: Tensor = m.b(steps)
    return out


class Own(Run):
    """The same, whose tuples become parameters of these shapes."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        made = {
            name: nn.Parameter(torch.randn(part, generator=generator) * 0.3)
            if isinstance(part, tuple)
            else part
            for name, part in parts.items()
        }
        super().__init__(run, **made)


def between(f: Callable[[Tensor], Tensor], out: int = 8) -> nn.Module:
    return Own(lambda m, x: m.b(f(m.a(x))), a=nn.Linear(5, 8), b=nn.Linear(out, 3))


def steps(f: Callable[[Tensor], Tensor]) -> nn.Module:
    """Over a sequence of six steps."""
    return Own(lambda m, x: m.b(f(m.a(x))), a=nn.Linear(5, 8), b=nn.Linear(8, 3))


EDGES = torch.tensor([0, 1])
MASK = [[1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 1]]


def masked(y: Tensor, token: Tensor) -> Tensor:
    y = y.clone()
    y[y.new_tensor(MASK).bool()] = token
    return y


def einsum_attention(m: Any, x: Tensor) -> Any:
    q, k, v = (torch.einsum("ntd,dhe->nhte", m.embed(x), w) for w in (m.q, m.k, m.v))
    return m.out(torch.einsum("nhte,hed->ntd", (q @ k.mT).softmax(-1) @ v, m.o))


def grouped_queries(m: Any, x: Tensor) -> Any:
    """Four heads of queries, two of keys and values, of size 6."""
    x = m.embed(x)
    q, k, v = (f(x).view(*x.shape[:2], -1, 6).transpose(1, 2) for f in (m.q, m.k, m.v))
    if m.how == "repeated":
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=m.how != "repeated")
    return m.out(x + m.o(y.transpose(1, 2).flatten(2)))


def grouped(how: str) -> nn.Module:
    layers = {"q": nn.Linear(24, 24), "k": nn.Linear(24, 12), "v": nn.Linear(24, 12), "o": nn.Linear(24, 24)}
    return Own(grouped_queries, how=how, embed=nn.Linear(5, 24), out=nn.Linear(24, 3), **layers)


def split_by_stated_sizes(m: Any, x: Tensor) -> Any:
    p, q, r = torch.split(m.up(x), [m.first, m.second, m.third], -1)
    return m.f(p) + m.g(q) + m.h(r)


def experts(*, by_loop: bool) -> nn.Module:
    """Two experts, of one row each."""

    def mixture(m: Any, x: Tensor) -> Any:
        rows, w = m.a(x).bfloat16(), m.w.bfloat16()
        if by_loop:
            y = torch.cat([rows[k : k + 1] @ w[k] for k in range(2)])
        else:
            y = torch._grouped_mm(rows, w, offs=torch.tensor([1, 2], dtype=torch.int32))
        return m.b(y.float())

    return Own(mixture, a=nn.Linear(5, 16), b=nn.Linear(24, 3), w=(2, 16, 24))


VECTOR, SEQUENCE = vectors(5), vectors(6, 5)
FOLLOWED: dict[str, tuple[nn.Module, tuple[Tensor, ...], list[int]]] = {
    "norm, by keywords": (between(lambda y: y / (y.norm(p=2, dim=-1, keepdim=True) + 1)), VECTOR, [8]),
    "norm, of order 1": (between(lambda y: y / (y.norm(1, -1, keepdim=True) + 1)), VECTOR, [8]),
    "vector norm": (between(lambda y: y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)), VECTOR, [8]),
    "linalg norm": (between(lambda y: y / torch.linalg.norm(y, dim=-1, keepdim=True)), VECTOR, [8]),
    "normalize": (between(lambda y: F.normalize(y, dim=-1)), VECTOR, [8]),
    "mean, NumPy's names": (between(lambda y: y - y.mean(axis=-1, keepdims=True)), VECTOR, [8]),
    "mean, input by name": (between(lambda y: y - torch.mean(input=y, dim=-1, keepdim=True)), VECTOR, [8]),
    "mean, of another type": (
        between(lambda y: (y - y.mean(-1, keepdim=True, dtype=torch.float64)).float()),
        VECTOR,
        [8],
    ),
    "std of everything": (between(lambda y: y / (y.std(False) + 1)), VECTOR, [8]),
    "pooling of channels last": (
        Own(
            lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x).permute(0, 3, 1, 2), 1).flatten(1)),
            a=nn.Linear(5, 8),
            b=nn.Linear(8, 3),
        ),
        vectors(6, 6, 5),
        [8],
    ),
    "unflatten": (
        nn.Sequential(
            nn.Linear(5, 32), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 4, 2), nn.Conv2d(4, 3, 1)
        ),
        VECTOR,
        [8, 4],
    ),
    "split by sizes": (
        Own(
            split_by_stated_sizes,
            first=6,
            second=4,
            third=5,
            up=nn.Linear(5, 15),
            f=nn.Linear(6, 3),
            g=nn.Linear(4, 3),
            h=nn.Linear(5, 3),
        ),
        VECTOR,
        [6, 4, 5],
    ),
    "bag of embeddings": (
        nn.Sequential(nn.EmbeddingBag(11, 8), nn.Linear(8, 3)),
        (torch.arange(10).reshape(2, 5),),
        [8],
    ),
    "cell without a state": (
        Own(lambda m, x: m.out(m.cell(x[:, 0])[0]), cell=nn.LSTMCell(5, 10), out=nn.Linear(10, 3)),
        SEQUENCE,
        [10],
    ),
    "cell in a loop": (
        Own(
            lambda m, x: m.out(m.cell(x[:, 1], m.cell(x[:, 0], torch.zeros(len(x), m.size)))),
            cell=nn.GRUCell(5, 10),
            out=nn.Linear(10, 3),
            size=10,
        ),
        SEQUENCE,
        [10],
    ),
    "LSTM with a projection": (
        Own(
            lambda m, x: m.out(m.cell(x)[0]),
            cell=nn.LSTM(5, 10, proj_size=5, batch_first=True),
            out=nn.Linear(5, 3),
        ),
        SEQUENCE,
        [5],
    ),
    "weights shaped heads x size": (
        Own(
            einsum_attention,
            embed=nn.Linear(5, 24),
            q=(24, 4, 5),
            k=(24, 4, 5),
            v=(24, 4, 5),
            o=(4, 5, 24),
            out=nn.Linear(24, 3),
        ),
        SEQUENCE,
        [24, 4, 5, 5, 24],
    ),
    "a weight-normed layer": (
        nn.Sequential(weight_norm(nn.Linear(5, 8)), nn.ReLU(), nn.Linear(8, 3)),
        VECTOR,
        [8],
    ),
    "cosine similarity": (
        between(lambda y: y * F.cosine_similarity(y, y.flip(0), dim=-1)[:, None]),
        VECTOR,
        [8],
    ),
    "distances to prototypes": (
        Own(lambda m, x: torch.cdist(m.a(x), m.p), a=nn.Linear(5, 8), p=(3, 8)),
        VECTOR,
        [8],
    ),
    "a bilinear layer": (
        Own(
            lambda m, x: m.o(m.b(m.a(x), m.a(x).relu())),
            a=nn.Linear(5, 8),
            b=nn.Bilinear(8, 8, 6),
            o=nn.Linear(6, 3),
        ),
        VECTOR,
        [8, 6],
    ),
    "tokens by number": (
        steps(lambda y: y.gather(1, torch.tensor([[1, 4], [0, 2]])[..., None].expand(-1, -1, y.shape[-1]))),
        SEQUENCE,
        [8],
    ),
    "tokens by a mask": (steps(lambda y: y[y.new_tensor(MASK).bool()][None]), SEQUENCE, [8]),
    "tokens replaced": (
        steps(lambda y: y.index_put((torch.tensor([0]), torch.tensor([2])), y[1, 1])),
        SEQUENCE,
        [8],
    ),
    "a token for masked ones": (
        Own(lambda m, x: m.b(masked(m.a(x), m.token)), a=nn.Linear(5, 8), b=nn.Linear(8, 3), token=(8,)),
        SEQUENCE,
        [8],
    ),
    "nodes, scatter_add": (
        between(lambda y: y.new_zeros(2, y.shape[1]).scatter_add_(0, EDGES[:, None].expand_as(y), y)),
        VECTOR,
        [8],
    ),
    "nodes, scatter_reduce": (
        between(
            lambda y: y.new_zeros(2, y.shape[1]).scatter_reduce(0, EDGES[:, None].expand_as(y), y, "amax")
        ),
        VECTOR,
        [8],
    ),
    "nodes, index_add": (between(lambda y: torch.zeros_like(y).index_add(0, EDGES, y)), VECTOR, [8]),
    "im2col and back": (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Unfold(3, padding=1),
            nn.Fold((6, 6), 3, padding=1),
            nn.Conv2d(8, 3, 1),
        ),
        vectors(3, 6, 6),
        [8],
    ),
    "im2col and a linear layer": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Unfold(2), Own(lambda m, x: m.b(x.mT), b=nn.Linear(32, 3))),
        vectors(3, 6, 6),
        [8],
    ),
    "windows": (steps(lambda y: y.unfold(1, 2, 1).amax(-1)), SEQUENCE, [8]),
    "a Fourier transform over time": (
        steps(lambda y: torch.fft.irfft(torch.fft.rfft(y, dim=1) * 0.5, n=6, dim=1)),
        SEQUENCE,
        [8],
    ),
    "complex numbers": (
        steps(lambda y: torch.view_as_real(torch.view_as_complex(torch.stack([y, -y], -1)) * 1j)[..., 0]),
        SEQUENCE,
        [8],
    ),
    "a loss inside": (
        Own(
            lambda m, x: m.b(m.a(x)) + F.mse_loss(m.a(x), torch.ones_like(m.a(x))),
            a=nn.Linear(5, 8),
            b=nn.Linear(8, 3),
        ),
        VECTOR,
        [8],
    ),
    "experts, grouped": (experts(by_loop=False), VECTOR, [2, 3]),  # blocks of 8: its rows are aligned
    "a sum over units": (
        Own(
            lambda m, x: (m.a(x) * m.b(x.flip(1))).sum(-1, keepdim=True) * torch.ones(3),
            a=nn.Linear(5, 8),
            b=nn.Linear(5, 8),
        ),
        VECTOR,
        [8],
    ),
    "a part without any units": (between(lambda y: torch.cat([y, y[:, y.shape[1] :: 2]], 1)), VECTOR, [8]),
    "a warped image": (
        Own(warped, a=nn.Conv2d(3, 8, 3), flow=nn.Conv2d(8, 2, 1), b=nn.Conv2d(8, 3, 1)),
        vectors(3, 6, 6),
        [8],
    ),
    "pooling and back": (  # what goes back to the places that the first layer's channels noted is as wide
        Own(
            pooled_and_back,
            a=nn.Conv2d(3, 8, 3),
            down=nn.Conv2d(8, 6, 1),
            up=nn.Conv2d(6, 8, 1),
            b=nn.Conv2d(8, 3, 1),
        ),
        vectors(3, 6, 6),
        [8, 6],
    ),
    "sequences of several lengths": (
        Own(
            of_several_lengths,
            embed=nn.Linear(5, 8),
            lstm=nn.LSTM(8, 6, batch_first=True),
            b=nn.Linear(6, 3),
        ),
        SEQUENCE,
        [8, 6],
    ),
    "grouped queries": (grouped("fused"), SEQUENCE, [24, 2]),
    "grouped queries, repeated keys": (grouped("repeated"), SEQUENCE, [24, 2]),
}
EACH = pytest.mark.parametrize(("model", "example", "widths"), FOLLOWED.values(), ids=FOLLOWED.keys())


def space_of(model: nn.Module, example: tuple[Tensor, ...]) -> WidthSpace:
    torch.manual_seed(0)
    return trace(randomise(model).eval(), example)


@EACH
def test_widths_are_found_cost_what_torch_counts_and_can_be_removed(
    model: nn.Module, example: tuple[Tensor, ...], widths: list[int]
) -> None:
    space = space_of(model, example)
    assert list(space.widths.values()) == widths
    assert not space.frozen
    assert costs_are_torchs(space, example)
    resized = space.resize(random_widths(space, seed=0, least=2))
    assert resized(*example).shape == model(*example).shape
    found = removal(space, example, half_of_each(space))
    assert found.error < 1e-5
    assert found.effect > 1e-3


def test_experts_cost_as_much_grouped_as_one_by_one() -> None:
    space = trace(experts(by_loop=False), VECTOR)
    one_by_one = experts(by_loop=True)
    assert (
        space.cost.at(space.widths)["macs"] == counted_macs(one_by_one, VECTOR) == 5 * 16 + 16 * 24 + 24 * 3
    )
    widths = dict(zip(space.widths, (4, 5), strict=True))  # blocks of 8
    assert space.cost.at(widths)["macs"] == 5 * 32 + 32 * 40 + 40 * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_networks_of_other_types_are_gated_in_their_own(norm: type[nn.Module], dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5, 8), norm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
    x = VECTOR[0].to(dtype)
    space = trace(model, x)
    assert list(space.widths.values()) == [8, 6]
    gates = Gates(space)
    gates.log_alpha.fill(10.0)
    with torch.no_grad(), gates.attached():
        opened = model.eval()(x)
    assert opened.dtype == dtype
    torch.testing.assert_close(opened, model(x), rtol=0.02, atol=0.02)


FROZEN: dict[str, tuple[nn.Module, str]] = {
    "every second unit": (between(lambda y: y[..., ::2], 4), "takes a part of these units by position"),
    "norm of infinite order": (
        between(lambda y: y / (y.norm(float("inf"), -1, keepdim=True) + 1)),
        "without some of its units the network does not run",
    ),
    "largest units": (
        between(lambda y: y.topk(4, -1)[0], 4),
        "topk in the model's own forward: picks these units by their values",
    ),
    "where the maximum is": (
        between(lambda y: y * y.max(1, keepdim=True)[1]),
        "max in the model's own forward: tells which of these units it is",
    ),
    "argmax": (
        between(lambda y: y * y.argmax(1, keepdim=True)),
        "argmax in the model's own forward: reduces",
    ),
    "units by number": (between(lambda y: y.gather(1, torch.tensor([[0, 3], [1, 2]])), 2), "gather in"),
}


def test_a_shortcut_padded_with_zeros_keeps_what_lies_beside_constants() -> None:
    """As in the ResNets for CIFAR: of the wider stage, the middle is the narrower one."""
    model = Own(
        lambda m, x: m.o(F.pad(m.a(x).relu(), (4, 4)) + m.b(m.a(x).relu())),
        a=nn.Linear(5, 8),
        b=nn.Linear(8, 16),
        o=nn.Linear(16, 3),
    )
    space = space_of(model, VECTOR)
    assert (space.widths, [(f.name, f.width) for f in space.frozen]) == ({"a": 8}, [("b", 8)])
    assert space.resize({"a": 3}).b.weight.shape == (11, 3)  # type: ignore[union-attr]
    assert costs_are_torchs(space, VECTOR)
    assert removal(space, VECTOR, half_of_each(space)).error < 1e-5


def test_a_random_state_of_a_stated_size_is_a_constant() -> None:
    def run(m: Any, x: Tensor) -> Any:
        state = torch.randn(1, len(x), m.size)
        return m.out(m.cell(x, (state, state))[0])

    model = Own(run, cell=nn.LSTM(5, 10, batch_first=True), out=nn.Linear(10, 3), size=10)
    space = trace(model.eval(), SEQUENCE)
    assert space.widths == {}
    assert [(f.width, f.reason) for f in space.frozen] == [
        (10, "addmm in 'cell': tied to a constant size (10)")
    ]


@pytest.mark.parametrize(("model", "reason"), FROZEN.values(), ids=FROZEN.keys())
def test_what_cannot_be_followed_is_frozen_with_the_reason(model: nn.Module, reason: str) -> None:
    space = space_of(model, VECTOR)
    assert space.widths == {}
    assert [f.name for f in space.frozen] == ["a"]
    assert reason in space.frozen[0].reason

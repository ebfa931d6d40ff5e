"""Maxima, any and all over units, as of the open ones alone; layers and functions called by keywords."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactness import costs_are_torchs, half_of_each, removal
from networks import Run, randomise, vectors
from torch import Tensor, nn

from widthsearch.space import Gating, WidthSpace, trace


def between(f: Callable[[Tensor], Any], width: int = 8) -> nn.Module:
    return Run(lambda m, x: m.b(f(m.a(x))), a=nn.Linear(5, width), b=nn.Linear(width, 3))


def checked(h: Tensor) -> Tensor:
    assert not torch.isnan(h).any()
    assert (h == h.clone()).all()
    return h


def logged(h: Tensor) -> Tensor:
    assert h.max().item() > h.min().item()
    return h


def spatial_attention(m: Any, x: Tensor) -> Tensor:
    """The second half of CBAM (Woo et al. 2018)."""
    x = m.a(x)
    both = torch.cat([x.mean(1, keepdim=True), torch.max(x, 1)[0].unsqueeze(1)], 1)
    return m.b(x * torch.sigmoid(m.where(both)))


VECTOR, SEQUENCE, IMAGE = vectors(5)[0], vectors(6, 5)[0], vectors(3, 6, 6)[0]
FOLLOWED: dict[str, tuple[nn.Module, Tensor]] = {
    "amax": (between(lambda h: h - h.amax(1, keepdim=True)), VECTOR),
    "max, NumPy's names": (between(lambda h: h - torch.max(input=h, axis=-1, keepdims=True)[0]), VECTOR),
    "min": (between(lambda h: h - h.min(dim=1, keepdim=True).values), VECTOR),
    "amin over all": (between(lambda h: h - torch.amin(h, (0, 1))), VECTOR),
    "max of what may be -inf": (
        between(lambda h: h * h.masked_fill(h < 0, -torch.inf).amax(1, True).clamp(-9, 9)),
        VECTOR,
    ),
    "max of everything": (between(lambda h: h / h.abs().max()), VECTOR),
    "max of whole numbers": (between(lambda h: h * (8 * h).long().max(1, keepdim=True)[0]), VECTOR),
    "any": (between(lambda h: h * (h > 0.5).any(1, keepdim=True)), VECTOR),
    "all": (between(lambda h: h * (1 + (h > -0.4).all(dim=-1, keepdim=True).float())), VECTOR),
    "assertions": (between(checked), VECTOR),
    "a logged value": (between(logged), VECTOR),
    "attention by maximum and mean": (
        Run(
            spatial_attention,
            a=nn.Conv2d(3, 8, 3),
            where=nn.Conv2d(2, 1, 3, padding=1),
            b=nn.Conv2d(8, 3, 1),
        ),
        IMAGE,
    ),
}


def space_of(model: nn.Module, example: Any) -> WidthSpace:
    torch.manual_seed(0)
    return trace(randomise(model).eval(), example)


@pytest.mark.parametrize(("model", "example"), FOLLOWED.values(), ids=FOLLOWED.keys())
def test_reductions_that_choose_are_those_of_the_open_units(model: nn.Module, example: Tensor) -> None:
    space = space_of(model, example)
    assert space.widths == {"a": 8}
    assert not space.frozen
    assert costs_are_torchs(space, (example,))
    numbers = np.random.default_rng(0)
    with torch.no_grad():
        for _ in range(5):
            found = removal(space, (example,), {"a": numbers.permutation(8) >= numbers.integers(1, 8)})
            assert found.opened == 0.0
            assert found.error < 1e-5


@pytest.mark.parametrize("name", ["max", "min"])
def test_a_closing_unit_leaves_a_maximum_continuously(name: str) -> None:
    """Linear in its gate, down to the open unit that counts least."""
    sign = 1.0 if name == "max" else -1.0
    model = between(lambda h: h * 0 + getattr(h, name)(1, keepdim=True)[0], width=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("a.bias").copy_(sign * torch.tensor([-3.0, 2.0, 1.0]))
        model.get_parameter("b.weight").fill_(sign / 3)
    space = trace(model, VECTOR)
    assert space.widths == {"a": 3}
    gating = Gating(model, [3], (), space.statistics)
    for second, expected, slope in ((1.0, 2.0, 5.0), (0.9, 1.5, 5.0), (0.5, 1.0, 0.0), (0.0, 1.0, 0.0)):
        z = torch.tensor([1.0, second, 1.0], requires_grad=True)
        out = gating.run(z, VECTOR)[0, 0]
        assert float(out.detach()) == pytest.approx(expected)
        (gradient,) = torch.autograd.grad(out, z)
        assert float(gradient[1]) == pytest.approx(slope)
    alone = gating.run(torch.tensor([1.0, 0.0, 0.0]), VECTOR)
    assert float(alone[0, 0].detach()) == pytest.approx(-3.0)


@pytest.mark.parametrize("pieces", [2, 4, 8])
@pytest.mark.parametrize("first", [True, False])
def test_the_pieces_of_a_maxout_stay_as_many(pieces: int, first: bool) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        parts = h.view(len(h), pieces, -1) if first else h.view(len(h), -1, pieces)
        return m.b(parts.max(1 if first else 2)[0])  # type: ignore[no-any-return]

    space = space_of(Run(run, a=nn.Linear(5, 4 * pieces), b=nn.Linear(4, 3)), VECTOR)
    assert space.widths == {"a": 4}
    assert space.resize({"a": 6}).get_parameter("a.weight").shape == (6 * pieces, 5)


# ---------------------------------------------------------------- the first argument by its name


def attention(products: Callable[[Tensor, Tensor, Tensor], Tensor]) -> nn.Module:
    return Run(
        lambda m, x: m.o(products(m.q(x), m.k(x), m.v(x))),
        q=nn.Linear(5, 10),
        k=nn.Linear(5, 10),
        v=nn.Linear(5, 8),
        o=nn.Linear(8, 3),
    )


def wide_layers(m: Any, x: Tensor) -> Any:
    return m.c(input=m.b(input=m.a(input=x).relu()).relu())


BY_NAME: dict[str, tuple[nn.Module, Tensor, list[int]]] = {
    "wide layers": (
        Run(wide_layers, a=nn.Linear(5, 300), b=nn.Linear(300, 200), c=nn.Linear(200, 3)),
        VECTOR,
        [300, 200],
    ),
    "attention": (
        attention(lambda q, k, v: F.scaled_dot_product_attention(query=q, key=k, value=v)),
        SEQUENCE,
        [10, 8],
    ),
    "batched products": (
        attention(lambda q, k, v: torch.bmm(torch.bmm(input=q, mat2=k.mT).softmax(-1), v)),
        SEQUENCE,
        [10, 8],
    ),
    "cosine similarity": (
        between(lambda h: h * F.cosine_similarity(x1=h, x2=h.flip(0), dim=-1)[:, None]),
        VECTOR,
        [8],
    ),
    "vector norm": (
        between(lambda h: h / torch.linalg.vector_norm(x=h, dim=-1, keepdim=True)),
        VECTOR,
        [8],
    ),
}


@pytest.mark.parametrize(("model", "example", "widths"), BY_NAME.values(), ids=BY_NAME.keys())
def test_arguments_may_be_given_by_name(model: nn.Module, example: Tensor, widths: list[int]) -> None:
    space = space_of(model, example)
    assert list(space.widths.values()) == widths
    assert not space.frozen
    found = removal(space, (example,), half_of_each(space))
    assert found.opened < 1e-6
    assert found.error < 1e-5
    assert found.effect > 1e-3

"""Normalisation over open units: what it is for gates of 0 and 1, and its gradients in between."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from widthsearch.space.masking import layer_norm, rms_norm

EPS = 1e-3
CENTRED = pytest.mark.parametrize("centred", [True, False])
AFFINE = pytest.mark.parametrize("affine", [True, False])


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def masked(x: Tensor, z: Tensor, w: Tensor | None, b: Tensor | None, centred: bool) -> Tensor:
    gates, shape = {x.ndim - 1: z}, z.shape
    return layer_norm(gates, x, shape, w, b, EPS) if centred else rms_norm(gates, x, shape, w, EPS)


def plain(x: Tensor, w: Tensor | None, b: Tensor | None, centred: bool) -> Tensor:
    shape = x.shape[-1:]
    return F.layer_norm(x, shape, w, b, EPS) if centred else F.rms_norm(x, shape, w, EPS)


def by_hand(x: Tensor, z: Tensor, w: Tensor, b: Tensor, centred: bool) -> Tensor:
    """From the formulas, by single operations."""
    n = z.sum()
    m = (z * x).sum(-1, keepdim=True) / n if centred else 0.0
    v = (z**2 * (x - m) ** 2).sum(-1, keepdim=True) / n
    y = z * (x - m) / (v + EPS).sqrt() * w
    return y + b * z if centred else y


@CENTRED
@pytest.mark.parametrize("composed", [False, True])
def test_it_is_what_the_formulas_say_and_so_are_its_gradients(
    centred: bool, composed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if composed:  # as on a GPU
        monkeypatch.setattr("torch._C._functorch.is_batchedtensor", lambda z: True)
    z = numbers(7).sigmoid()
    leaves = [
        t.requires_grad_() for t in (numbers(2, 3, 7), z, numbers(8)[:7].clone(), numbers(9)[:7].clone())
    ]
    found, expected = masked(*leaves, centred), by_hand(*leaves, centred)
    torch.testing.assert_close(found, expected)
    weights = numbers(2, 3, 7).flip(0)
    used = leaves if centred else leaves[:3]
    gradients = [torch.autograd.grad((y * weights).sum(), used) for y in (found, expected)]
    for name, mine, reference in zip("xzwb", *gradients, strict=False):
        # The gradient of the number of open units through eps is left out.
        tolerance = {"rtol": 1e-2, "atol": 1e-3} if name == "z" else {"rtol": 1e-7, "atol": 1e-9}
        torch.testing.assert_close(mine, reference, **tolerance)


@CENTRED
@AFFINE
def test_open_gates_give_torchs_own(centred: bool, affine: bool) -> None:
    w, b = (numbers(8)[:7], numbers(9)[:7]) if affine else (None, None)
    x, z = numbers(2, 3, 7), torch.ones(7, dtype=torch.float64)
    torch.testing.assert_close(masked(x, z, w, b, centred), plain(x, w, b, centred))


@CENTRED
@AFFINE
def test_closed_units_do_not_count_and_give_nothing(centred: bool, affine: bool) -> None:
    w, b = (numbers(8)[:7], numbers(9)[:7]) if affine else (None, None)
    x, left = numbers(2, 3, 7), torch.tensor([0, 2, 3, 6])
    z = torch.zeros(7, dtype=torch.float64).index_fill(0, left, 1.0)
    found = masked(x, z, w, b, centred)
    of_left = (None if t is None else t[left] for t in (w, b))
    torch.testing.assert_close(found[..., left], plain(x[..., left], *of_left, centred))
    assert found[..., z == 0].abs().max() < 1e-12

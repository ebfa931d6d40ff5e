"""Normalisation over open units: the hand-written gradients, and what it is for gates of 0 and 1."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from widthsearch.space.masking import layer_norm, rms_norm
from widthsearch.space.open_norm import OpenNorm

CENTRED = pytest.mark.parametrize("centred", [True, False])


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@CENTRED
def test_its_gradients_are_those_that_finite_differences_give(centred: bool) -> None:
    x, w, b = numbers(4, 7), numbers(7), numbers(7, 1).squeeze()
    z = numbers(7).sigmoid()
    leaves = [t.clone().requires_grad_() for t in (x, z, w, b)]
    assert torch.autograd.gradcheck(lambda *t: OpenNorm.apply(*t, 1e-3, centred), leaves)


@CENTRED
def test_open_gates_give_torchs_own(centred: bool) -> None:
    x, w, b, z = numbers(2, 3, 7), numbers(7), numbers(7, 1).squeeze(), torch.ones(7, dtype=torch.float64)
    if centred:
        found, expected = layer_norm({2: z}, x, (7,), w, b), F.layer_norm(x, (7,), w, b)
    else:
        found, expected = rms_norm({2: z}, x, (7,), w), F.rms_norm(x, (7,), w)
    torch.testing.assert_close(found, expected)


@CENTRED
def test_closed_units_do_not_count(centred: bool) -> None:
    x, w, b = numbers(2, 3, 7), numbers(7), numbers(7, 1).squeeze()
    left = torch.tensor([0, 2, 3, 6])
    z = torch.zeros(7, dtype=torch.float64).index_fill(0, left, 1.0)
    if centred:
        found = layer_norm({2: z}, x, (7,), w, b)
        expected = F.layer_norm(x[..., left], (4,), w[left], b[left])
    else:
        found, expected = rms_norm({2: z}, x, (7,), w), F.rms_norm(x[..., left], (4,), w[left])
    torch.testing.assert_close(found[..., left], expected)

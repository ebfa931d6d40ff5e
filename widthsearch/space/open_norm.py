"""Layer and RMS normalisation over the open units, by torch's own fused kernels.

They take the statistics over all D units.  So the closed ones are moved to where they do not count, to the
mean m of the open ones, and n, the number of open ones, takes the place of D afterwards:

    x' = m + z (x - m)           m = sum(z x) / n, n = sum(z)
    y = z-scaled output = LN(x') sqrt(n / D), with eps n / D in place of eps, and the bias scaled by z

For gates of 0 and 1 that is the normalisation of the network without the closed units, and 0 at these; in
between, the variance weighs units by z^2.  Composed of single operations this would take ten times as long.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def open_layer_norm(x: Tensor, z: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``F.layer_norm`` over the last dimension of ``x``, (..., D), scaled by the gates ``z``, (D,)."""
    n = z.sum().clamp(min=1.0)
    share = n / len(z)
    moved = _ToTheMean.apply(x.reshape(-1, len(z)), z, n)  # type: ignore[no-untyped-call]
    bias = None if bias is None else bias * z
    return F.layer_norm(moved, z.shape, _scaled(weight, share, z), bias, eps * share.detach().item()).view(
        x.shape
    )


def open_rms_norm(x: Tensor, z: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``F.rms_norm``, likewise; its mean is 0."""
    share = z.sum().clamp(min=1.0) / len(z)
    return F.rms_norm(x * z, z.shape, _scaled(weight, share, z), eps * share.detach().item())


def _scaled(weight: Tensor | None, share: Tensor, z: Tensor) -> Tensor:
    return share.sqrt().expand_as(z) if weight is None else weight * share.sqrt()


class _ToTheMean(torch.autograd.Function):
    """``x' = m + z (x - m)``; x: (N, D), z: (D,), n: ()."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, n: Tensor) -> Tensor:
        m = (x @ z / n).unsqueeze(1)  # (N, 1)
        ctx.save_for_backward(x, z, n, m)
        return torch.lerp(m, x, z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, z, n, m = ctx.saved_tensors
        of_m = (g.sum(1) - g @ z).unsqueeze(1)  # (N, 1), gradient of m
        t = g + of_m / n
        dz = (t * x).sum(0) - m[:, 0] @ t
        return t.mul_(z), dz, -(of_m * m).sum() / n

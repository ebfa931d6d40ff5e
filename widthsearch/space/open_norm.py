"""Layer and RMS normalisation over the open units; the former by torch's own fused kernel.

That takes the statistics over all D units.  So the closed ones are moved to where they do not count, to the
mean m of the open ones, and n, the number of open ones, takes the place of D afterwards:

    x' = m + z (x - m)           m = sum(z x) / n, n = sum(z)
    y = z-scaled output = LN(x') sqrt(n / D), with eps n / D in place of eps, and the bias scaled by z

For gates of 0 and 1 that is the normalisation of the network without the closed units, and 0 at these; in
between, the variance weighs units by z^2.  On a CPU, composed of single operations this would take ten times
as long; on a GPU it must be, as n would have to be waited for, and for several networks at a time too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def open_layer_norm(x: Tensor, z: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``F.layer_norm`` over the last dimension of ``x``, (..., D), scaled by the gates ``z``, (D,)."""
    if z.device.type != "cpu" or torch._C._functorch.is_batchedtensor(z):
        y = open_rms_norm(x - (x @ z).unsqueeze(-1) / z.sum().clamp(min=1.0), z, weight, eps)
        return y if bias is None else y + bias * z
    fused: Tensor = _OpenLayerNorm.apply(x.reshape(-1, len(z)), z, weight, bias, eps)  # type: ignore[no-untyped-call]
    return fused.view(x.shape)


def open_rms_norm(x: Tensor, z: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``F.rms_norm``, likewise; its mean is 0."""
    gated, n = x * z, z.sum().clamp(min=1.0)
    y = gated * (gated.square().sum(-1, keepdim=True) / n + eps).rsqrt()
    return y if weight is None else y * weight


class _OpenLayerNorm(torch.autograd.Function):
    """One node of the graph, as the many small ones that it stands for take as long as the kernels.

    x: (N, D); z, w, b: (D,).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
        n = max(1.0, z.sum().item())
        root = (n / len(z)) ** 0.5
        m = torch.mv(x, z / n).unsqueeze(1)  # (N, 1)
        moved = torch.lerp(m, x, z)
        w_root = torch.full_like(z, root) if w is None else w * root
        bz = None if b is None else b * z
        y, mean, rstd = torch.native_layer_norm(moved, z.shape, w_root, bz, eps * root**2)
        ctx.save_for_backward(x, z, w, b, m, moved, mean, rstd, w_root, bz)
        ctx.n, ctx.root = n, root
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, z, w, b, m, moved, mean, rstd, w_root, bz = ctx.saved_tensors
        n, root = ctx.n, ctx.root
        of = (True, True, b is not None)
        d_moved, dw, db = torch.ops.aten.native_layer_norm_backward(
            dy, moved, z.shape, mean, rstd, w_root, bz, of
        )
        dm = (d_moved.sum(1) - torch.mv(d_moved, z)).unsqueeze(1)  # (N, 1)
        t = torch.add(d_moved, dm, alpha=1 / n)
        dz = (t * x).sum(0) - m[:, 0] @ t
        if n > 1:  # of the number of open units, in m and in the root
            d_root = dw.sum() if w is None else dw @ w
            dz += d_root * (root / (2 * n)) - (dm * m).sum() / n
        if b is not None:
            dz += db * b
            db *= z
        return t.mul_(z), dz, None if w is None else dw.mul_(root), db, None

"""Layer and RMS normalisation over the open units, with a hand-written backward pass.

Composed of single operations, as the other statistics are, it takes ten times as long as torch's own fused
kernel: enough to show in the training step of a transformer.  Symbols, for rows x of D units and gates z:

    p = z / n, n = sum(z)        the weights of the statistics
    m = sum(p x)                 their mean (0 for RMS normalisation)
    v = sum(p (x - m)^2)         their variance
    r = 1 / sqrt(v + eps)
    h = (x - m) r                normalised
    y = w h + b
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Numbers that are worked on at a time: several tensors of this size stay in a processor's cache.
BLOCK = 1 << 17


class OpenNorm(torch.autograd.Function):
    """``apply(x, z, w, b, eps, centred)``; x: (N, D); z, w, b: (D,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, w: Tensor, b: Tensor, eps: float, centred: bool) -> Tensor:
        """``y``, (N, D)."""
        n = z.sum().clamp(min=1.0)
        p = z / n
        y = torch.empty_like(x)  # (N, D)
        m, r = x.new_zeros(len(x), 1), x.new_empty(len(x), 1)
        for k in _blocks(x):
            if centred:
                torch.mv(x[k], p, out=m[k, 0])
            h = x[k] - m[k]
            torch.rsqrt(torch.square(h, out=y[k]) @ p + eps, out=r[k, 0])
            torch.addcmul(b, h.mul_(r[k]), w, out=y[k])
        ctx.save_for_backward(x, m, r, p, w, n)
        ctx.eps, ctx.centred = eps, centred
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, z, w and b, from ``dy``, (N, D)."""
        x, m, r, p, w, n = ctx.saved_tensors
        dx = torch.empty_like(x)
        dz, dw, db = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
        for k in _blocks(x):
            h = (x[k] - m[k]).mul_(r[k])  # again: keeping it costs more than computing it
            product = dy[k] * h
            dw += product.sum(0)
            db += dy[k].sum(0)
            s2 = product @ w  # sum over j of dh_j h_j, with dh = w dy
            s1 = dy[k] @ w if ctx.centred else torch.zeros_like(s2)  # sum over j of dh_j
            # dx = r (w dy - p (s1 + s2 h)).  (addcmul is slow where a factor is one number per row.)
            inner = torch.mul(h, s2.unsqueeze(1), out=product).add_(s1.unsqueeze(1))
            # dm/dz = (x - m) / n and dv/dz = ((x - m)^2 - v) / n, with v r^2 = 1 - eps r^2
            first = s1 @ h
            second = h.mul_(inner).sum(0) - first  # sum over rows of s2 h^2
            whole = s2 @ (1 - ctx.eps * r[k, 0].square())
            dz -= first + (second - whole) / 2
            torch.addcmul(inner.mul_(-p), dy[k], w, out=dx[k]).mul_(r[k])
        return dx, dz / n, dw, db, None, None


def _blocks(x: Tensor) -> Iterator[slice]:
    rows = max(1, BLOCK // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    return (slice(start, start + rows) for start in range(0, len(x), rows))

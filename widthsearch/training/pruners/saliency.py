"""What the loss would do without a weight or a unit, from its derivatives: OBD and Taylor scores.

All derivatives are taken in eval mode, on samples of the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from widthsearch.space import Gating, WidthSpace, call
from widthsearch.space.copies import arguments, by_part
from widthsearch.training.gates import Vector

Batches = Iterable[tuple[Any, Any]]
Loss = Callable[[Any, Any], Tensor]

#: Numbers that gradients of several samples may take at a time (256 MiB of float32).
GRADIENTS_AT_A_TIME = 2**26


def taylor(space: WidthSpace, batches: Batches, loss: Loss) -> Vector:
    """First-order score of each unit, (U,): the mean over batches of (d loss / d gate)^2, all gates at 1.

    Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019, equations 8 and 9: with a
    gate on a unit, gradient times value summed over its weights is the derivative by the gate.
    """
    model = space.model.eval()
    gating = Gating(model, list(space.widths.values()), space.consumers, space.statistics)
    z = torch.ones(sum(space.widths.values()), device=next(model.parameters()).device, requires_grad=True)
    total, count = torch.zeros_like(z, requires_grad=False), 0
    try:
        for x, y in batches:
            gating.put(z, x)
            try:
                value = loss(call(model, x), y)
            finally:
                gating.take_off()
            (slope,) = torch.autograd.grad(value, z)
            total += slope.square()
            count += 1
    finally:
        gating.remove()
    scores: Vector = (total / count).cpu().numpy()
    return scores


def fisher_diagonal(net: nn.Module, batches: Batches, loss: Loss) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher matrix, by parameter: the mean over samples of gradient^2.

    It stands for the diagonal of the Hessian, as the Gauss-Newton matrix does in Optimal Brain Damage, and
    like that it is never negative; it needs no more than the loss of a sample.
    """
    net.eval()
    weights = {n: w.detach() for n, w in net.named_parameters() if w.requires_grad}
    total = {n: torch.zeros_like(by_part(w)) for n, w in weights.items()}
    chunk = max(1, GRADIENTS_AT_A_TIME // sum(w.numel() for w in weights.values()))
    count = 0

    def sample_loss(weights: dict[str, Tensor], x: Any, y: Any) -> Tensor:
        x, y = tree_map(lambda t: t.unsqueeze(0), (x, y))
        return loss(functional_call(net, weights, *arguments(x)), y)

    slopes = vmap(grad(sample_loss), in_dims=(None, 0, 0))
    for x, y in batches:
        n = len(tree_leaves(y)[0])
        for start in range(0, n, chunk):
            part = tree_map(lambda t, start=start: t[start : start + chunk], (x, y))
            try:
                squares = {k: by_part(g).square().sum(0) for k, g in slopes(weights, *part).items()}
            except Exception:  # what vmap cannot do (recurrent layers, values read in Python)
                squares = _squares_one_by_one(weights, sample_loss, part)
            for name, square in squares.items():
                total[name] += square
        count += n
    return {name: t / count for name, t in total.items()}


def _squares_one_by_one(
    weights: Mapping[str, Tensor], sample_loss: Callable[..., Tensor], part: Any
) -> dict[str, Tensor]:
    """The sum over samples of the squared gradients, sample by sample."""
    total = {n: torch.zeros_like(by_part(w)) for n, w in weights.items()}
    for i in range(len(tree_leaves(part[1])[0])):
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        value = sample_loss(leaves, *tree_map(lambda t, i=i: t[i], part))
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        for name, slope in zip(leaves, slopes, strict=True):
            total[name] += 0 if slope is None else by_part(slope).square()
    return total


@torch.no_grad()
def obd(net: nn.Module, diagonal: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The saliency of every weight, ``h_kk w_k^2 / 2``: how much the loss rises without it, at a minimum.

    LeCun, Denker, Solla, "Optimal Brain Damage", NIPS 1989 (published 1990), equation 5; ``diagonal``: h_kk
    by parameter.
    """
    weights = dict(net.named_parameters())
    saliencies = {name: h * by_part(weights[name]).square() / 2 for name, h in diagonal.items()}
    return {n: s.sum(-1) if weights[n].is_complex() else s for n, s in saliencies.items()}

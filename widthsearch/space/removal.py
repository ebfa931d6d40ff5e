"""The removal test: is closing units the same as removing them?  Shapes cannot tell a wrong alignment."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from widthsearch.space.copies import by_part, call, empty_copy, outputs_of, reference_kernels, to_device
from widthsearch.space.gating import Gating, consumers_of, statistics_of
from widthsearch.space.masking import LAYERS
from widthsearch.space.noise import with_the_same_noise
from widthsearch.space.recorder import Trace
from widthsearch.space.resize import compacted_copy
from widthsearch.space.variables import Variables

TOLERANCE = 2e-4  # relative; float32 rounding stays below 5e-5, small wrong alignments are off by 1e-3


def inexact(
    model: nn.Module, examples: Sequence[Any], trace: Trace, variables: Variables
) -> list[tuple[str, str]]:
    """Variables of which closing units is not the same as removing them, and why they cannot be searched."""
    everyone = range(len(variables.names))
    if removal_error(model, examples, trace, variables, everyone) < TOLERANCE:
        return []
    wrong = []
    for index, name in enumerate(variables.names):
        error = removal_error(model, examples, trace, variables, [index])
        if math.isinf(error):
            wrong.append((name, "without some of its units the network does not run"))
        elif error >= TOLERANCE:
            wrong.append((name, f"closing its units is not the same as removing them (by {error:.1g})"))
    return wrong or [(variables.names[-1], "closing units is not the same as removing them")]


def removal_error(
    model: nn.Module, examples: Sequence[Any], trace: Trace, variables: Variables, closing: Sequence[int]
) -> float:
    """How far the network without some units is from that with their gates at 0, relative to its output.

    Infinite if one of them does not run.
    """
    numbers = np.random.default_rng(0)
    keep = [np.ones(w, dtype=bool) for w in variables.widths]
    for index in closing:  # not the same share of each: equal cuts of two parts hide that the parts are tied
        width = variables.widths[index]
        keep[index] = numbers.permutation(width) >= min(width - 1, 1 + width // 4 + index % 3)
    live, inputs = _in_float32(empty_copy(model, "cpu"), [to_device(x, "cpu") for x in examples])
    _tell_units_apart(live, trace)
    removed = compacted_copy(live.eval(), trace, variables, keep)
    gating = Gating(
        live, variables.widths, consumers_of(trace, variables, 1), statistics_of(trace, variables)
    )
    z = torch.from_numpy(np.concatenate(keep).astype(np.float32))
    closed: list[Tensor] = []
    without: list[Tensor] = []
    with reference_kernels("cpu"):
        for given in inputs:
            gated = functools.partial(gating.run, z, given)
            try:
                a, b = with_the_same_noise(gated, functools.partial(call, removed, given))
            except Exception:  # shapes that differ at these widths alone, a call that no masked form covers
                return math.inf
            closed += [t.detach() for t in outputs_of(a, trace.counts)]  # a forward may turn gradients on
            without += [t.detach() for t in outputs_of(b, trace.counts)]
    errors = [
        float((a - b).abs().max() / a.abs().max().clamp(min=1e-6))
        for a, b in zip(closed, without, strict=True)
        if (a.is_floating_point() or a.is_complex()) and a.numel() and a.shape == b.shape
    ]
    return max((1.0 if math.isnan(e) else e for e in errors), default=0.0)


def _tell_units_apart(model: nn.Module, trace: Trace) -> None:
    """Make every unit matter: fresh weights may be all zero, or so small that attention is a mean."""
    products = (site for site, dims in trace.sites.items() if -1 in dims and site.function not in LAYERS)
    modules = {*trace.heads, *(site.module for site in products)}
    attending = tuple(f"{module}." if module else "" for module in modules)
    for name, parameter in model.named_parameters():
        tensor = by_part(parameter.detach())
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if bool(tensor.min() == tensor.max()):
            # Zeros (of a fresh head) would hide every difference, ones many.
            tensor.data.add_(torch.randn_like(tensor), alpha=0.02)
        elif parameter.ndim > 1 and name.startswith(attending):
            least = (tensor.numel() / max(tensor.shape)) ** -0.5
            tensor.data.mul_(max(1.0, least / float(tensor.detach().std().clamp(min=1e-12))))


def _in_float32(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """The same with what is half as precise made precise enough to compare."""
    half = (torch.float16, torch.bfloat16)
    if any(t.dtype in half for t in model.parameters()):
        model = model.float()
        inputs = tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.dtype in half else t, inputs)
    return model, inputs

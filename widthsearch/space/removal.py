"""The removal test: is closing units the same as removing them?  Shapes cannot tell a wrong alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from widthsearch.space.gating import Gating, consumers_of, statistics_of
from widthsearch.space.resize import compacted_copy
from widthsearch.space.tracer import Trace, call, empty_copy, reference_kernels, tensors_in, to_device
from widthsearch.space.variables import Variables

TOLERANCE = 5e-5  # relative; float32 rounding stays below 1e-5, small wrong alignments are off by 1e-3


def inexact(model: nn.Module, example: Any, trace: Trace, variables: Variables) -> list[tuple[str, str]]:
    """Variables of which closing units is not the same as removing them, and why they cannot be searched."""
    everyone = range(len(variables.names))

    if removal_error(model, example, trace, variables, everyone) < TOLERANCE:
        return []
    wrong = []
    for index, name in enumerate(variables.names):
        error = removal_error(model, example, trace, variables, [index])
        if error >= TOLERANCE:
            wrong.append((name, f"closing its units is not the same as removing them (by {error:.1g})"))
    return wrong or [(variables.names[-1], "closing units is not the same as removing them")]


def removal_error(
    model: nn.Module, example: Any, trace: Trace, variables: Variables, some: Sequence[int]
) -> float:
    """How far the network without some units is from that with their gates at 0, relative to its output."""
    numbers = np.random.default_rng(0)
    keep = [np.ones(w, dtype=bool) for w in variables.widths]
    for index in some:  # not the same share of each: equal cuts of two parts hide that the parts are tied
        width = variables.widths[index]
        keep[index] = numbers.permutation(width) >= min(width - 1, 1 + width // 4 + index % 3)
    live = empty_copy(model, "cpu")
    for tensor in live.parameters():
        if tensor.is_floating_point() and bool(tensor.min() == tensor.max()):
            # Zeros (of a fresh head) would hide every difference, ones many.
            tensor.data.add_(torch.randn_like(tensor), alpha=0.02)
    removed = compacted_copy(live, trace, variables, keep).eval()
    gating = Gating(
        live, variables.widths, consumers_of(trace, variables, 1), statistics_of(trace, variables)
    )
    inputs = to_device(example, "cpu")
    z = torch.from_numpy(np.concatenate(keep).astype(np.float32))
    with reference_kernels("cpu"):
        gating.put(z, inputs)
        try:
            closed = call(live.eval(), inputs)
        finally:
            gating.take_off()
        pairs = zip(tensors_in(closed), tensors_in(call(removed, inputs)), strict=True)
        errors = [
            float((a - b).abs().max() / a.abs().max().clamp(min=1e-6))
            for a, b in pairs
            if a.is_floating_point() and a.numel() and a.shape == b.shape
        ]
    return max((1.0 if math.isnan(e) else e for e in errors), default=0.0)

"""What the tests of the width space compare with: torch's own counts, and networks that were made smaller."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from widthsearch.space import WidthSpace, call
from widthsearch.space.copies import outputs_of, to_device
from widthsearch.space.rehearsal import FORMULAS
from widthsearch.training.gates import Gates

Keep = Mapping[str, NDArray[np.bool_]]


def random_widths(space: WidthSpace, seed: int, least: int = 1) -> dict[str, int]:
    numbers = random.Random(seed)
    return {name: max(least, int(w * numbers.uniform(0.3, 1.9))) for name, w in space.widths.items()}


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def counted_macs(model: nn.Module, example: Any) -> int:
    """By torch's own counter, per sample; on meta if the model runs there; fused attention would not be counted."""
    for device in ("meta", "cpu"):
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        try:
            with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
                call(copy.deepcopy(model).eval().requires_grad_(False).to(device), to_device(example, device))
        except (RuntimeError, NotImplementedError):
            continue  # it reads values
        return round(counter.get_total_flops() / 2 / len(tree_leaves(example)[0]))
    raise AssertionError("the model does not run")


def costs_are_torchs(space: WidthSpace, example: Any, seeds: int = 3) -> bool:
    """Whether the cost polynomial equals torch's count at random widths."""
    for seed in range(seeds):
        widths = random_widths(space, seed, least=2)
        resized = space.resize(widths)
        found = {"macs": counted_macs(resized, example), "params": parameter_count(resized)}
        if found != space.cost.at(widths):
            return False
    return True


def half_of_each(space: WidthSpace) -> dict[str, NDArray[np.bool_]]:
    """Half of the units of every variable, at random."""
    numbers = np.random.default_rng(0)
    return {name: numbers.permutation(width) >= width // 2 for name, width in space.widths.items()}


class Removal(NamedTuple):
    """Differences of outputs, relative to the largest value."""

    opened: float  # gated with all gates open, to the plain network
    error: float  # some units closed, to the network without them
    effect: float  # that network, to the plain one


@torch.no_grad()
def removal(space: WidthSpace, example: Any, keep: Keep) -> Removal:
    """Close the units that are not kept, and remove them, in eval mode."""
    model = space.model.eval()
    gates = Gates(space)
    gates.log_alpha.fill(10.0)  # all exactly 1, only the mask closes any

    def run(network: nn.Module) -> list[Tensor]:
        torch.manual_seed(0)  # some draw noise
        return outputs_of(call(network.eval(), example), space.traced.counts)

    with gates.attached():
        opened = run(model)
        gates.mask = np.concatenate(list(keep.values()))
        closed = run(model)
    plain, removed = run(model), run(space.compact(keep))
    return Removal(_difference(opened, plain), _difference(closed, removed), _difference(removed, plain))


def _difference(a: list[Tensor], b: list[Tensor]) -> float:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x.shape == y.shape]
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-12)) for x, y in pairs)

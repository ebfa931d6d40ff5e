"""One training run: one flat loop, the same for a plain network (a score) and a gated one (a measure)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from widthsearch.errors import TrainingError
from widthsearch.study import Recipe, Split

EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over a split, and the share of correct classes where the targets are classes."""

    loss: float
    accuracy: float | None


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def device_of(recipe: Recipe) -> torch.device:
    """The recipe's device; ``auto`` is the GPU where there is one."""
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(recipe.device)


def to_device(split: Split, device: torch.device) -> Split:
    """Tensor splits as tensors on the device, once and for all; datasets unchanged."""
    if isinstance(split, tuple):
        return (split[0].to(device), split[1].to(device))
    return split


def size_of(split: Split) -> int:
    """The number of samples of a split."""
    return len(split[0]) if isinstance(split, tuple) else len(split)  # type: ignore[arg-type]


def batches(split: Split, size: int, generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches ``(x, y)``: shuffled and whole ones only with a generator, else all samples in order."""
    n = size_of(split)
    whole = generator is not None and n >= size  # a last batch of one sample would break BatchNorm
    if not isinstance(split, tuple):
        yield from DataLoader(
            split, batch_size=size, shuffle=generator is not None, drop_last=whole, generator=generator
        )
        return
    x, y = split
    order = torch.randperm(n, generator=generator).to(x.device) if generator is not None else None
    for start in range(0, n - size + 1 if whole else n, size):
        part = slice(start, start + size)
        yield (x[part], y[part]) if order is None else (x[order[part]], y[order[part]])


def loss_function(recipe: Recipe, *, training: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The recipe's loss; label smoothing is for training alone."""
    if recipe.loss is not None:
        return recipe.loss
    smoothing = recipe.label_smoothing if training else 0.0
    return lambda output, target: F.cross_entropy(output, target, label_smoothing=smoothing)


def steps_per_epoch(split: Split, recipe: Recipe) -> int:
    """Optimizer steps in one epoch."""
    return max(1, size_of(split) // recipe.batch_size)


def train(net: nn.Module, split: Split, recipe: Recipe, *, seed: int) -> None:
    """Train ``net`` in place, and its gates, if any are attached to it.

    The order of the batches depends on ``seed`` alone, not on the network, so that runs of different widths
    see the same batches.  Raises :class:`TrainingError` when the loss is no longer finite.
    """
    device = device_of(recipe)
    steps = recipe.epochs * steps_per_epoch(split, recipe)
    optimizer = make_optimizer(list(net.parameters()), recipe)
    schedule = make_schedule(optimizer, recipe, steps)
    loss_of = loss_function(recipe, training=True)
    order = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    net.train()
    for epoch in range(recipe.epochs):
        for x, y in batches(split, recipe.batch_size, order):
            x, y = x.to(device), y.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(net(x), y)
            net.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule is not None:
                schedule.step()
        # Once an epoch is enough: a loss that became NaN stays NaN.
        if not math.isfinite(loss.item()):
            raise TrainingError(f"training loss is {loss.item()} after epoch {epoch + 1} of {recipe.epochs}")


def make_optimizer(weights: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer on the network's weights (one fused kernel per step)."""
    weights = [w for w in weights if w.requires_grad]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        weights,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LRScheduler | None:
    """The recipe's learning-rate schedule over ``steps`` optimizer steps."""
    if recipe.schedule == "one-cycle":
        return OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps, cycle_momentum=False)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return None


@torch.no_grad()
def evaluate(net: nn.Module, split: Split, recipe: Recipe) -> Evaluation:
    """Loss and accuracy on a split, in eval mode.  Raises :class:`TrainingError` on a loss not finite."""
    device = device_of(recipe)
    loss_of = loss_function(recipe, training=False)
    classes = recipe.loss is None
    net.eval()
    total, correct, n = 0.0, 0, 0
    for x, y in batches(split, EVALUATION_BATCH, None):
        x, y = x.to(device), y.to(device)
        output = net(x)
        total += loss_of(output, y).item() * len(x)
        if classes and y.dtype == torch.int64:
            correct += int((output.argmax(1) == y).sum())
        else:
            classes = False
        n += len(x)
    if not math.isfinite(total):
        raise TrainingError(f"validation loss is {total / n}")
    return Evaluation(total / n, correct / n if classes else None)

"""One training run: one flat loop, the same for a plain network (a score) and a gated one (a measure)."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR
from torch.utils._pytree import tree_leaves, tree_map

from widthsearch.errors import TrainingError
from widthsearch.space import call
from widthsearch.study.data import SPLITS
from widthsearch.study.recipe import Recipe
from widthsearch.study.study import Data, Split
from widthsearch.training.averaging import MovingAverage
from widthsearch.training.batches import (
    batches,
    batches_of_epoch,
    epochs_of,
    samples_per_step,
    steps_per_epoch,
)
from widthsearch.training.checkpoint import Checkpoint, NetworkState, RandomState, Stateful
from widthsearch.training.device import autocast, device_of, set_exactness
from widthsearch.training.losses import loss_function, metric_function, share_counted

log = logging.getLogger(__name__)

#: Samples of an evaluation at once, in batches of the training: without gradients they need less memory.
EVALUATION_BATCHES, EVALUATION_BATCH = 8, 1024

#: The share of a training in which gates close that is to be of use itself; in the rest it settles.
CLOSING = 0.6

#: What a pruner does to the weights after each step of the optimizer, given its learning rate.
AfterStep = Callable[[float], None]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss over a split; the share of correct classes or the recipe's own metric, if there is one.

    Raises :class:`TrainingError` for a loss that is not finite.
    """

    loss: float
    accuracy: float | None

    def __post_init__(self) -> None:
        """Refuse what is no loss."""
        if not math.isfinite(self.loss):
            raise TrainingError(f"validation loss is {self.loss}")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class RecipeLoop:
    """Trains and evaluates networks of one study by its recipe, on its data.

    ``steps``: optimizer steps of a training; ``closing``: those in which its gates close, if it has some.
    """

    def __init__(self, recipe: Recipe, data: Data) -> None:
        self.recipe, self.device = recipe, device_of(recipe)
        set_exactness(recipe, self.device)
        # Tensors go to the device once and for all, datasets batch by batch.
        self.splits = {
            name: moved(split, self.device) if isinstance(split, tuple) else split
            for name, split in zip(SPLITS, data, strict=False)
        }
        self._set_length(recipe.epochs, CLOSING)

    def _set_length(self, epochs: float, closing: float) -> None:
        self.steps = max(1, round(epochs * steps_per_epoch(self.splits["train"], self.recipe)))
        self.closing = max(1, round(closing * self.steps))

    @property
    def samples(self) -> int:
        """Samples that a training sees."""
        return self.steps * samples_per_step(self.splits["train"], self.recipe)

    def of_epochs(self, epochs: float, closing: float = CLOSING) -> RecipeLoop:
        """The same loop on the same data, with a schedule of so many epochs, the last one maybe in part.

        ``closing``: the share of its steps in which gates close.
        """
        other = copy.copy(self)
        other._set_length(epochs, closing)
        return other

    def fit(
        self,
        net: nn.Module,
        seed: int,
        checkpoint: Checkpoint | None = None,
        after_step: AfterStep | None = None,
    ) -> int:
        """Train ``net`` in place, from its checkpoint if it has one; returns how many samples it has seen."""
        split, net = self.splits["train"], net.to(self.device)
        train(
            net,
            split,
            self.recipe,
            seed=seed,
            steps=self.steps,
            checkpoint=checkpoint,
            after_step=after_step,
        )
        return self.samples

    def evaluate(self, net: nn.Module, split: str) -> Evaluation:
        """Loss and accuracy on ``validation`` or ``test``."""
        return evaluate(net, self.splits[split], self.recipe)


def train(
    net: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    steps: int | None = None,
    checkpoint: Checkpoint | None = None,
    after_step: AfterStep | None = None,
) -> None:
    """Train ``net`` in place, and its gates, if any are attached to it; ``steps``: default the recipe's.

    With a ``checkpoint`` it goes on from there, as if it had never stopped, and keeps it up to date.

    The order of the batches depends on ``seed`` alone, not on the network, so that runs of different widths
    see the same batches.  Raises :class:`TrainingError` when the loss is no longer finite.
    """
    device = device_of(recipe)
    optimizer = make_optimizer(list(net.parameters()), recipe)
    if steps is None:
        steps = recipe.epochs * steps_per_epoch(split, recipe)
    schedule, epochs = make_schedule(optimizer, recipe, steps), epochs_of(split, recipe, steps)
    loss_of = loss_function(recipe, training=True)
    order = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    parts: dict[str, Stateful] = {
        "network": NetworkState(net),
        "optimizer": optimizer,
        "random": RandomState(device, order),
    }
    average = MovingAverage(net, recipe.ema) if recipe.ema else None
    optional = {"schedule": schedule, "average": average}
    parts |= {name: part for name, part in optional.items() if part is not None}
    net.train()
    done = checkpoint.restore(parts) if checkpoint is not None else 0
    for epoch in range(done, epochs):
        for x, y in batches_of_epoch(split, recipe, order, epoch, steps):
            x, y = (moved(part, device, pinned=recipe.pin_memory) for part in (x, y))
            with autocast(recipe, device):
                loss = loss_of(call(net, x), y)
            net.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), recipe.clip_grad_norm)
            optimizer.step()
            if after_step is not None:
                after_step(float(optimizer.param_groups[0]["lr"]))
            if schedule is not None:
                schedule.step()
            if average is not None:
                average.step()
        # Once an epoch is enough: a loss that became NaN stays NaN.
        if not math.isfinite(loss.item()):
            raise TrainingError(f"training loss is {loss.item()} after epoch {epoch + 1} of {epochs}")
        log.debug("epoch %d of %d: training loss %.4g", epoch + 1, epochs, loss.item())
        if checkpoint is not None:
            checkpoint.save(epoch + 1, parts)
    if average is not None:
        average.settle()


def moved(batch: Any, device: torch.device, *, pinned: bool = False) -> Any:
    """A tensor, or tensors in tuples and dicts, on the device; pinned ones may still be on their way."""
    return tree_map(lambda t: t.to(device, non_blocking=pinned) if isinstance(t, Tensor) else t, batch)


def make_optimizer(weights: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer on the network's weights (one fused kernel per step, where there is one)."""
    weights = [w for w in weights if w.requires_grad]
    fused = None if any(w.is_complex() for w in weights) else True
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
    optimizer = torch.optim.SGD(
        weights,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )
    if recipe.momentum > 0:
        optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Weights of a layer that first runs later begin without momentum: the fused kernel needs all or none."""
    state = optimizer.state
    if not state:  # the first step
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and state[weight].get("momentum_buffer") is None:
                state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LRScheduler | None:
    """The recipe's learning-rate schedule over ``steps`` optimizer steps."""
    if recipe.schedule == "one-cycle":
        return OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps, cycle_momentum=False)
    schedules: list[LRScheduler] = []
    if rising := round(recipe.warmup * steps):
        schedules.append(LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising))
    if recipe.schedule == "cosine":
        schedules.append(CosineAnnealingLR(optimizer, T_max=steps))
    # Both have a say in every step: their factors are multiplied.
    return ChainedScheduler(schedules) if len(schedules) > 1 else next(iter(schedules), None)


@torch.no_grad()
def evaluate(net: nn.Module, split: Split, recipe: Recipe) -> Evaluation:
    """Loss and accuracy on a split, in eval mode.  Raises :class:`TrainingError` on a loss not finite."""
    device = device_of(recipe)
    loss_of = loss_function(recipe, training=False)
    metric = metric_function(recipe)
    net.eval()
    total, good, n = 0.0, 0.0, 0.0
    size = max(recipe.batch_size, min(EVALUATION_BATCH, EVALUATION_BATCHES * recipe.batch_size))
    for x, y in batches(split, recipe, size=size):
        count = len(tree_leaves(y)[0]) * share_counted(recipe, y)
        if not count:
            continue
        x, y = moved(x, device), moved(y, device)
        output = call(net, x)
        total += loss_of(output, y).item() * count
        if metric is not None:
            good += float(metric(output, y)) * count
        n += count
    if not n:
        raise TrainingError("every label of the split is left out (-100): there is nothing to judge by")
    known = metric is not None and math.isfinite(good)
    return Evaluation(total / n, good / n if known else None)

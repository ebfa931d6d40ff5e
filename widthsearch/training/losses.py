"""What networks are trained for and judged by: a recipe's loss and metric, or cross-entropy and accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from widthsearch.study.recipe import Recipe

IGNORED = -100  # a label that is left out, of the loss (torch's own ignore_index) and of the accuracy


def loss_function(recipe: Recipe, *, training: bool) -> Callable[[Any, Any], Tensor]:
    """The recipe's loss; label smoothing is for training alone."""
    if recipe.loss is not None:
        return recipe.loss
    smoothing = recipe.label_smoothing if training else 0.0
    return lambda output, target: cross_entropy(output, target, smoothing)


def metric_function(recipe: Recipe) -> Callable[[Any, Any], float] | None:
    """The recipe's metric; the accuracy, where the loss is cross-entropy."""
    return recipe.metric or (accuracy if recipe.loss is None else None)


def cross_entropy(output: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Torch's, to the last bit; but 0 over a batch in which every label is left out."""
    if smoothing or target.is_floating_point():
        return F.cross_entropy(output, target, label_smoothing=smoothing)
    return F.cross_entropy(output, target, reduction="sum") / _counted(target).sum().clamp(min=1)


def share_counted(recipe: Recipe, target: Any) -> float:
    """The share of a batch's labels that are not left out."""
    if recipe.loss is not None or not isinstance(target, Tensor):
        return 1.0
    return int(_counted(target).sum()) / target.numel()


def accuracy(output: Tensor, target: Tensor) -> float:
    """The share of classes that are right; NaN where the targets are no classes, or all are left out."""
    if target.is_floating_point() or output.ndim != target.ndim + 1:
        return math.nan
    return float((output.argmax(1) == target)[_counted(target)].double().mean())


def _counted(target: Tensor) -> Tensor:
    if target.dtype != torch.int64:  # other types cannot hold it
        return torch.ones_like(target, dtype=torch.bool)
    return target != IGNORED

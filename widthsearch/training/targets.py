"""Before the first training: do outputs and targets belong together, and does the loss compare them?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from widthsearch.errors import UsageError
from widthsearch.space import WidthSpace, call
from widthsearch.space.copies import empty_copy
from widthsearch.space.initialise import isolated_random_numbers
from widthsearch.study.data import SPLITS, example_of
from widthsearch.study.recipe import Recipe
from widthsearch.study.study import Data, Split, Study
from widthsearch.study.users_code import users_code
from widthsearch.training.losses import IGNORED, loss_function, metric_function

SAMPLES = 4  # of every split: the shape of a single one may be taken for another

_OF_NUMBERS = "Recipe(loss=torch.nn.functional.mse_loss) for regression"
_OF_BITS = "Recipe(loss=torch.nn.functional.binary_cross_entropy_with_logits) for yes or no"


def check_targets(space: WidthSpace, study: Study, data: Data) -> None:
    """Refuse targets that the model's output cannot be compared with, or that mean something else.

    The model is run on the first samples of each split, on those of the training split in train mode.  For
    cross-entropy all labels must lie inside the model's classes (datasets are checked through their first
    samples, and again when they are trained on).
    """
    if study.train is not None:
        return
    with isolated_random_numbers():
        net = empty_copy(space.model)  # its statistics are not the model's
        for name, split in zip(SPLITS, data, strict=False):
            x, y = example_of(split, SAMPLES, study.recipe.collate_fn)
            net.train(name == "train")
            refusal = f"data(): the model does not run on {name}: "
            with users_code(what=refusal), torch.set_grad_enabled(net.training):
                output = call(net, x)
            if study.recipe.loss is None and (wrong := _misfit(name, split, output, y)):
                raise UsageError(wrong)
            _check_loss(study.recipe, name, output, y)


def _misfit(name: str, split: Split, output: Any, y: Any) -> str | None:
    """Why cross-entropy cannot compare these, or would compare something else."""
    if not isinstance(output, Tensor):
        return (
            f"the model returns {_described(output)}, and the default loss, cross-entropy, needs one tensor: "
            f"give Recipe(loss=lambda output, target: F.cross_entropy({_part_of(output, 'output')}, target))"
        )
    if not isinstance(y, Tensor):
        return (
            f"data(): the targets of {name} are {_described(y)}, and the default loss, cross-entropy, needs "
            f"one tensor: give Recipe(loss=lambda output, target: F.cross_entropy(output, "
            f"{_part_of(y, 'target')}))"
        )
    if output.ndim < 2 or output.shape[1] == 1:
        return (
            f"the model gives one output per sample (its output has the shape {_shape(output)}), and the "
            f"default loss, cross-entropy, is always 0 over one class: give {_OF_NUMBERS}, {_OF_BITS}"
        )
    targets = split[1] if isinstance(split, tuple) else y
    wrong = _no_probabilities(output, y, targets) if y.is_floating_point() else _no_labels(output, y, targets)
    return wrong and f"data(): {name} has {wrong}"


def _no_probabilities(output: Tensor, y: Tensor, targets: Tensor) -> str | None:
    if y.shape != output.shape:
        return (
            f"float targets of shape {_shape(y)}, but the default loss, cross-entropy, compares outputs of "
            f"shape {_shape(output)} with classes, whole numbers of shape {_labels_shape(output)} "
            f"(y.long()): give these, or {_OF_NUMBERS}"
        )
    if bool((targets < 0).any()) or not torch.allclose(
        targets.sum(1).double(), torch.ones(()).double(), atol=0.01
    ):
        return (
            "float targets that are no class probabilities (they do not add up to 1), as the default loss, "
            f"cross-entropy, needs them: give classes (y.argmax(1)), or {_OF_NUMBERS}, {_OF_BITS}"
        )
    return None


def _no_labels(output: Tensor, y: Tensor, targets: Tensor) -> str | None:
    classes, shape = output.shape[1], _labels_shape(output)
    if y.dtype not in (torch.int64, torch.uint8):
        return f"targets of type {y.dtype}: give classes (y.long()), or {_OF_BITS} (y.float())"
    if _shape(y) != shape:
        one_hot = "one-hot " if y.shape == output.shape else ""
        write = "give y.argmax(1)" if one_hot else "give y.squeeze(1)" if y.shape[1:2] == (1,) else "change y"
        return (
            f"{one_hot}targets of shape {_shape(y)}, but cross-entropy compares outputs of shape "
            f"{_shape(output)} with classes of shape {shape}: {write}, or Recipe(loss=...)"
        )
    known = targets[targets != IGNORED] if targets.dtype == torch.int64 else targets
    if not known.numel():  # of a dataset, these are but the first
        return None if targets is y else f"no label but {IGNORED}, which is left out"
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        return (
            f"label {low if low < 0 else high}, but the model has {classes} classes: labels must be 0 to "
            f"{classes - 1} (or {IGNORED}: left out)"
        )
    return None


def _check_loss(recipe: Recipe, name: str, output: Any, y: Any) -> None:
    training = name == "train"
    loss_of, metric = loss_function(recipe, training=training), metric_function(recipe)
    with (
        users_code(what=f"the loss cannot compare output and targets of {name}: "),
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always")
        try:
            loss = loss_of(output, y)
        except Exception:  # what fails with gradients alone (a full GPU) may pass: trainings will tell
            with torch.no_grad():
                loss_of(output, y)
            return
    if not isinstance(loss, Tensor):
        raise UsageError(f"the loss returned {loss!r:.60}; it must return a scalar tensor")
    if training and not loss.requires_grad:
        raise UsageError("the loss does not depend on the output (no gradient): is there a detach() in it?")
    if loss.ndim:
        raise UsageError(f"the loss returned a tensor of shape {tuple(loss.shape)}; it must return a scalar")
    if any("different to the input size" in str(w.message) for w in said) or _mixes(loss_of, output, y):
        raise UsageError(
            f"data(): the loss compares outputs of shape {_shape(output)} with targets of shape {_shape(y)} "
            f"of {name}, so each output with the targets of other samples: give both the same shape "
            "(y.unsqueeze(1)), or Recipe(loss=lambda output, target: F.mse_loss(output.squeeze(1), target))"
        )
    if metric is not None and not training:
        with users_code(what=f"the metric cannot compare output and targets of {name}, as one number: "):
            float(metric(output, y))


def _mixes(loss_of: Callable[[Any, Any], Tensor], output: Any, y: Any) -> bool:
    """Whether the loss broadcasts (N, 1) against (N,): then it does not see whose target is whose."""
    if not isinstance(output, Tensor) or not isinstance(y, Tensor) or output.shape == y.shape:
        return False
    try:
        together = math.prod(np.broadcast_shapes(output.shape, y.shape))
        if together <= max(output.numel(), y.numel()):
            return False
        with users_code(), torch.no_grad():
            loss, others, changed = (loss_of(output, t) for t in (y, y.roll(1, 0), y + 1))
        return (
            not torch.equal(y, y.roll(1, 0))
            and torch.allclose(loss, others)
            and not torch.equal(loss, changed)
        )
    except Exception:  # shapes that do not broadcast, or targets that the loss does not take
        return False


def _described(value: Any) -> str:
    """``a dict (label: 4, weight: 4)``: what a value is, in a few words."""
    kind = type(value).__name__
    article = "an" if kind[0] in "AEIOUaeiou" else "a"
    parts = ", ".join(f"{name}: {_shape(part)}" for name, part in list(_parts(value).items())[:4])
    return f"{article} {kind}" + (f" ({parts})" if parts else "")


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return dict(enumerate(value)) if isinstance(value, tuple | list) else {}


def _part_of(value: Any, name: str) -> str:
    """``output[0]``: the first tensor in it, as one would write it."""
    key = next((k for k, part in _parts(value).items() if isinstance(part, Tensor) and part.ndim), 0)
    return f"{name}.{key}" if is_dataclass(value) else f"{name}[{key!r}]"


def _shape(value: Any) -> str:
    """``4x3``."""
    return "x".join(map(str, value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _labels_shape(output: Tensor) -> str:
    return "x".join(map(str, (output.shape[0], *output.shape[2:])))

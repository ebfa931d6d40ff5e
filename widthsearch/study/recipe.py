"""How every network of a study is trained, for the usual supervised case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from widthsearch.errors import UsageError, describe_error
from widthsearch.plans.settings import (
    POSITIVE,
    SWITCH,
    WHOLE,
    Check,
    Fields,
    check_settings,
    from_zero,
    one_of,
    optional,
    setting,
)

_LOSS = Check(callable, "must be a function loss(output, target) -> scalar")
_METRIC = Check(callable, "must be a function metric(output, target)")
_COLLATE = Check(
    callable, "must be a function collate_fn(samples) -> (x, y), such as torch's default_collate"
)
_LOADERS = Check(
    lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 256,
    "must be a whole number of processes that load data, 0 (the training itself) to 256",
)


@dataclass(frozen=True)
class Recipe(Fields):
    """How every network of the study is trained, for the usual supervised case.

    The loss is ``loss(output, target) -> scalar``, the mean over the batch; ``None`` stands for
    cross-entropy with ``label_smoothing`` (validation uses none).  ``metric(output, target) -> float``, also
    a mean over the batch, is shown in the place of accuracy, which only cross-entropy has by itself.

    ``lr`` is the peak of the schedule.  Under ``cosine`` and ``constant``, ``warmup`` is the share of the
    steps in which it is reached (``one-cycle`` has a warm-up of its own).  ``clip_grad_norm``: the gradient
    of all weights together is made no longer than that.  ``ema``: the decay of a moving average of the
    weights, which the training ends with; 0 for none.

    ``num_workers``, ``collate_fn`` and ``pin_memory`` are those of torch's ``DataLoader``, for splits that
    are datasets.  No result depends on the number of workers: what is random in a sample follows from the
    seed and the epoch.  An ``IterableDataset`` is read from its start in every epoch, ``steps_per_epoch``
    batches of it, by one worker at most.

    On a GPU, ``precision`` says how training steps compute: in bfloat16 where torch's autocast takes it, in
    float32 with TF32 products, or in float32 throughout.  (Evaluations are in float32, with TF32 products
    but for the last.)  With ``deterministic`` only kernels are used that give the same result every time: a
    training is slower, or fails where there is none.  CPUs compute in float32, and repeat, in any case.
    """

    epochs: int = setting(10, WHOLE)
    batch_size: int = setting(128, WHOLE)
    lr: float = setting(0.1, POSITIVE)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", one_of("sgd", "adamw"))
    momentum: float = setting(0.9, from_zero(below=1))
    weight_decay: float = setting(5e-4, from_zero())
    schedule: Literal["one-cycle", "cosine", "constant"] = setting(
        "one-cycle", one_of("one-cycle", "cosine", "constant")
    )
    label_smoothing: float = setting(0.0, from_zero(below=1))
    loss: Callable[[Any, Any], Tensor] | None = setting(None, optional(_LOSS))
    metric: Callable[[Any, Any], float] | None = setting(None, optional(_METRIC))
    device: str = "auto"
    steps_per_epoch: int | None = setting(None, optional(WHOLE))
    num_workers: int = setting(0, _LOADERS)
    collate_fn: Callable[[list[Any]], Any] | None = setting(None, optional(_COLLATE))
    pin_memory: bool = setting(False, SWITCH)
    warmup: float = setting(0.0, from_zero(below=1))
    clip_grad_norm: float | None = setting(None, optional(POSITIVE))
    ema: float = setting(0.0, from_zero(below=1))
    precision: Literal["bfloat16", "tf32", "float32"] = setting(
        "bfloat16", one_of("bfloat16", "tf32", "float32")
    )
    deterministic: bool = setting(False, SWITCH)

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` on a value that no training can use."""
        check_settings(self)
        if self.warmup and self.schedule == "one-cycle":
            raise UsageError(
                f"Recipe(warmup={self.warmup!r}, schedule='one-cycle'): one-cycle warms up by itself: leave "
                "warmup out, or take schedule='cosine'"
            )
        if isinstance(self.device, str) and self.device == "auto":
            return
        try:
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise UsageError(
                f"Recipe(device={self.device!r}): no such device here ({describe_error(error)}); "
                "try 'auto' or 'cpu'"
            ) from None

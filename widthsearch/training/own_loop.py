"""A training loop of the user's own in place of the recipe's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widthsearch.errors import TrainingError, UsageError
from widthsearch.plans.settings import WHOLE
from widthsearch.space.copies import batch_size
from widthsearch.study.data import SPLITS
from widthsearch.study.study import Study
from widthsearch.training.checkpoint import (
    Checkpoint,
    FileState,
    GeneratorState,
    NetworkState,
    Stateful,
)
from widthsearch.training.distributed import RandomStates, of_first, world
from widthsearch.training.recipe_loop import CLOSING, Evaluation, seed_everything

STEPS_MAY_DIFFER = 0.1  # optimizer steps made, against those announced: the gates' schedule needs no more


#: What a loop may keep beside its network: see :meth:`Reporter.restore`.
Kept = Stateful | torch.Generator | Path


class Reporter:
    """What the user's loop reports its validation figures to, the last report counts, and is resumed by.

    ``samples`` have gone through the network in training mode.
    """

    def __init__(self, net: nn.Module, checkpoint: Checkpoint | None = None) -> None:
        self.last: Evaluation | None = None
        self.samples = 0
        self._net, self._checkpoint = net, checkpoint
        self._random: RandomStates | None = None  # once there is something to go on from
        self._parts: dict[str, Stateful] = {}

    def __call__(self, *, val_loss: float | Tensor, val_accuracy: float | Tensor | None = None) -> None:
        """Report the loss, and optionally the accuracy, on the validation split so far."""
        self.last = Evaluation(float(val_loss), None if val_accuracy is None else float(val_accuracy))

    def restore(self, **kept: Kept) -> int:
        """Go on from this training's checkpoint, if there is one; returns how many epochs are done, else 0.

        To be called once, before the first epoch, with all that the loop keeps beside the network: whatever
        has ``state_dict`` and ``load_state_dict`` (optimizers, schedules), a ``torch.Generator``, or the
        ``Path`` of a file or folder in which a library keeps its own.  The network, the global random numbers
        and the last report are kept anyway.
        """
        self._random = RandomStates(next(self._net.parameters()).device)
        own = {f"loop.{name}": _stateful(name, part) for name, part in kept.items()}
        self._parts = own | {
            "network": NetworkState(self._net),
            "random": self._random,
            "report": self,
        }
        return self._checkpoint.restore(self._parts) if self._checkpoint is not None else 0

    def checkpoint(self, done: int) -> None:
        """After each epoch, its last step taken: keep what :meth:`restore` was given; so many are done."""
        if self._random is None:
            raise UsageError(
                "report.checkpoint(...) without report.restore(...): call that before the first epoch, with "
                "what the loop keeps, e.g. done = report.restore(optimizer=optimizer)"
            )
        if not WHOLE.holds(done):
            raise UsageError(f"report.checkpoint({done!r}): give the number of epochs done, a whole number")
        if self._checkpoint is None or not of_first(self._checkpoint.is_due):
            return
        self._random.gather()
        if world()[0] == 0:
            self._checkpoint.save(done, self._parts)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: the last report, and what was counted."""
        last = None if self.last is None else [self.last.loss, self.last.accuracy]
        return {"last": last, "samples": self.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.last = None if state["last"] is None else Evaluation(*state["last"])
        self.samples = state["samples"]


def _stateful(name: str, part: Any) -> Stateful:
    if isinstance(part, torch.Generator):
        return GeneratorState(part)
    if isinstance(part, Path):
        return FileState(part)
    if isinstance(part, Stateful):
        return part
    raise UsageError(
        f"report.restore({name}={part!r:.60}): give what has state_dict() and load_state_dict(), a "
        "torch.Generator, or the Path of a file or folder"
    )


class OwnLoop:
    """Trains networks of one study by its ``train`` function."""

    def __init__(self, study: Study, data: tuple[Any, ...]) -> None:
        if study.train is None or study.steps is None:
            raise ValueError("the study has no training loop of its own")
        self.steps = study.steps
        self.closing = round(CLOSING * study.steps)  # a loop that makes fewer steps closes them all the same
        self._train, self._evaluate = study.train, study.evaluate
        self.splits = dict(zip(SPLITS, data, strict=False))
        self._reporter: Reporter | None = None

    def fit(self, net: nn.Module, seed: int, checkpoint: Checkpoint | None = None) -> int:
        """Run the user's loop on ``net``; returns how many samples went through it in training mode.

        Nothing is known of its inside: interrupted, it starts again, unless it calls ``report.restore``.
        """
        reporter = self._reporter = Reporter(net, checkpoint)

        def count(model: nn.Module, args: Any, kwargs: Any) -> None:
            if model.training:
                reporter.samples += batch_size((args, kwargs))

        handle = net.register_forward_pre_hook(count, with_kwargs=True)
        try:
            seed_everything(seed)  # anew: the loop's own random numbers depend on the seed, not on the widths
            self._train(net, tuple(self.splits[name] for name in ("train", "validation")), reporter)
        finally:
            handle.remove()
        if not reporter.samples:
            raise TrainingError("train() never ran the network in training mode: it must train the given one")
        reporter.last = of_first(reporter.last)
        return reporter.samples * world()[1]

    def evaluate(self, net: nn.Module, split: str) -> Evaluation:
        """What the study's ``evaluate`` finds on this split, or what the loop reported last."""
        if self._evaluate is not None:
            result = self._evaluate(net, self.splits[split])
            loss, accuracy = result if isinstance(result, tuple) else (result, None)
            return Evaluation(float(loss), None if accuracy is None else float(accuracy))
        if self._reporter is None or self._reporter.last is None:
            raise TrainingError("train() reported nothing: it must call report(val_loss=...) at least once")
        return self._reporter.last

    def check_steps(self, made: int) -> None:
        """Raise TrainingError if the loop made another number of optimizer steps than the study announced."""
        if abs(made - self.steps) > STEPS_MAY_DIFFER * self.steps:
            raise TrainingError(
                f"train() made {made} optimizer steps, but the study says {self.steps}: give steps={made}"
            )

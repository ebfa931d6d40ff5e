"""A training loop of the user's own in place of the recipe's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from widthsearch.errors import TrainingError
from widthsearch.space.copies import batch_size
from widthsearch.study.data import SPLITS
from widthsearch.study.study import Study
from widthsearch.training.checkpoint import Checkpoint
from widthsearch.training.recipe_loop import Evaluation, seed_everything

STEPS_MAY_DIFFER = 0.1  # optimizer steps made, against those announced: the gates' schedule needs no more


class Reporter:
    """What the user's loop reports its validation figures to; the last report counts."""

    def __init__(self) -> None:
        self.last: Evaluation | None = None

    def __call__(self, *, val_loss: float | Tensor, val_accuracy: float | Tensor | None = None) -> None:
        """Report the loss, and optionally the accuracy, on the validation split so far."""
        self.last = Evaluation(float(val_loss), None if val_accuracy is None else float(val_accuracy))


class OwnLoop:
    """Trains networks of one study by its ``train`` function."""

    def __init__(self, study: Study, data: tuple[Any, ...]) -> None:
        if study.train is None or study.steps is None:
            raise ValueError("the study has no training loop of its own")
        self.steps = study.steps
        self._train, self._evaluate = study.train, study.evaluate
        self.splits = dict(zip(SPLITS, data, strict=False))
        self._reporter = Reporter()

    def fit(self, net: nn.Module, seed: int, checkpoint: Checkpoint | None = None) -> int:
        """Run the user's loop on ``net``; returns how many samples went through it in training mode.

        Nothing is known of its inside, so it is never checkpointed: interrupted, it starts again.
        """
        samples = 0

        def count(model: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal samples
            if model.training:
                samples += batch_size((args, kwargs))

        self._reporter = Reporter()
        handle = net.register_forward_pre_hook(count, with_kwargs=True)
        try:
            seed_everything(seed)  # anew: the loop's own random numbers depend on the seed, not on the widths
            self._train(net, tuple(self.splits[name] for name in ("train", "validation")), self._reporter)
        finally:
            handle.remove()
        if not samples:
            raise TrainingError("train() never ran the network in training mode: it must train the given one")
        return samples

    def evaluate(self, net: nn.Module, split: str) -> Evaluation:
        """What the study's ``evaluate`` finds on this split, or what the loop reported last."""
        if self._evaluate is not None:
            result = self._evaluate(net, self.splits[split])
            loss, accuracy = result if isinstance(result, tuple) else (result, None)
            return Evaluation(float(loss), None if accuracy is None else float(accuracy))
        if self._reporter.last is None:
            raise TrainingError("train() reported nothing: it must call report(val_loss=...) at least once")
        return self._reporter.last

    def check_steps(self, made: int) -> None:
        """Raise TrainingError if the loop made another number of optimizer steps than the study announced."""
        if abs(made - self.steps) > STEPS_MAY_DIFFER * self.steps:
            raise TrainingError(
                f"train() made {made} optimizer steps, but the study says {self.steps}: give steps={made}"
            )

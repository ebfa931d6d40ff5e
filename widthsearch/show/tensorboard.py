"""Scalars for TensorBoard: one point per finished trial, written by the driver.

(Ray Tune's own TensorBoard logger would make one log per Tune trial, idle ones included, each with one step.)
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from widthsearch.database.records import ACCURACY, ARM, IDENTITY, KIND, PRUNE_RATIO, SECONDS
from widthsearch.errors import UsageError
from widthsearch.plans.words import slug


class Board:
    """Writes into ``folder/NAME OF THE STUDY``; :class:`UsageError` where it cannot."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._writer: Any = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--tensorboard {folder!r} cannot be used: {error.strerror}") from None

    def begin(self, study: optuna.Study) -> None:
        """Write what is known of a study; this takes the place of what an earlier driver wrote."""
        from tensorboardX import SummaryWriter  # comes with ray[tune]

        name = slug(study.study_name)
        if name != study.study_name:
            name += f"-{study.user_attrs[IDENTITY][:8]}"
        self.close()
        # Without a suffix, two drivers of one second would write into the same file.
        own = f".{uuid.uuid4().hex[:8]}"
        self._writer = SummaryWriter(
            str(self._folder / name), purge_step=0, flush_secs=10, filename_suffix=own
        )
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            a = trial.user_attrs
            if KIND in a:
                self.add(trial.number, a[KIND], a.get(ARM), {**a, "val_loss": trial.value})

    def add(self, number: int, kind: str, arm: str | None, outcome: Mapping[str, Any]) -> None:
        """Write one finished trial; the step is its number."""
        kind = kind if arm is None else f"{arm} {kind}"
        for name in ("val_loss", ACCURACY, SECONDS):
            if outcome.get(name) is not None:
                self._writer.add_scalar(f"{name}/{kind}", outcome[name], number)
        for variable, ratio in outcome.get(PRUNE_RATIO, {}).items():
            self._writer.add_scalar(f"prune_ratio/{variable}", ratio, number)

    def close(self) -> None:
        """Write out what is held back."""
        if self._writer is not None:
            self._writer.close()

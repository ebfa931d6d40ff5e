"""The widths of a study as an objective of Optuna's: ``study.optimize(Objective("my_study.py"))``."""

from __future__ import annotations

import math

import optuna

from widthsearch.database import records
from widthsearch.driver.prepare import prepare
from widthsearch.errors import TrainingError, UsageError
from widthsearch.plans.arm import at_budget
from widthsearch.plans.plan import Slot
from widthsearch.plans.samplers import RANGE
from widthsearch.plans.search import SearchPlan
from widthsearch.study.file import load_study
from widthsearch.training.trial import TrialRunner


class Objective:
    """One plain training per trial, at widths that any sampler of Optuna's asks for.

    ``reference``: a study file, ``my_study.py`` or ``my_study.py:name``.  A trial has one float per width
    variable, the log of a factor on the seed network's width, of at most :data:`RANGE` each way; all are then
    scaled to the budget, so that every network fits it.  The value is the validation loss.  All trainings
    have the same random numbers, those of ``replica``, so that trials differ by their widths alone.  A
    trial's attributes: widths, MACs, parameters, accuracy.  A training that fails gives NaN, which Optuna
    counts as a failed trial.

    Raises :class:`UsageError` for a bad study.
    """

    def __init__(self, reference: str, *, replica: int = 0) -> None:
        file = load_study(reference)
        if file.study.processes > 1:
            raise UsageError(
                f"Study(processes={file.study.processes}): an Objective trains in this process alone"
            )
        self.plan = prepare(file).plan
        self.replica = replica
        self._runner = TrialRunner(file.study, SearchPlan(self.plan))

    def __call__(self, trial: optuna.Trial) -> float:
        """Train, and return the validation loss."""
        spread = math.log(RANGE)
        factors = tuple(trial.suggest_float(v, -spread, spread) for v in self.plan.widths)
        widths = at_budget(self.plan, factors)
        trial.set_user_attr("widths", widths)
        try:
            outcome = self._runner.run(Slot("score", 0, self.replica, widths))
        except TrainingError as error:
            trial.set_user_attr(records.ERROR, str(error))
            return math.nan
        for name in (records.MACS, records.PARAMS, records.ACCURACY, records.TRAINING_MACS):
            trial.set_user_attr(name, outcome[name])
        value: float = outcome["val_loss"]
        return value

"""What the benchmarks that train share: trainings in a pool's processes, widths as text, gains paired by seed."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from widthsearch import Budget
from widthsearch.cli.options import setting_of
from widthsearch.driver.prepare import prepare
from widthsearch.errors import TrainingError
from widthsearch.plans.plan import Plan, Run, Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.study.file import StudyFile, load_study
from widthsearch.training.trial import TrialRunner

FIRST_SEED = 100  # no search has trained with these

runner: TrialRunner  # of this process

Losses = NDArray[np.float64]  # by seed; NaN where a training failed


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """With what all of them take: the study, and how many processes train."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--workers", type=int, default=2)
    return parser


def load(file: str, budget: str | None = None, **changes: Any) -> StudyFile:
    """A study of a file, with another budget or other fields."""
    if budget is not None:
        changes["budget"] = Budget.parse(budget)
    return load_study(file).with_changes(**changes)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """``--budget``, and ``--set FIELD=VALUE``, as the command line has it, for other fields of the study."""
    parser.add_argument("--budget")
    parser.add_argument("--set", action="append", default=[], type=setting_of, metavar="FIELD=VALUE")


def begin(file: str, budget: str | None = None, changes: dict[str, Any] | None = None) -> None:
    """Make this process one that can :func:`train`."""
    global runner
    found = load(file, budget, **(changes or {}))
    runner = TrialRunner(found.study, SearchPlan(prepare(found).plan))


def train(slot: Slot) -> dict[str, Any]:
    """What a training ended with; the loss is ``None`` if it failed."""
    try:
        return runner.run(slot)
    except TrainingError:
        return {"val_loss": None}


def run(runner: TrialRunner, slot: Slot) -> Run:
    """A slot of a search that has no database, trained here."""
    try:
        outcome = runner.run(slot)
    except TrainingError as error:
        return Run(slot.key, "failed", slot.widths, error=str(error))
    return Run(slot.key, "complete", slot.widths, outcome["val_loss"], outcome.get("prune_ratio"))


def losses_of(outcomes: list[dict[str, Any]]) -> Losses:
    """The losses, NaN for ``None``."""
    return np.array([o["val_loss"] for o in outcomes], dtype=float)


def widths_of(plan: Plan, text: str) -> dict[str, int]:
    """``8-6-9-7-8-11-45`` by variable."""
    return dict(zip(plan.widths, map(int, text.split("-")), strict=True))


def interval(values: ArrayLike, digits: int = 4) -> str:
    """Mean and standard error."""
    of = np.asarray(values)
    return f"{of.mean():.{digits}f} ± {of.std(ddof=1) / len(of) ** 0.5:.{digits}f}"


def gain_of(reference: Losses, losses: Losses) -> str:
    """Mean of the differences paired by seed, and its standard error."""
    gain = (reference - losses)[~np.isnan(reference - losses)]
    return f"gain {gain.mean():+.4f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.4f}"

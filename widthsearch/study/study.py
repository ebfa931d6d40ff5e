"""What the user writes: a study file with a ``Study``, its ``Budget`` and its training ``Recipe``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from widthsearch.errors import UsageError, describe_error
from widthsearch.plans.checks import check_choice, check_positive, check_range
from widthsearch.plans.pruners import MEASURES
from widthsearch.study.budget import Budget

#: One split of the data: a pair of tensors (inputs, targets), or a map-style dataset of such pairs, whose
#: inputs may be a tensor, a tuple or a dict of tensors.  An own training loop may have any other kind.
Split = tuple[Tensor, Tensor] | Dataset[Any]
Data = tuple[Split, Split] | tuple[Split, Split, Split]


@dataclass(frozen=True)
class Recipe:
    """How every network of the study is trained, for the usual supervised case.

    The loss is ``loss(output, target) -> scalar``, the mean over the batch; ``None`` stands for
    cross-entropy with ``label_smoothing`` (validation uses none).  ``metric(output, target) -> float``, also
    a mean over the batch, is shown in the place of accuracy, which only cross-entropy has by itself.  ``lr``
    is the peak of the schedule.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    label_smoothing: float = 0.0
    loss: Callable[[Any, Any], Tensor] | None = None
    metric: Callable[[Any, Any], float] | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` on a value that no training can use."""
        check_positive(self, whole=("epochs", "batch_size"), real=("lr",))
        check_choice(self, "optimizer", ("sgd", "adamw"))
        check_choice(self, "schedule", ("one-cycle", "cosine", "constant"))
        check_range(self, "momentum", below=1)
        check_range(self, "label_smoothing", below=1)
        check_range(self, "weight_decay")
        if self.loss is not None and not callable(self.loss):
            raise UsageError(f"Recipe(loss={self.loss!r}): must be a function loss(output, target) -> scalar")
        if self.metric is not None and not callable(self.metric):
            raise UsageError(f"Recipe(metric={self.metric!r}): must be a function metric(output, target)")
        _check_device(self.device)


@dataclass(frozen=True)
class Study:
    """A width search: the user's network, data, budget and recipe, and how thoroughly to search.

    ``rounds`` at most, each a measure and a score.  The measure, ``replicas`` gated trainings at ``over``
    times the budget, says in which direction to change the widths; under the ``pressure`` of ``cost`` a gate
    pays what its unit adds to the scarcest resource, under that of ``neurons`` all pay the same.  With the
    ``pruner`` ``l1`` (a group lasso on units) or ``taylor`` (first-order scores) in the place of gates
    (``l0``), a measure trains the same network and cuts it to the same budget by their ranks.  It takes
    ``measure_length`` of the recipe's epochs (an own training loop is always run whole).  For the score,
    ``seeds`` plain trainings are made of the proposals at each of ``step_sizes`` in that direction; while the
    longest is the best network so far, of one twice as long, too (at most ``doublings`` times).  (A step size
    is the standard deviation of the change in log width: at 0.6 a typical width changes by a factor of 1.8.)
    The next round starts from the best network so far, the first one from the model scaled uniformly to the
    budget; with ``cost_aware_start`` from the widths that the cost alone suggests (see :mod:`.cost_aware`),
    where these score better.  The search stops early when the layers are balanced
    (spread of the prune ratios below ``tolerance`` or explained by replica noise) or when ``patience``
    rounds brought no better score.  Then the run-off: the three best networks are trained on ``final_seeds``
    more seeds (0: no run-off), and the one with the best mean is recommended.  The verdict trains
    recommendation and uniform baseline on ``report_seeds`` fresh seeds each.

    ``search``: patterns (``["layer3.*"]``) of the width variables to search, default all; ``fix``: of those
    that keep their width.  ``minimum`` and ``multiple_of`` hold for every variable, or are mappings from
    patterns, the last match counts.  A pattern is matched against a variable's name and the modules that
    make its units.  Of attention the number of heads is searched; with ``keep_heads`` their size is.

    Networks of other widths start with weights distributed like those of ``model()``; ``init(model)``, if
    given, is called on each of them last.

    ``threads`` is torch's thread count in every training run: results depend on it, so it is part of the
    study and not derived from the number of workers.  ``retries`` bounds how often a failed run is tried
    again with the same seed.  ``cpus`` (default: ``threads``) and ``gpus`` are what Ray sets aside for each
    training; with shares such as ``gpus=0.5`` several use one GPU.  (With ``gpus=0`` they see all GPUs of
    the machine, and use the first.)

    ``train`` is a training loop of the user's own in place of a recipe: ``train(model, data, report)`` gets
    the network, the splits that ``data()`` gave except the test split, and a reporter that it calls with
    ``report(val_loss=..., val_accuracy=...)``, the last call counts.  The gates of a measure are hooks on
    that network: sampled in forward, trained by each backward pass, so the loop needs no change.  ``steps``
    is the number of backward passes that the loop makes, so that the gates are done when it is.
    ``evaluate(model, split)``, returning the loss or ``(loss, accuracy)``, is called after ``train`` if
    given, and needed where there is a test split.  ``example``: what the model is called with, where that is
    not the first samples of the training split: a tensor, a tuple or a dict.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Data]
    budget: Budget
    recipe: Recipe = field(default_factory=Recipe)
    init: Callable[[nn.Module], object] | None = None
    train: Callable[[nn.Module, Any, Any], object] | None = None
    steps: int | None = None
    evaluate: Callable[[nn.Module, Any], float | tuple[float, float]] | None = None
    example: Any = None
    rounds: int = 3
    replicas: int = 4
    seeds: int = 4
    final_seeds: int = 4
    report_seeds: int = 8
    over: float = 4.0
    measure_length: float = 0.5
    step_sizes: Sequence[float] = (0.15, 0.3, 0.6)
    doublings: int = 1
    cost_aware_start: bool = True
    pressure: Literal["neurons", "cost"] = "cost"
    pruner: Literal["l0", "l1", "taylor"] = "l0"
    search: Sequence[str] | None = None
    fix: Sequence[str] = ()
    keep_heads: bool = False
    minimum: int | Mapping[str, int] = 1
    multiple_of: int | Mapping[str, int] = 1
    patience: int = 1
    tolerance: float = 0.02
    retries: int = 2
    threads: int = 1
    cpus: float | None = None
    gpus: float = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` on a setting that no search can use."""
        for name in ("model", "data"):
            if not callable(getattr(self, name)):
                raise UsageError(
                    f"Study({name}={getattr(self, name)!r:.60}): must be a function without arguments"
                )
        if not isinstance(self.budget, Budget):
            raise UsageError(
                f"Study(budget={self.budget!r:.60}): must be a Budget, e.g. Budget(macs='0.25x')"
            )
        if not isinstance(self.recipe, Recipe):
            raise UsageError(f"Study(recipe={self.recipe!r:.60}): must be a Recipe")
        self._check_own_loop()
        for name in ("search", "fix"):
            value = getattr(self, name)
            unset = name == "search" and value is None
            listed = isinstance(value, Sequence) and not isinstance(value, str)
            if not unset and not (listed and all(isinstance(p, str) for p in value)):
                raise UsageError(
                    f"Study({name}={value!r:.60}): must be a list of patterns, e.g. ['layer3.*']"
                )
        for name in ("keep_heads", "cost_aware_start"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"Study({name}={getattr(self, name)!r:.60}): must be True or False")
        whole = ("rounds", "replicas", "seeds", "report_seeds", "patience", "threads")
        check_positive(self, whole=whole, real=("over", "measure_length"))
        check_choice(self, "pressure", ("neurons", "cost"))
        check_choice(self, "pruner", MEASURES)
        check_range(self, "tolerance")
        check_range(self, "gpus")
        if self.cpus is not None:
            check_positive(self, whole=(), real=("cpus",))
        if not 0 < self.measure_length <= 1:
            raise UsageError(
                f"Study(measure_length={self.measure_length!r:.60}): must be a share of the recipe's epochs, "
                "above 0 and at most 1"
            )
        if not 1 < self.over <= 1000:
            raise UsageError(
                f"Study(over={self.over!r:.60}): must be above 1, or there is nothing to prune; at most 1000"
            )
        steps = self.step_sizes
        if not isinstance(steps, Sequence) or not steps or not all(_is_step(step) for step in steps):
            raise UsageError(
                f"Study(step_sizes={steps!r:.60}): must be a list of changes of the log widths (standard "
                "deviations), above 0 and at most 2, e.g. (0.15, 0.3, 0.6)"
            )
        if self.report_seeds < 2:
            raise UsageError(f"Study(report_seeds={self.report_seeds!r}): at least 2, for an interval")
        for name in ("retries", "seed", "doublings", "final_seeds"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value < 2**32:
                raise UsageError(
                    f"Study({name}={value!r}): must be a whole number of at least 0, below 2**32"
                )

    def _check_own_loop(self) -> None:
        for name in ("init", "train", "evaluate"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise UsageError(f"Study({name}={value!r:.60}): must be a function")
        if self.train is None:
            for name in ("steps", "evaluate"):
                if getattr(self, name) is not None:
                    raise UsageError(f"Study({name}=...) belongs to an own training loop: give train= too")
            return
        if self.pruner != "l0":
            raise UsageError(
                f"Study(pruner={self.pruner!r}, train=...): only gates, 'l0', work in an own training loop"
            )
        if self.recipe != Recipe():
            raise UsageError("Study(train=..., recipe=...): give one, an own training loop has no recipe")
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise UsageError(
                f"Study(steps={self.steps!r}): say how many backward passes train() makes, a whole number"
            )


def _is_step(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 2


def _check_device(name: str) -> None:
    if isinstance(name, str) and name == "auto":
        return
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise UsageError(
            f"Recipe(device={name!r}): no such device here ({describe_error(error)}); try 'auto' or 'cpu'"
        ) from None


def settings(study: Study) -> dict[str, str]:
    """All plain settings of a study by name (``recipe.lr``), as text: what resume compares."""
    values: dict[str, Any] = {}
    for owner, prefix in ((study, ""), (study.budget, "budget."), (study.recipe, "recipe.")):
        values.update({prefix + f.name: getattr(owner, f.name) for f in fields(owner)})
    # (Studies from before there were these do not have them written down.)
    if study.budget.latency is None:
        del values["budget.latency"], values["budget.batch"]
    if study.pruner == "l0":
        del values["pruner"]
    if study.cost_aware_start:
        del values["cost_aware_start"]
    if study.final_seeds == Study.final_seeds:
        del values["final_seeds"]
    # What no result depends on may change between launch and resume.
    skip = ("model", "data", "budget", "recipe", "example", "cpus", "gpus")
    return {k: getattr(v, "__qualname__", repr(v)) for k, v in values.items() if k not in skip}


def load_study(reference: str) -> tuple[Study, Path, str]:
    """Load the ``Study`` of ``path/to/file.py`` or ``path/to/file.py:name``.

    Returns the study, the absolute path and the name.  The file's folder is put on ``sys.path``, so that it
    can import modules beside it.  Raises :class:`UsageError` if there is no such file or study, or if the
    file itself raises.
    """
    file, colon, name = reference.rpartition(":")
    if not colon or not file.endswith(".py"):
        file, name = reference, ""
    path = _existing(file)
    if path is None:
        raise UsageError(f"no study file {file!r}; give the path of a Python file that holds a Study")
    module = import_file(path)
    found = {k: v for k, v in vars(module).items() if isinstance(v, Study)}
    if name and name not in found:
        raise UsageError(f"{file}: no Study named {name!r}; it has {', '.join(found) or 'none'}")
    if not found:
        raise UsageError(f"{file}: no Study in it; it should end with a line study = Study(model=..., ...)")
    if not name and len(found) > 1 and "study" not in found:
        raise UsageError(
            f"{file}: several studies ({', '.join(found)}); say which: {file}:{next(iter(found))}"
        )
    name = name or ("study" if "study" in found else next(iter(found)))
    return found[name], path, name


def _existing(file: str) -> Path | None:
    try:
        path = Path(file).expanduser().resolve()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, no text, the home of nobody
        return None


def import_file(path: Path) -> Any:
    """Import a file of the user's; :class:`UsageError` with the line number if it raises."""
    spec = importlib.util.spec_from_file_location(f"_study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path}: {describe_error(error, path)}") from error
    return module

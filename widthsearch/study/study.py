"""What the user writes: a ``Study`` with its ``Budget`` and its training ``Recipe``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.data import Dataset

from widthsearch.errors import UsageError
from widthsearch.plans.settings import (
    POSITIVE,
    SWITCH,
    WHOLE,
    Check,
    Fields,
    Settings,
    check_settings,
    from_zero,
    one_of,
    optional,
    setting,
)
from widthsearch.study.budget import Budget
from widthsearch.study.recipe import Recipe
from widthsearch.study.values import said

#: One split of the data, as a user gives it: a pair of tensors (inputs, targets), or a dataset of such pairs,
#: map-style or iterable.  In both the inputs may be a tensor, a tuple or a dict of tensors (targets too, if
#: the loss takes them).  An own training loop may have any other kind.
Given = tuple[Any, Any] | Dataset[Any]
#: The same once checked: what is no pair of single tensors is a dataset.
Split = tuple[Tensor, Tensor] | Dataset[Any]
Data = tuple[Split, Split] | tuple[Split, Split, Split]

_MADE = Check(
    lambda v: callable(v) and not isinstance(v, nn.Module),
    "must be a function without arguments, or the class: not what it returns (model=Net, not model=Net())",
)
_FUNCTION = optional(Check(callable, "must be a function"))
_BUDGET = Check(lambda v: isinstance(v, Budget), "must be a Budget, e.g. Budget(macs='0.25x')")
_RECIPE = Check(lambda v: isinstance(v, Recipe), "must be a Recipe")
_EXAMPLES = Check(
    lambda v: isinstance(v, list | tuple) and bool(v),
    "must be a list of what the model is called with, e.g. [x, {'x': x, 'task': 'b'}]",
)
CALLBACKS = Check(
    lambda v: isinstance(v, Sequence) and all(map(callable, v)),
    "must be a list of functions callback(optuna_study, trial)",
)
_OUTPUT = Check(
    lambda v: isinstance(v, str | int) and not isinstance(v, bool),
    "must be the key or the position of one output, e.g. 'logits'",
)
_TABLES = Check(
    lambda v: isinstance(v, Mapping) and all(isinstance(k, str) and callable(f) for k, f in v.items()),
    "must map patterns to functions of a shape, e.g. {'*.pe': lambda shape: sinusoids(*shape)}",
)
_PATTERNS = Check(
    lambda v: isinstance(v, Sequence) and not isinstance(v, str) and all(isinstance(p, str) for p in v),
    "must be a list of patterns, e.g. ['layer3.*']",
)


@dataclass(frozen=True)
class Study(Settings, Fields):
    """A width search: the user's network, data, budget and recipe; the settings say how thorough it is.

    ``rounds`` at most, each a measure and a score.  The measure, ``replicas`` gated trainings at ``over``
    times the budget, says in which direction to change the widths; under the ``pressure`` of ``cost`` a gate
    pays what its unit adds to the scarcest resource, under that of ``neurons`` all pay the same.  With the
    ``pruner`` ``l1`` (a group lasso on units) or ``taylor`` (first-order scores) in the place of gates
    (``l0``), a measure trains the same network and cuts it to the same budget by their ranks.  It takes
    ``measure_length`` of the recipe's epochs (an own training loop is always run whole).  For the score,
    proposals are made in that direction, as far as ``step_sizes``, and up to ``seeds`` plain trainings of
    each: of all the first half of the seeds; of the best one that is ahead of the best network so far there
    (and the next one, if that is no better on all of them) the others.  While the best is the longest, one
    twice as long is tried, ``doublings`` times at most.  (A step size is the standard deviation of the
    change in log width: at 0.6 a typical width changes by a factor of 1.8.)  The next round starts from the
    best network so far, the first one from the model scaled uniformly to the budget; with
    ``cost_aware_start`` from the widths that the cost alone suggests (``maths/cost_aware.py``), where these
    score better (and from the other of the two, if that is about as good, where nothing better was found from
    the first).  The search stops early when the layers are balanced (spread of the prune ratios below
    ``tolerance`` or explained by replica noise) or when ``patience`` rounds brought no better score.  Then
    the run-off: the best network is trained on ``final_seeds`` more seeds (0: no run-off), and if another
    one is better then, that one too, three at most; the best of them is recommended.  The verdict trains
    recommendation and uniform baseline on ``report_seeds`` fresh seeds each.

    ``search``: patterns (``["layer3.*"]``) of the width variables to search, default all; ``fix``: of those
    that keep their width.  ``minimum`` and ``multiple_of`` hold for every variable, or are mappings from
    patterns, the last match counts.  A pattern is matched against a variable's name and the modules that
    make its units.  Of attention the number of heads is searched; with ``keep_heads`` their size is.
    ``output``: of several outputs of the model the one that the loss reads, by its key or position; widths
    of the others (a hidden state that is returned too) are free then.

    Networks of other widths start with weights distributed like those of ``model()``; ``init(model)``, if
    given, is called on each of them last.  ``buffers``: patterns of names (``{"*.pe": function}``) of buffers
    with values of their own, such as a table of positions, and a function that makes one of a given shape;
    without it they fix the widths of what they are added to.

    ``threads`` is torch's thread count in every training run: results depend on it, so it is part of the
    study and not derived from the number of workers.  ``retries`` bounds how often a failed run is tried
    again with the same seed.  ``cpus`` (default: ``threads`` for each process) and ``gpus`` are what Ray
    sets aside for each training; with shares such as ``gpus=0.5`` several use one GPU.  (With ``gpus=0``
    they see all GPUs of the machine, and use the first.)

    ``pack="auto"``: where trainings use a GPU, networks of equal widths (the seeds of one network, the gated
    trainings of one measure) are trained as one batched training.  ``always``: on CPUs too, where it gains
    nothing.  A network that cannot be (dropout, an own loop) is trained alone; ``widths`` says why.

    ``timeout``: a training that takes longer, in seconds, has failed (and is tried again, from its last
    checkpoint), so that one that hangs does not hold up the search.  No result depends on it: it may be
    changed before ``resume``.  With ``--workers 0`` only Python code is ended; what hangs inside of a library
    is ended with its worker.

    ``train`` is a training loop of the user's own in place of a recipe: ``train(model, data, report)`` gets
    the network, the splits that ``data()`` gave except the test split, and a reporter that it calls with
    ``report(val_loss=..., val_accuracy=...)``, the last call counts.  The gates of a measure are hooks on
    that network: sampled in forward, trained by the backward passes, so the loop needs no change.  With
    ``report.restore(...)`` and ``report.checkpoint(...)`` an interrupted one goes on.  ``steps``
    is the number of optimizer steps that the loop makes, so that the gates are done when it is.
    ``evaluate(model, split)``, returning the loss or ``(loss, accuracy)``, is called after ``train`` if
    given, and needed where there is a test split.  With ``processes`` that many run ``train`` at once for one
    training, as ``torchrun`` would start them: in a process group, with the ``gpus`` between them.  The loop
    shares the samples out and wraps the network in ``DistributedDataParallel``; what rank 0 reports counts.
    ``example``: what the model is called with, where that is
    not the first samples of the training split: a tensor, a tuple or a dict.  ``examples``: several of them,
    where no single one runs every module (the cost is the mean over them).

    ``callbacks``: functions of Optuna's kind, ``callback(optuna_study, finished_trial)``, such as the MLflow
    and Weights & Biases ones of optuna-integration.  The driver calls them after each training that ended;
    what one raises is said, and the search goes on.
    """

    model: Callable[[], nn.Module] = field(metadata={"check": _MADE})
    data: Callable[[], tuple[Given, Given] | tuple[Given, Given, Given]] = field(metadata={"check": _MADE})
    budget: Budget = field(metadata={"check": _BUDGET})
    recipe: Recipe = field(default_factory=Recipe, metadata={"check": _RECIPE})
    init: Callable[[nn.Module], object] | None = setting(None, _FUNCTION)
    buffers: Mapping[str, Callable[[tuple[int, ...]], Tensor]] | None = setting(None, optional(_TABLES))
    train: Callable[[nn.Module, Any, Any], object] | None = setting(None, _FUNCTION)
    steps: int | None = None
    evaluate: Callable[[nn.Module, Any], float | tuple[float, float]] | None = setting(None, _FUNCTION)
    example: Any = None
    examples: Sequence[Any] | None = setting(None, optional(_EXAMPLES))
    search: Sequence[str] | None = setting(None, optional(_PATTERNS))
    fix: Sequence[str] = setting((), _PATTERNS)
    keep_heads: bool = setting(False, SWITCH)
    output: str | int | None = setting(None, optional(_OUTPUT))
    minimum: int | Mapping[str, int] = 1
    multiple_of: int | Mapping[str, int] = 1
    threads: int = setting(1, WHOLE)
    cpus: float | None = setting(None, optional(POSITIVE))
    gpus: float = setting(0, from_zero())
    processes: int = setting(1, WHOLE)
    pack: Literal["never", "auto", "always"] = setting("never", one_of("never", "auto", "always"))
    timeout: float | None = setting(None, optional(POSITIVE), "Seconds after which a training is given up.")
    callbacks: Sequence[Callable[[Any, Any], object]] = setting((), CALLBACKS)

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` on a setting that no search can use."""
        check_settings(self)
        if self.example is not None and self.examples is not None:
            raise UsageError("Study(example=..., examples=...): give one, examples has all of them")
        if self.train is None:
            for name, default in (("steps", None), ("evaluate", None), ("processes", 1)):
                if getattr(self, name) != default:
                    raise UsageError(f"Study({name}=...) belongs to an own training loop: give train= too")
            return
        if self.pruner != "l0":
            raise UsageError(
                f"Study(pruner={self.pruner!r}, train=...): only gates, 'l0', work in an own training loop"
            )
        if self.recipe != Recipe():
            raise UsageError("Study(train=..., recipe=...): give one, an own training loop has no recipe")
        if not WHOLE.holds(self.steps):
            raise UsageError(
                f"Study(steps={self.steps!r}): say how many optimizer steps train() makes, a whole number"
            )


def settings_of(study: Study) -> dict[str, str]:
    """All plain settings of a study by name (``recipe.lr``), as text: what resume compares."""
    values: dict[str, Any] = {}
    for owner, prefix in ((study, ""), (study.budget, "budget."), (study.recipe, "recipe.")):
        values.update({prefix + f.name: getattr(owner, f.name) for f in fields(owner)})
    # What no result depends on may change between launch and resume.
    skip = {"model", "data", "budget", "recipe", "example", "examples", "callbacks"}
    skip |= {"cpus", "gpus", "timeout", "recipe.num_workers", "recipe.pin_memory"}
    return {k: said(v) for k, v in values.items() if k not in skip}

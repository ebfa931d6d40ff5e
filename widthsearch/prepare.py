"""Before the first trial: check the study once, at the boundary, and write down its plan."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from widthsearch.arms import ARMS
from widthsearch.comparison import Comparison, least_cost, parse_arm, pruner_of
from widthsearch.errors import UsageError, describe_error
from widthsearch.patterns import numbers_of
from widthsearch.plan import Plan
from widthsearch.pruner_plan import LEVELS, PRUNERS, PrunerPlan
from widthsearch.rule import BudgetTooSmallError
from widthsearch.space import WidthSpace
from widthsearch.study import Budget, Data, Split, Study, settings
from widthsearch.trial import build_space, check_data, check_targets, measure_epochs


@dataclass(frozen=True)
class Prepared:
    """A study that can be searched: its plan, its fingerprint, and the would-be variables left out."""

    plan: Plan
    fingerprint: dict[str, str]
    frozen: list[dict[str, str | int]]


def prepare(study: Study, path: Path) -> Prepared:
    """Run the user's ``model()`` and ``data()`` once and make the plan.

    Raises :class:`UsageError` in one line for anything that would fail later: data that is no data, a model
    that does not run on it, labels outside the classes, nothing to search, a budget too small.
    """
    data = load_data(study)
    space = build_space(study, data)
    check_targets(space, study, data)
    if not space.widths:
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in space.frozen[:3])
        raise UsageError(
            f"{type(space.model).__name__} has nothing to search: no width variable found"
            + (f" ({reasons})" if reasons else " (it needs at least one hidden layer)")
        )
    return Prepared(
        plan=make_plan(study, space),
        fingerprint=_fingerprint(study, path, data),
        frozen=[{"name": f.name, "width": f.width, "reason": f.reason} for f in space.frozen],
    )


def fingerprint_of(study: Study, path: Path) -> dict[str, str]:
    """What must not change between launch and resume: settings, code and data, as text by name."""
    return _fingerprint(study, path, load_data(study))


def _fingerprint(study: Study, path: Path, data: Data) -> dict[str, str]:
    return {**settings(study), **_code_of(path), **_data_of(data)}


def load_data(study: Study) -> Data:
    """The user's splits, checked; :class:`UsageError` in one line where they cannot be used."""
    try:
        data = study.data()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"data() raised {describe_error(error)}") from error
    return check_data(data, study)


def make_plan(study: Study, space: WidthSpace) -> Plan:
    """The plan of a study on a width space; :class:`UsageError` if the budget is too small."""
    plan = Plan(
        widths=dict(space.widths),
        cost=space.cost,
        budget=study.budget.absolute(space.cost.at(space.widths)),
        minimum=numbers_of("minimum", study.minimum, space.modules),
        multiple_of=numbers_of("multiple_of", study.multiple_of, space.modules),
        pressure=study.pressure,
        pruner=study.pruner,
        over=float(study.over),
        rounds=study.rounds,
        replicas=study.replicas,
        seeds=study.seeds,
        report_seeds=study.report_seeds,
        patience=study.patience,
        tolerance=study.tolerance,
        measure_length=measure_epochs(study) / study.recipe.epochs,
        step_sizes=tuple(sorted({float(step) for step in study.step_sizes})),
        retries=study.retries,
        seed=study.seed,
    )
    check_budget(plan)
    return plan


def check_budget(plan: Plan) -> None:
    """:class:`UsageError` if the plan's budget is too small for its minimum widths or for a measure."""
    asked = ", ".join(f"{r}={limit}" for r, limit in plan.budget.items())
    try:
        plan.baseline()
    except BudgetTooSmallError:
        least = plan.cost.at(plan.constraints().smallest())
        needed = ", ".join(f"{r}={least[r]}" for r in plan.budget)
        raise UsageError(f"budget {asked} is too small: the minimum widths alone cost {needed}") from None
    try:
        plan.over_wide(plan.widths)
    except BudgetTooSmallError:
        raise UsageError(
            f"budget {asked} is too small: {plan.over:g} times that (over) does not even pay for an "
            "over-wide network with two units per variable"
        ) from None


def make_comparison(
    study: Study,
    plan: Plan,
    *,
    arms: Sequence[str] = tuple(ARMS),
    shares: Sequence[str] = (),
    repeats: int = 1,
    cost: float | None = None,
) -> Comparison:
    """A comparison of ``arms`` on a study: under its own budget, or under these shares of its seed's cost.

    ``cost``: of one search, in uniform trainings.  Raises :class:`UsageError` for an arm or share that is
    none, and for a cost that pays for no search.
    """
    for arm in arms:
        parse_arm(arm)
        if pruner := pruner_of(arm):
            replace(study, pruner=pruner)  # type: ignore[arg-type]  # refused where that cannot be
    if not arms or len(set(arms)) < len(arms):
        raise UsageError(f"arms {','.join(arms)!r}: give each arm once, e.g. uniform,grow-shrink,random")
    seed = plan.cost.at(plan.widths)
    resources = [f.name for f in fields(study.budget) if getattr(study.budget, f.name) is not None]
    budgets = [plan.budget]
    if shares:
        of = [Budget(**{r: share.removesuffix("x") + "x" for r in resources}) for share in shares]
        budgets = [budget.absolute(seed) for budget in of]
    largest = {r: max(budget[r] for budget in budgets) for r in resources}
    for budget in budgets:
        check_budget(replace(plan, budget=budget))
        least = least_cost(replace(plan, budget=budget), rounds=1)
        if cost is not None and cost < least and "grow-shrink" in arms:
            raise UsageError(
                f"--cost {cost:g}: one round of the search costs {least:.1f} uniform trainings already"
            )
    return Comparison(replace(plan, budget=largest), tuple(budgets), tuple(arms), repeats, cost)


def make_pruner_plan(
    study: Study, plan: Plan, *, pruners: Sequence[str] = PRUNERS, levels: Sequence[str] = ()
) -> PrunerPlan:
    """A comparison of ``pruners`` at ``levels``, shares of the over-wide network's MACs such as ``1/4``.

    Raises :class:`UsageError` for a pruner or level that is none, and for a study that has no recipe.
    """
    if study.train is not None:
        raise UsageError("pruners are compared by the recipe: a study with an own training loop has none")
    if not pruners or len(set(pruners)) < len(pruners) or not set(pruners) <= set(PRUNERS):
        raise UsageError(f"pruners {','.join(pruners)!r}: give some of {', '.join(PRUNERS)}, each once")
    shares = sorted({_level(text) for text in levels} or LEVELS, reverse=True)
    made = PrunerPlan(plan, tuple(pruners), tuple(shares))
    constraints = made.constraints(shares[-1])
    if not constraints.allow(constraints.smallest()):
        least = made.share({v: int(w) for v, w in constraints.smallest().items()})
        raise UsageError(
            f"level {shares[-1]:.4g}: two units per variable (or its minimum) alone have {least:.4g} of the "
            "over-wide network's MACs"
        )
    return made


def _level(text: str) -> float:
    try:
        share = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        share = 0.0
    if not 0 < share < 1:
        raise UsageError(f"level {text!r:.60}: give a share that is kept, above 0 and below 1, e.g. 1/4")
    return share


def changed_fields(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, as ``recipe.lr: 0.1 -> 0.2``."""
    changes = []
    for name in sorted({*before, *now}):
        old, new = before.get(name, "absent"), now.get(name, "absent")
        if old != new:
            changes.append(name if name.startswith("code of") else f"{name}: {old} -> {new}")
    return changes


def _code_of(path: Path) -> dict[str, str]:
    """A digest per function, class and constant of the study file.

    Comments, layout and docstrings do not count; neither does the ``Study`` itself, whose settings are
    compared one by one.
    """
    digests = {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = ", ".join(ast.unparse(t) for t in targets)
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("Study"):
                continue
        else:
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
                inner.body = inner.body[1:]
        digests[f"code of {name}"] = hashlib.sha256(ast.dump(node).encode()).hexdigest()[:12]
    return digests


def _data_of(data: Data) -> dict[str, str]:
    names = ("data.train", "data.validation", "data.test")
    return {name: _split_digest(split) for name, split in zip(names, data, strict=False)}


def _split_digest(split: Split) -> str:
    if not isinstance(split, tuple) or not all(isinstance(t, Tensor) for t in split):
        size = f" of {len(split)}" if hasattr(split, "__len__") else ""
        return f"{type(split).__name__}{size}"
    sample = hashlib.sha256()
    stride = max(1, len(split[0]) // 256)
    for tensor in split:  # a sample of rows: enough to notice other data, cheap for large ones
        sample.update(tensor[::stride].cpu().to(torch.float64).numpy().tobytes())
    return f"{'x'.join(map(str, split[0].shape))} {sample.hexdigest()[:12]}"

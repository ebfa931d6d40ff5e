"""Before the first trial: check the study once, at the boundary, and write down its plan."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from widthsearch.errors import UsageError, describe_error
from widthsearch.patterns import numbers_of
from widthsearch.plan import Plan
from widthsearch.rule import BudgetTooSmallError
from widthsearch.space import WidthSpace
from widthsearch.study import Data, Split, Study, settings
from widthsearch.trial import build_space, check_data, check_targets


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
        over=float(study.over),
        rounds=study.rounds,
        replicas=study.replicas,
        seeds=study.seeds,
        report_seeds=study.report_seeds,
        patience=study.patience,
        tolerance=study.tolerance,
        retries=study.retries,
        seed=study.seed,
    )
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
            f"budget {asked} is too small: {study.over:g} times that (over) does not even pay for an "
            "over-wide network with two units per variable"
        ) from None
    return plan


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

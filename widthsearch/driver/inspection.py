"""``widthsearch widths``: what could be searched in a network, before any training."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widthsearch.driver.prepare import make_plan, why_alone_in
from widthsearch.errors import UsageError
from widthsearch.plans.plan import Plan
from widthsearch.report.listings import WidthsFound
from widthsearch.report.types.common import network_of
from widthsearch.space import WidthSpace, trace
from widthsearch.study.budget import Budget
from widthsearch.study.data import load_data
from widthsearch.study.file import import_file
from widthsearch.study.patterns import numbers_of
from widthsearch.study.study import Study
from widthsearch.study.users_code import users_code
from widthsearch.training.trial import build_space


def widths_of_study(study: Study) -> WidthsFound:
    """What ``widths STUDY.py --json`` prints; raises UsageError where launch would.

    A budget that is too small, or of a latency, is no reason not to show the rest: ``budget_error`` says so.
    """
    data = load_data(study)
    space = build_space(study, data)
    minimum = numbers_of("minimum", study.minimum, space.modules)
    multiple_of = numbers_of("multiple_of", study.multiple_of, space.modules)
    plan, error = None, None
    if study.budget.latency is not None:
        error = (
            f"budget latency={study.budget.latency!r}: launch measures this machine first, so no widths "
            "under it are shown here"
        )
    elif space.widths:
        try:
            plan = make_plan(study, space)
        except UsageError as too_small:
            error = str(too_small)
    alone = why_alone_in(study, space, data) if space.widths else None
    found = describe(space, minimum=minimum, multiple_of=multiple_of, plan=plan, budget_error=error)
    return {**found, "alone": alone or None}


def widths_of_model(reference: str, inputs: Sequence[str], budget: Budget | None = None) -> WidthsFound:
    """What ``widths --model module:function --input 1,3,224,224 --json`` prints.

    Raises UsageError for a model or an input that cannot be used, and for a budget that is too small or of a
    latency, which would have to be measured.
    """
    if budget is not None and budget.latency is not None:
        raise UsageError(f"budget latency={budget.latency!r}: give macs, params or both here")
    model = load_model(reference)
    space = trace(model, tuple(example_input(text) for text in inputs))
    if budget is None or not space.widths:
        return describe(space)
    nothing = (torch.empty(0), torch.empty(0))  # a plan needs no data
    study = Study(model=lambda: model, data=lambda: (nothing, nothing), budget=budget)
    return describe(space, plan=make_plan(study, space))


def describe(
    space: WidthSpace,
    *,
    minimum: Mapping[str, int] | None = None,
    multiple_of: Mapping[str, int] | None = None,
    plan: Plan | None = None,
    budget_error: str | None = None,
) -> WidthsFound:
    """A width space as plain data.  Shares are of the MACs of one forward pass.

    With a ``plan`` also its budget, and what needs no training: the uniform and the cost-aware widths there.
    """
    network = network_of(space.cost, space.widths)
    return {
        "model": type(space.model).__name__,
        "variables": [
            {
                "name": name,
                "width": width,
                "modules": list(space.modules[name]),
                "share_of_macs": space.cost.share("macs", space.widths, [name]),
                "min": (minimum or {}).get(name, 1),
                "multiple_of": (multiple_of or {}).get(name, 1),
            }
            for name, width in space.widths.items()
        ],
        "frozen": [{"name": f.name, "width": f.width, "reason": f.reason} for f in space.frozen],
        "not_run": list(space.idle),
        "stale": space.stale(),
        "alone": None,
        "macs": network["macs"],
        "params": network["params"],
        "coverage": space.cost.share("macs", space.widths, space.widths),
        "budget_error": budget_error,
        "budget": None if plan is None else plan.budget,
        "uniform": None if plan is None else network_of(plan.cost, plan.baseline),
        "cost_aware": None if plan is None else network_of(plan.cost, plan.cost_aware),
    }


def load_model(reference: str) -> nn.Module:
    """The model of ``package.module:name`` or ``file.py:name``: a function, a class, or a network.

    Arguments may follow: ``timm:create_model('resnet18', num_classes=10)``.  Raises UsageError in one line.
    """
    home, colon, expression = reference.partition(":")
    if not colon or not home or not expression:
        raise UsageError(f"--model {reference!r}: give module:function, e.g. torchvision.models:resnet18")
    name, args, kwargs = _parse_call(reference, expression)
    sys.path.insert(0, str(Path.cwd()))
    with users_code(what=f"--model {reference!r}: "):
        found: Any = _home(home)
        for part in name.split("."):
            found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise UsageError(f"--model {reference!r}: {name} is neither a function nor a network")
        with users_code(what=f"--model {reference!r}: {name}() raised "):
            torch.manual_seed(0)
            found = found(*args, **kwargs)
    if not isinstance(found, nn.Module):
        raise UsageError(f"--model {reference!r}: {name}() returned {found!r:.60}, not a torch.nn.Module")
    return found


def _home(home: str) -> Any:
    if not home.endswith(".py"):
        return import_module(home)
    path = Path(home).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {home}")
    return import_file(path)


def _parse_call(reference: str, expression: str) -> tuple[str, list[Any], dict[str, Any]]:
    """``name`` or ``name('x', k=1)``, with literals as arguments."""
    try:
        node = ast.parse(expression, mode="eval").body
        if not isinstance(node, ast.Call):
            return expression, [], {}
        args = [ast.literal_eval(a) for a in node.args]
        kwargs = {k.arg or "": ast.literal_eval(k.value) for k in node.keywords}
        if "" in kwargs:  # **{...}
            raise ValueError
        return ast.unparse(node.func), args, kwargs
    except (SyntaxError, ValueError):
        raise UsageError(
            f"--model {reference!r}: give module:function, or module:function('name', option=1)"
        ) from None


def example_input(text: str) -> Tensor:
    """A tensor of the shape ``1,3,224,224``; of token numbers with ``:int`` behind it.

    A single sample is made two: BatchNorm in training mode refuses a single one.
    """
    shape, _, kind = text.partition(":")
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or kind not in ("", "int", "float"):
        raise UsageError(f"--input {text!r}: give a shape such as 1,3,224,224 (1,16:int for token numbers)")
    sizes[0] = max(2, sizes[0])
    try:
        return torch.randint(0, 2, sizes) if kind == "int" else torch.randn(sizes)
    except (RuntimeError, MemoryError, TypeError, ValueError, OverflowError):
        raise UsageError(f"--input {text!r}: too large for this machine's memory") from None

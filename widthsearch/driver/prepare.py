"""Before the first trial: check the study once, at the boundary, and write down its plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from widthsearch.errors import UsageError
from widthsearch.maths.cost import RESOURCES, Cost
from widthsearch.maths.rule import BudgetTooSmallError
from widthsearch.plans.arms import ARMS
from widthsearch.plans.comparison import Comparison, least_cost, parse_arm, pruner_of
from widthsearch.plans.plan import Plan
from widthsearch.plans.probe import PLAIN, Probe, Start
from widthsearch.plans.pruners import LEVELS, PRUNERS, PrunerPlan
from widthsearch.space import WidthSpace
from widthsearch.speed.calibrate import latency_cost
from widthsearch.study.budget import Budget
from widthsearch.study.data import digests_of, load_data
from widthsearch.study.fingerprint import code_of
from widthsearch.study.patterns import numbers_of, several
from widthsearch.study.study import Data, Study, settings
from widthsearch.training.trial import build_space, check_targets, measure_epochs

#: The largest factor on a width of a probe's start.
LARGEST_FACTOR = 10**6


@dataclass(frozen=True)
class Prepared:
    """A study that can be searched: its plan, its fingerprint, the would-be variables left out.

    ``modules``: which module makes which variable's units, in the order of execution.
    """

    plan: Plan
    fingerprint: dict[str, str]
    frozen: list[dict[str, str | int]]
    modules: tuple[tuple[str, str], ...]


def prepare(study: Study, path: Path, before: Plan | None = None) -> Prepared:
    """Run the user's ``model()`` and ``data()`` once and make the plan.

    Raises :class:`UsageError` in one line for anything that would fail later: data that is no data, a model
    that does not run on it, labels outside the classes, nothing to search, a budget too small.  A latency is
    measured only if ``before``, the study's plan so far, has none that fits.
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
        plan=make_plan(study, space, before),
        fingerprint=_fingerprint(study, path, data),
        frozen=[{"name": f.name, "width": f.width, "reason": f.reason} for f in space.frozen],
        modules=space.makers,
    )


def fingerprint_of(study: Study, path: Path) -> dict[str, str]:
    """What must not change between launch and resume: settings, code and data, as text by name."""
    return _fingerprint(study, path, load_data(study))


def _fingerprint(study: Study, path: Path, data: Data) -> dict[str, str]:
    return {**settings(study), **code_of(path), **digests_of(data)}


def make_plan(study: Study, space: WidthSpace, before: Plan | None = None) -> Plan:
    """The plan of a study on a width space; :class:`UsageError` if the budget is too small."""
    minimum = numbers_of("minimum", study.minimum, space.modules)
    multiple_of = numbers_of("multiple_of", study.multiple_of, space.modules)
    cost, latency = space.cost, None
    seed = cost.at(space.widths)
    if study.budget.latency is not None:
        known = None if before is None else _known_latency(before, space.layer_shapes(), study)
        if known is not None:
            cost, latency = known
        else:
            cost, fitted = latency_cost(study, space, minimum=minimum, multiple_of=multiple_of)
            latency = asdict(fitted)
        seed["latency"] = latency["seed"]
    plan = Plan(
        widths=dict(space.widths),
        cost=cost,
        budget=study.budget.absolute(seed),
        minimum=minimum,
        multiple_of=multiple_of,
        latency=latency,
        pressure=study.pressure,
        pruner=study.pruner,
        outputs=dict(space.outputs),
        cost_aware_start=study.cost_aware_start,
        over=float(study.over),
        rounds=study.rounds,
        replicas=study.replicas,
        seeds=study.seeds,
        report_seeds=study.report_seeds,
        final_seeds=study.final_seeds,
        patience=study.patience,
        tolerance=study.tolerance,
        measure_length=measure_epochs(study) / study.recipe.epochs,
        step_sizes=tuple(sorted({float(step) for step in study.step_sizes})),
        doublings=study.doublings,
        retries=study.retries,
        seed=study.seed,
    )
    check_budget(plan)
    return plan


def _known_latency(before: Plan, shapes: Cost, study: Study) -> tuple[Cost, dict[str, Any]] | None:
    """The latency of an earlier plan of the same study, if the network still has the same layer shapes."""
    cost, latency = before.cost, before.latency
    if latency is None or latency["batch"] != study.budget.batch or latency["threads"] != study.threads:
        return None
    counted = {r: p for r, p in shapes.polynomials.items() if r != "written"}
    now = replace(shapes, polynomials={**counted, "latency": cost.polynomials["latency"]})
    return (now, latency) if now.to_json() == cost.to_json() else None


def check_budget(plan: Plan) -> None:
    """:class:`UsageError` if the plan's budget is too small for its minimum widths or for a measure."""
    asked = ", ".join(_said(r, limit) for r, limit in plan.budget.items())
    try:
        plan.baseline()
    except BudgetTooSmallError:
        least = plan.cost.at(plan.constraints().smallest())
        needed = ", ".join(_said(r, least[r]) for r in plan.budget)
        raise UsageError(f"budget {asked} is too small: the minimum widths alone cost {needed}") from None
    try:
        plan.over_wide(plan.widths)
    except BudgetTooSmallError:
        raise UsageError(
            f"budget {asked} is too small: {plan.over:g} times that (over) does not even pay for an "
            "over-wide network with two units per variable"
        ) from None


def _said(resource: str, amount: float) -> str:
    return f"{resource}={amount}" if resource != "latency" else f"{resource}={1e3 * amount:.4g}ms"


def budgets_of(study: Study, shares: Sequence[str]) -> list[Budget]:
    """The budgets ``1/16,1/4`` of ``--budgets``: shares of the seed's cost, of all that the study limits.

    Raises :class:`UsageError` for what is no share.
    """
    limited = [r for r in RESOURCES if getattr(study.budget, r) is not None]
    changes: list[dict[str, Any]] = [
        dict.fromkeys(limited, share.removesuffix("x") + "x") for share in shares
    ]
    return [replace(study.budget, **change) for change in changes]


def under_budget(prepared: Prepared, study: Study) -> Prepared:
    """Of a study that differs in its budget alone; :class:`UsageError` if that is too small."""
    plan = prepared.plan
    plan = replace(plan, budget=study.budget.absolute(plan.seed_cost()))
    check_budget(plan)
    return replace(prepared, plan=plan, fingerprint={**prepared.fingerprint, **settings(study)})


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
    seed = plan.seed_cost()
    budgets = [budget.absolute(seed) for budget in budgets_of(study, shares)] or [plan.budget]
    largest = {r: max(budget[r] for budget in budgets) for r in plan.budget}
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


def make_probe(
    plan: Plan,
    *,
    inflate: Sequence[str] = (),
    each: float | None = None,
    scale: Sequence[str] = (),
    constant: bool = False,
    again: int = 0,
    rounds: int | None = None,
) -> Probe:
    """A probe of a plan: its own seed network, and changed ones under the same budget in MACs and parameters.

    ``inflate``: one width variable times a factor (``conv1=20``), each in a network of its own; ``each``: the
    factor for every variable in turn; ``scale``: factors for all widths at once; ``constant``: the same width
    everywhere; ``again``: the plain search, with other random numbers; ``rounds``: so many at least.  Raises
    :class:`UsageError` for what is no variable or factor, and if nothing is changed.
    """
    factors = [_inflation(text, plan) for text in inflate]
    if each is not None:
        factors += [(v, _factor(str(each), f"--factor {each:g}")) for v in plan.widths]
    starts = {PLAIN: Start(plan.widths)}
    for layer, factor in factors:
        widths = {**plan.widths, layer: _times(plan.widths[layer], factor)}
        starts[f"{layer} x{factor:g}"] = Start(widths, layer)
    for text in scale:
        factor = _factor(text, f"--scale {text!r:.60}")
        starts[f"all x{factor:g}"] = Start({v: _times(w, factor) for v, w in plan.widths.items()})
    if constant:
        starts["constant"] = Start(dict.fromkeys(plan.widths, max(plan.widths.values())))
    if len(starts) == 1 and not again:
        raise UsageError(
            "nothing to probe: give --inflate LAYER=20, --each, --scale 2, --constant or --again 1"
        )
    if rounds is not None:
        plan = plan.going_on(rounds)
    return Probe(plan, starts, again)


def _inflation(text: str, plan: Plan) -> tuple[str, float]:
    layer, equals, factor = text.rpartition("=")
    if not equals or not layer:
        raise UsageError(f"--inflate {text!r:.60}: give a width variable and a factor, e.g. conv1=20")
    if layer not in plan.widths:
        raise UsageError(
            f"--inflate {text!r:.60}: no width variable {layer!r:.60}; there are {several(plan.widths)}"
        )
    return layer, _factor(factor, f"--inflate {text!r:.60}")


def _factor(text: str, where: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor <= LARGEST_FACTOR:
        raise UsageError(f"{where}: the factor must be a number above 0, at most {LARGEST_FACTOR:,}, e.g. 20")
    return factor


def _times(width: int, factor: float) -> int:
    return max(1, round(width * factor))

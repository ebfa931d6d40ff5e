"""What the command line asks of a study beside a search, as plans: a comparison, pruners, a probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from widthsearch.driver.prepare import budgets_of, check_budget
from widthsearch.errors import UsageError
from widthsearch.plans.arms import ARMS
from widthsearch.plans.comparison import Comparison, least_cost, parse_arm, pruner_of, samples
from widthsearch.plans.plan import Plan
from widthsearch.plans.probe import PLAIN, Probe, Start
from widthsearch.plans.pruners import LEVELS, PRUNERS, PrunerPlan
from widthsearch.study.patterns import several
from widthsearch.study.study import Study

#: The largest factor on a width of a probe's start.
LARGEST_FACTOR = 10**6


def make_comparison(
    study: Study,
    plan: Plan,
    *,
    arms: Sequence[str] | None = None,
    shares: Sequence[str] = (),
    repeats: int = 1,
    cost: float | None = None,
) -> Comparison:
    """A comparison of ``arms`` on a study: under its own budget, or under these shares of its seed's cost.

    ``arms``: default all that work in its training loop; ``cost``: of one search, in uniform trainings.
    Raises :class:`UsageError` for an arm or share that is none, and for a cost that pays for no search.
    """
    if arms is None:
        arms = [arm for arm in ARMS if study.train is None or pruner_of(arm) is None]
    for arm in arms:
        parse_arm(arm)
        if study.train is not None and (pruner := pruner_of(arm)) not in (None, "l0"):
            raise UsageError(
                f"arm {arm!r:.60}: {pruner!r} cannot prune in an own training loop, only 'l0' can"
            )
    if not arms or len(set(arms)) < len(arms):
        raise UsageError(f"arms {','.join(arms)!r}: give each arm once, e.g. uniform,grow-shrink,random")
    seed = plan.seed_cost()
    budgets = [budget.absolute(seed) for budget in budgets_of(study, shares)] or [plan.budget]
    largest = {r: max(budget[r] for budget in budgets) for r in plan.budget}
    for budget in budgets:
        check_budget(replace(plan, budget=budget))
    least = max(least_cost(replace(plan, budget=budget), rounds=1) for budget in budgets)
    if cost is not None and cost < least and "grow-shrink" in arms:
        raise UsageError(
            f"--cost {cost:g}: one round of the search costs {least:.1f} uniform trainings already: give "
            f"--cost {math.ceil(least)} or more"
        )
    sampler = next((arm for arm in arms if samples(arm)), None)
    least = max(least_cost(replace(plan, budget=budget, seeds=1), rounds=0) for budget in budgets)
    if cost is not None and cost < least and sampler is not None:
        raise UsageError(
            f"--cost {cost:g}: its starts and its run-off cost {sampler} {least:.1f} uniform trainings "
            f"already: give --cost {math.ceil(least)} or more"
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

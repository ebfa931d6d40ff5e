"""Before the first trial: check the study once, at the boundary, and write down its plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from widthsearch.errors import UsageError
from widthsearch.maths.cost import RESOURCES, Cost
from widthsearch.plans.plan import Plan
from widthsearch.plans.words import alone_lines, as_typed, not_run_lines
from widthsearch.report.shares import COST_AWARE, side_cost_lines, side_costs
from widthsearch.report.types.common import network_of
from widthsearch.space import WidthSpace
from widthsearch.speed.calibrate import latency_cost
from widthsearch.study.budget import ANY, Budget
from widthsearch.study.data import digests_of, load_data
from widthsearch.study.file import StudyFile
from widthsearch.study.fingerprint import code_of, text_of
from widthsearch.study.patterns import numbers_of, several
from widthsearch.study.study import Data, Study, settings_of
from widthsearch.training.device import device_of
from widthsearch.training.pack import why_alone
from widthsearch.training.targets import check_targets
from widthsearch.training.trial import build_space


@dataclass(frozen=True)
class Prepared:
    """A study that can be searched: its plan, its fingerprint, the would-be variables left out.

    ``modules``: which module makes which variable's units, in the order of execution; ``code``: the text of
    the study file, for the report, empty if it is too long to keep; ``notes``: what a person should hear
    before anything is trained.
    """

    plan: Plan
    fingerprint: dict[str, str]
    frozen: list[dict[str, str | int]]
    modules: tuple[tuple[str, str], ...]
    code: str = ""
    notes: tuple[str, ...] = ()


def prepare(file: StudyFile, before: Plan | None = None) -> Prepared:
    """Run the user's ``model()`` and ``data()`` once and make the plan.

    Raises :class:`UsageError` in one line for anything that would fail later: data that is no data, a model
    that does not run on it, labels outside the classes, nothing to search, a budget too small.  A latency is
    measured only if ``before``, the study's plan so far, has none that fits.
    """
    study = file.study
    data = load_data(study)
    space = build_space(study, data)
    check_targets(space, study, data)
    if not space.widths:
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in space.frozen[:3])
        raise UsageError(
            f"{type(space.model).__name__} has nothing to search: no width variable found"
            + (f" ({reasons})" if reasons else " (it needs at least one hidden layer)")
        )
    alone = why_alone_in(study, space, data)
    plan = replace(make_plan(study, space, before), pack=alone == "")
    uniform, cost_aware = (network_of(plan.cost, widths) for widths in (plan.baseline, plan.cost_aware))
    side = side_cost_lines(side_costs(plan.budget, uniform, cost_aware), COST_AWARE)
    return Prepared(
        plan=plan,
        fingerprint=_fingerprint(file, data),
        frozen=[{"name": f.name, "width": f.width, "reason": f.reason} for f in space.frozen],
        modules=space.makers,
        code=text_of(next(iter(file.files.values()), b"")),
        notes=(
            *not_run_lines(space.idle),
            *space.stale(),
            *_untrained_lines(space, study),
            *_lost_lines(space, study),
            *side,
            *alone_lines(alone),
        ),
    )


def _untrained_lines(space: WidthSpace, study: Study) -> list[str]:
    """Weights that are not trained, and would be random: every network starts afresh."""
    names = [name for name, weight in space.model.named_parameters() if not weight.requires_grad]
    if not names or study.init is not None:
        return []
    return [
        f"not trained, and random, as every training starts afresh: {several(names)} (requires_grad=False); "
        "load their values in Study(init=...), and keep their widths by Study(fix=[...])"
    ]


def _lost_lines(space: WidthSpace, study: Study) -> list[str]:
    """Weights whose initial values no other width defines: a search would start them at noise."""
    if not space.lost or study.init is not None:
        return []
    return [
        f"initial values with a pattern that other widths do not define: {several(space.lost)}; every "
        "training starts there with random numbers of about the same spread: set them in Study(init=...)"
    ]


def why_alone_in(study: Study, space: WidthSpace, data: Data) -> str | None:
    """Why no networks are trained together although the study asks for it; empty if they are.

    ``None`` where it does not ask for it: by default, and with ``auto`` where no training has a GPU.
    """
    on_gpu = study.gpus > 0 or device_of(study.recipe).type == "cuda"
    if study.pack == "never" or (study.pack == "auto" and not on_gpu):
        return None
    if study.train is not None:
        return "an own training loop trains the network that it is given"
    if study.pruner != "l0":
        return f"the pruner {study.pruner} trains one network at a time"
    return why_alone(space, study.recipe, data[0]) or ""


def fingerprint_of(file: StudyFile, before: Mapping[str, str]) -> dict[str, str]:
    """What must not change since ``before``, at launch: settings, code and data, as text by name."""
    return _fingerprint(file, load_data(file.study), before)


def _fingerprint(file: StudyFile, data: Data, before: Mapping[str, str] | None = None) -> dict[str, str]:
    code = code_of(file.files)
    return {**settings_of(file.study), **code, **digests_of(data, before)}


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
    settings = study.settings() | {
        "measure_length": 1.0 if study.train is not None else study.measure_length,
        "step_sizes": tuple(sorted({float(step) for step in study.step_sizes})),
    }
    plan = Plan(
        **settings,
        widths=dict(space.widths),
        cost=cost,
        budget=study.budget.absolute(seed),
        minimum=minimum,
        multiple_of=multiple_of,
        outputs=dict(space.outputs),
        latency=latency,
        precision="own loop" if study.train is not None else study.recipe.precision,
    )
    check_budget(plan, [f.name for f in space.frozen])
    return plan


def _known_latency(before: Plan, shapes: Cost, study: Study) -> tuple[Cost, dict[str, Any]] | None:
    """The latency of an earlier plan of the same study, if the network still has the same layer shapes."""
    cost, latency = before.cost, before.latency
    if latency is None or latency["batch"] != study.budget.batch or latency["threads"] != study.threads:
        return None
    counted = {r: p for r, p in shapes.polynomials.items() if r != "written"}
    now = replace(shapes, polynomials={**counted, "latency": cost.polynomials["latency"]})
    return (now, latency) if now.to_json() == cost.to_json() else None


def check_budget(plan: Plan, left_out: Collection[str] = ()) -> None:
    """:class:`UsageError` if the plan's budget is too small for its minimum widths or for a measure.

    ``left_out``: what keeps its width and is paid for all the same.
    """
    kept = f" (with what keeps its width: {several(left_out, 4)})" if left_out else ""
    if not plan.constraints().allow(smallest := plan.constraints().smallest()):
        least = plan.cost.at(smallest)
        needed = as_typed({r: least[r] for r in plan.budget})
        raise UsageError(
            f"budget {as_typed(plan.budget)} is too small: the minimum widths alone cost {needed}{kept}"
        )
    once = plan.cost.at(plan.widths)
    for v in plan.widths:
        wider = plan.cost.at({**plan.widths, v: 2 * plan.widths[v]})
        if all(r != "latency" and wider[r] == once[r] for r in plan.budget):
            raise UsageError(
                f"budget {as_typed(plan.budget)} does not limit {v}, whose units cost nothing of it: "
                "give macs and params"
            )
    over_wide = plan.constraints(plan.over, minimum=2)
    if not over_wide.allow(over_wide.smallest()):
        raise UsageError(
            f"budget {as_typed(plan.budget)} is too small: {plan.over:g} times that (over) does not even pay "
            f"for an over-wide network with two units per variable{kept}"
        )


def budgets_of(study: Study, shares: Sequence[str]) -> list[Budget]:
    """The budgets ``1/16,1/4`` of ``--budgets``: shares of the seed's cost, of all that the study limits.

    Raises :class:`UsageError` for what is no share.
    """
    limited = [r for r in RESOURCES if getattr(study.budget, r) not in (None, ANY)]
    changes: list[dict[str, Any]] = [
        dict.fromkeys(limited, share.removesuffix("x") + "x") for share in shares
    ]
    return [replace(study.budget, **change) for change in changes]


def under_budget(prepared: Prepared, study: Study) -> Prepared:
    """Of a study that differs in its budget alone; :class:`UsageError` if that is too small."""
    plan = prepared.plan
    plan = replace(plan, budget=study.budget.absolute(plan.seed_cost()))
    check_budget(plan, [str(f["name"]) for f in prepared.frozen])
    return replace(prepared, plan=plan, fingerprint={**prepared.fingerprint, **settings_of(study)})

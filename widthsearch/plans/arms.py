"""The arms of a comparison by name: the width search, and what a user might do instead."""

from __future__ import annotations

from widthsearch.plans.arm import Arm, ArmSearch, Point, Steps, highest_cost, run_off_of
from widthsearch.plans.samplers import SAMPLERS
from widthsearch.plans.search import rounds_of


def uniform(search: ArmSearch) -> Steps:
    """The seed network scaled to the budget: every width in the same proportion."""
    yield Point(0.0, search.plan.baseline)


def constant(search: ArmSearch) -> Steps:
    """The same width everywhere."""
    yield Point(0.0, search.plan.constant)


def cost_aware(search: ArmSearch) -> Steps:
    """What the cost alone suggests, without any training (see :mod:`.cost_aware`)."""
    yield Point(0.0, search.plan.cost_aware)


def equal_ratio(search: ArmSearch) -> Steps:
    """What pruning does: an over-wide network is trained, cut by the same share in every layer, trained on.

    The widths are the uniform ones, but the weights are those of the units that ranked best.
    """
    over_wide = search.plan.over_wide_seed
    yield Point(search.price(over_wide), search.plan.cut_equally(over_wide), over_wide)


def grow_shrink(search: ArmSearch) -> Steps:
    """The width search as ``launch`` runs it, for as many rounds as fit into the cost with the run-off."""
    plan, cost, rounds, scored = search.plan, 0.0, 0, False
    limit = search.limit * (1 + 1e-9) - plan.run_off_trainings * highest_cost(plan)
    for phase in rounds_of(search.history):
        price = sum(search.cost_of(slot) for slot in phase)
        measures = any(slot.kind == "measure" for slot in phase)  # a round may have nothing new to propose
        if measures and phase[0].replica == 0:
            # A round is begun where its proposals will fit; longer ones are tried as long as they do.
            measure = price * plan.replicas / len(phase)
            if cost + measure + plan.proposal_trainings(doublings=0) * highest_cost(plan) > limit:
                break
            if (best := search.history.best(rounds)) is not None:
                yield Point(cost, best.widths)
            rounds += 1
        elif scored and cost + price > limit:  # a longer proposal
            break
        yield search.own(phase)
        cost, scored = cost + price, not measures
    if not scored:  # the measures of a round failed: there is nothing to recommend
        return
    yield from run_off_of(search, search.history, rounds, cost)


def one_shot(search: ArmSearch) -> Steps:
    """The start and the measure of the search's first round, and its largest step, unseen."""
    cost = 0.0
    for phase in rounds_of(search.history):
        if any(slot.round > 0 or (slot.kind == "score" and slot.round == 0) for slot in phase):
            break
        yield search.own(phase)
        cost += sum(search.cost_of(slot) for slot in phase)
    if search.history.prune_ratios(0):
        longest = search.history.relative(0, max(search.plan.step_sizes))
        yield Point(cost, search.plan.at_budget(longest))


def pruned_together(search: ArmSearch) -> Steps:
    """What global pruning says: of one over-wide network, the units of all layers are ranked together.

    By a pruner's scores, or by how much the error rises as their layer is cut down to them (sensitivity).

    The widths that are left at the budget are trained from new weights, as those of other searches are.
    """
    over_wide = search.plan.over_wide_seed
    measure = search.slot("measure", 0, 0, over_wide)
    yield [measure]
    for ratios in search.history.prune_ratios(0):
        kept = {v: round(w * (1 - ratios[v])) for v, w in over_wide.items()}
        yield Point(search.cost_of(measure), search.plan.at_budget(kept))


#: The arms by name.  One that has no search of its own says whose runs it looks at.
ARMS: dict[str, Arm] = {
    "grow-shrink": grow_shrink,
    "uniform": uniform,
    "constant": constant,
    "cost-aware": cost_aware,
    "equal-ratio": equal_ratio,
    "global": pruned_together,
    "sensitivity": pruned_together,  # by its own pruner
    "one-shot": one_shot,
    **SAMPLERS,
}
SHARED = {"one-shot": "grow-shrink"}
#: Those that go by measures, which may be another pruner's.
MEASURED = ("grow-shrink", "global", "one-shot")

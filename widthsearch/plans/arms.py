"""The arms of a comparison: the width search, and what a user might do instead.

Each arm is a generator over one :class:`ArmSearch`.  It yields phases, lists of slots to be trained, and goes
on once all of a phase have ended; and it yields a :class:`Point` whenever it would recommend other widths,
with what its search had cost until then.  An arm sees the runs of its own search alone, so neither the order
in which the driver works on the arms nor the number of workers changes anything.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from widthsearch.maths import rule
from widthsearch.plans.history import History
from widthsearch.plans.plan import Branch, Kind, Plan, Run, Slot
from widthsearch.plans.search import rounds_of, split

#: How far `random`, `tpe` and `gp` look from the uniform widths: by this factor each way (before the result
#: is scaled to the budget).
RANGE = 4.0
#: After which shares of its cost the recommendation of such an arm is looked at.
SHARES = (1 / 4, 1 / 2, 1)

# Optuna's GP takes a fifth longer without the package greenlet, and would say so in the middle of a display.
logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)

Widths = Mapping[str, int]
Factors = tuple[float, ...]  # log(width / uniform width), per variable


@dataclass(frozen=True)
class Point:
    """What an arm would recommend once its search has cost ``cost`` uniform trainings.

    ``over_wide``: the widths that are trained and cut down to ``widths``, for the arm that keeps weights.
    """

    cost: float
    widths: Widths
    over_wide: Widths | None = None


class Phase(NamedTuple):
    """Slots that can be trained now, and the state of each."""

    slots: list[Slot]
    states: list[str]


Steps = Generator[list[Slot] | Point, None, None]
Arm = Callable[["ArmSearch"], Steps]
Content = tuple[tuple[Any, ...], ...]  # of the runs that an arm goes by


class ArmSearch:
    """One arm's search: its plan (one budget, a seed of its own), what it may cost, and its runs so far.

    It remembers the widths of its candidates, and how far the same runs had brought it: a comparison has
    thousands of trainings, and is asked what comes next before each of them.
    """

    def __init__(self, branch: Branch, plan: Plan, limit: float) -> None:
        self.branch, self.plan, self.limit = branch, plan, limit
        self.history = History(plan, ())
        self._candidates: dict[Factors, dict[str, int]] = {}
        self._content: Content | None = None
        self._walked: tuple[Phase | None, list[Point]] = (None, [])

    def walk(self, arm: Arm, runs: Sequence[Run]) -> tuple[Phase | None, list[Point]]:
        """How far the arm has come: the phase that is not over yet, if any, and its points so far."""
        content = tuple((r.key, r.state, r.value, *(r.prune_ratio or {}).values()) for r in runs)
        if content != self._content:
            self.history = History(self.plan, runs)
            self._walked, self._content = self._walk(arm), content
        return self._walked

    def _walk(self, arm: Arm) -> tuple[Phase | None, list[Point]]:
        points: list[Point] = []
        for step in arm(self):
            if isinstance(step, Point):
                points.append(step)
                continue
            states: list[str] = [self.history.state(slot) for slot in step]
            if "open" in states or "running" in states:
                return Phase(step, states), points
        return None, points

    def split(self, arm: Arm) -> tuple[list[Slot], list[Slot]]:
        """The slots by which the arm has decided something, and the others that it has come to."""
        return split((step for step in arm(self) if isinstance(step, list)), self.history.state)

    def price(self, widths: Widths) -> float:
        """What a training of the recipe's length costs, in uniform trainings."""
        return self.plan.cost.at(widths)["macs"] / self.plan.cost.at(self.plan.baseline)["macs"]

    def cost_of(self, slot: Slot) -> float:
        """What a slot's training costs, in uniform trainings."""
        return self.price(slot.widths) * (self.plan.measure_length if slot.kind == "measure" else 1.0)

    def slot(self, kind: Kind, round_: int, replica: int, widths: Widths) -> Slot:
        """A slot of this search."""
        return Slot(kind, round_, replica, widths, branch=self.branch)

    def own(self, slots: list[Slot]) -> list[Slot]:
        """Slots of a single search's history as slots of this search."""
        return [replace(slot, branch=self.branch) for slot in slots]

    def loss(self, slot: Slot) -> float | None:
        """The validation loss that a slot's training ended with; ``None`` if it was lost."""
        done = [r for r in self.history.runs.get(slot.key, []) if r.state == "complete"]
        return done[0].value if done else None

    def asked(self, i: int) -> Factors:
        """What the sampler asked for as its i-th candidate; nothing if that was not trained yet."""
        runs = self.history.runs.get(("score", i, 0, 0.0), [])
        return runs[0].asked if runs else ()

    def at_budget(self, factors: Factors) -> dict[str, int]:
        """The uniform widths times ``exp(factors)``, scaled to the budget."""
        if factors not in self._candidates:
            self._candidates[factors] = at_budget(self.plan, factors)
        return self._candidates[factors]

    def random_seed(self, i: int) -> int:
        """A seed for the arm's i-th candidate."""
        text = f"{self.plan.seed} {self.branch.arm} {i}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def at_budget(plan: Plan, factors: Factors) -> dict[str, int]:
    """The seed network's widths times ``exp(factors)``, scaled to the budget, whatever the factors."""
    relative = {v: w * math.exp(f) for (v, w), f in zip(plan.widths.items(), factors, strict=True)}
    return plan.at_budget(relative)


def highest_cost(plan: Plan, over: float = 1.0) -> float:
    """What a training at ``over`` times the budget may cost at most, in uniform trainings.

    A budget of MACs bounds it.  Without one it depends on the widths: the dearer of the two starts.
    """
    constraints = plan.constraints(over)
    if "macs" in constraints.budget:
        macs = constraints.budget["macs"]
    else:
        starts = [plan.widths, plan.cost_aware] if plan.cost_aware_start else [plan.widths]
        macs = max(plan.cost.at(rule.scale_to_budget(start, constraints))["macs"] for start in starts)
    return macs / plan.cost.at(plan.baseline)["macs"]


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
        measures = phase[0].kind == "measure"
        if measures and phase[0].replica == 0:
            # A round is begun where its proposals will fit; longer ones are tried as long as they do.
            measure = price * plan.replicas / len(phase)
            if cost + measure + plan.seeds * len(plan.step_sizes) * highest_cost(plan) > limit:
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
    if run_off := search.history.run_off(rounds):
        yield search.own(run_off)
        cost += sum(search.cost_of(slot) for slot in run_off)
    if (best := search.history.recommended(rounds)) is not None:
        yield Point(cost, best.widths)


def one_shot(search: ArmSearch) -> Steps:
    """The start and the measure of the search's first round, and its largest step, unseen."""
    cost = 0.0
    for phase in rounds_of(search.history):
        if phase[0].round > 0 or (phase[0].kind == "score" and phase[0].round == 0):
            break
        yield search.own(phase)
        cost += sum(search.cost_of(slot) for slot in phase)
    if search.history.prune_ratios(0):
        proposal = search.history.stages(0)[0][-1:] or [search.history.baseline]
        yield Point(cost, proposal[0].widths)


def random(search: ArmSearch) -> Steps:
    """The best of random widths at the budget, one training each; the uniform ones are the first of them."""
    tried: list[tuple[float, Slot]] = []
    cost = 0.0
    for i in count():
        slot = search.slot("score", i, 0, search.at_budget(_random_factors(search, i)))
        cost += search.price(slot.widths)
        if cost > search.limit * (1 + 1e-9):
            break
        tried.append((cost, slot))
    yield [slot for _, slot in tried]
    yield from _best_of(search, tried)


def _random_factors(search: ArmSearch, i: int) -> Factors:
    spread = math.log(RANGE) if i else 0.0
    generator = np.random.default_rng(search.random_seed(i))
    return tuple(generator.uniform(-spread, spread, len(search.plan.widths)).tolist())


def sampled(sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Arm:
    """The best of the widths that a sampler of Optuna's (made from a seed) asks for, one training each.

    It looks for log factors on the uniform widths, which are then scaled to the budget; the uniform widths
    are its first trial.  Trial i depends on those before it alone: the sampler is made anew each time.  What
    it asked for stands in the trial, since asking a Gaussian process a second time takes seconds.
    """

    def arm(search: ArmSearch) -> Steps:
        tried: list[tuple[float, Slot]] = []
        asked: list[tuple[Factors, float | None]] = []
        cost = 0.0
        for i in count():
            factors = search.asked(i) or _ask(sampler, search, asked)
            slot = replace(search.slot("score", i, 0, search.at_budget(factors)), asked=factors)
            cost += search.price(slot.widths)
            if cost > search.limit * (1 + 1e-9):
                break
            tried.append((cost, slot))
            yield [slot]
            asked.append((factors, search.loss(slot)))
        yield from _best_of(search, tried)

    return arm


def _ask(
    sampler: Callable[[int], optuna.samplers.BaseSampler],
    search: ArmSearch,
    asked: Sequence[tuple[Factors, float | None]],
) -> Factors:
    variables = list(search.plan.widths)
    if not asked:
        return (0.0,) * len(variables)
    spread = math.log(RANGE)
    space: dict[str, BaseDistribution] = {v: FloatDistribution(-spread, spread) for v in variables}
    study = optuna.create_study(sampler=sampler(search.random_seed(len(asked))))
    for factors, loss in asked:
        if loss is not None:
            params = dict(zip(variables, factors, strict=True))
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=loss))
    with _quiet_optuna():
        found = study.ask(fixed_distributions=space).params
    return tuple(found[v] for v in variables)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Without the warnings of a Gaussian process that is hard to fit: they would tear the display."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _best_of(search: ArmSearch, tried: list[tuple[float, Slot]]) -> Steps:
    """The best candidate after each of the :data:`SHARES` of the cost."""
    for share in SHARES:
        known = [
            (loss, cost, slot)
            for cost, slot in tried
            if cost <= share * search.limit * (1 + 1e-9) and (loss := search.loss(slot)) is not None
        ]
        if known:
            best = min(known, key=lambda entry: entry[:2])
            yield Point(max(cost for _, cost, _ in known), best[2].widths)


#: The arms by name.  One that has no search of its own says whose runs it looks at.
ARMS: dict[str, Arm] = {
    "grow-shrink": grow_shrink,
    "uniform": uniform,
    "constant": constant,
    "cost-aware": cost_aware,
    "equal-ratio": equal_ratio,
    "one-shot": one_shot,
    "random": random,
    "tpe": sampled(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "gp": sampled(lambda seed: optuna.samplers.GPSampler(seed=seed)),
}
SHARED = {"one-shot": "grow-shrink"}
#: Those that go by measures, which may be another pruner's.
MEASURED = ("grow-shrink", "one-shot")

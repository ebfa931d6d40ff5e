"""The arms that try one network after the other: random ones, and what Optuna's samplers ask for.

They have what our search has: its two starts come first, and the best few of what was tried, one training
each, have its run-off, within the same cost.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, count, takewhile

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from widthsearch.plans.arm import Arm, ArmSearch, Factors, Point, Steps, at_budget, run_off_of
from widthsearch.plans.history import Candidate, History, Score
from widthsearch.plans.plan import Slot

#: How far `random`, `tpe` and `gp` look from the uniform widths: by this factor each way (before the result
#: is scaled to the budget), or as far as the cost-aware widths are, if that is farther.
RANGE = 4.0
#: After which shares of its cost the best so far of such an arm is looked at, beside its recommendation.
SHARES = (1 / 4, 1 / 2)

# Optuna's GP takes a fifth longer without the package greenlet, and would say so in the middle of a display.
logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)


class Tried(History):
    """The networks that a sampler tries, one training each: the starts of our search, then one per round.

    So they have the run-off of our search.  What that may cost is kept back.
    """

    def __init__(self, search: ArmSearch) -> None:
        super().__init__(search.plan.single, (run for of in search.history.runs.values() for run in of))
        self.search = search
        self.cost = 0.0
        self._dearest = 0.0
        self._slots: list[tuple[float, Slot]] = []  # with what all had cost by then
        self._rounds: list[list[Candidate]] = []  # none where the same widths were tried before
        self._seen = {frozenset(start.widths.items()) for start in self.starts}

    def first(self) -> list[Slot]:
        """Trainings of the starts."""
        return self.search.own([start.slot(0) for start in self.starts])

    def take(self, slot: Slot) -> bool:
        """Whether it and the run-off can be paid for; then it is one of those that are tried."""
        price = self.search.price(slot.widths)
        dearest = max(self._dearest, price)
        kept_back = self.plan.run_off_trainings * dearest
        if self.cost + price + kept_back > self.search.limit * (1 + 1e-9):
            return False
        self.cost, self._dearest = self.cost + price, dearest
        self._slots.append((self.cost, slot))
        if slot.round >= 0:
            widths = frozenset(slot.widths.items())
            new = widths not in self._seen
            self._rounds.append([Candidate(slot.round, slot.step, slot.widths)] if new else [])
            self._seen.add(widths)
        return True

    def scored(self, round_: int) -> Iterator[tuple[Score, Candidate]]:
        """The network of a round, if its training came to its end; of round -1 the starts."""
        for candidate in self.starts if round_ < 0 else self._rounds[round_]:
            if (score := self.score(candidate)) is not None:
                yield score, candidate

    def recommendations(self) -> Steps:
        """The best after each of the :data:`SHARES` of the cost; then the run-off and the best of that."""
        for share in SHARES:
            known = [
                (loss, cost, slot)
                for cost, slot in self._slots
                if cost <= share * self.search.limit * (1 + 1e-9)
                and (loss := self.search.loss(slot)) is not None
            ]
            if known:
                best = min(known, key=lambda entry: entry[:2])
                yield Point(max(cost for _, cost, _ in known), best[2].widths)
        yield from run_off_of(self.search, self, len(self._rounds), self.cost)


def random(search: ArmSearch) -> Steps:
    """The best of the starts and random widths at the budget, one training each, and a run-off."""
    tried, spread = Tried(search), _spread(search)
    factors = (_random_factors(search, i, spread) for i in count())
    drawn = (search.slot("score", i, 0, at_budget(search.plan, f)) for i, f in enumerate(factors))
    yield list(takewhile(tried.take, chain(tried.first(), drawn)))
    yield from tried.recommendations()


def _random_factors(search: ArmSearch, i: int, spread: float) -> Factors:
    generator = np.random.default_rng(search.random_seed(i))
    return tuple(generator.uniform(-spread, spread, len(search.plan.widths)).tolist())


def _factors_of_starts(search: ArmSearch) -> list[Factors]:
    """What a sampler would have to ask for to get the starts: as near to 0 as scaling allows."""
    found: list[Factors] = []
    for start in search.history.starts:
        relative = search.history.relative(start.round, start.step)
        logs = [math.log(relative[v] / w) for v, w in search.plan.widths.items()]
        middle = (max(logs) + min(logs)) / 2
        found.append(tuple(log - middle for log in logs))
    return found


def _spread(search: ArmSearch) -> float:
    """How far each factor may be from 0."""
    return max(math.log(RANGE), *(abs(f) for factors in _factors_of_starts(search) for f in factors))


def sampled(sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Arm:
    """The best of the starts and of what a sampler of Optuna's (made from a seed) asks for, and a run-off.

    It looks for log factors on the uniform widths, which are then scaled to the budget; the starts are its
    first trials.  Trial i depends on those before it alone: the sampler is made anew each time.  What it
    asked for stands in the trial, since asking a Gaussian process a second time takes seconds.
    """

    def arm(search: ArmSearch) -> Steps:
        tried = Tried(search)
        starts = list(takewhile(tried.take, tried.first()))
        yield starts
        asked = [(f, search.loss(s)) for f, s in zip(_factors_of_starts(search), starts, strict=False)]
        for i in count():
            factors = search.asked(i) or _ask(sampler, search, asked)
            slot = replace(search.slot("score", i, 0, at_budget(search.plan, factors)), asked=factors)
            if not tried.take(slot):
                break
            yield [slot]
            asked.append((factors, search.loss(slot)))
        yield from tried.recommendations()

    return arm


def _ask(
    sampler: Callable[[int], optuna.samplers.BaseSampler],
    search: ArmSearch,
    asked: Sequence[tuple[Factors, float | None]],
) -> Factors:
    variables, spread = list(search.plan.widths), _spread(search)
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


tpe = sampled(lambda seed: optuna.samplers.TPESampler(seed=seed))
gp = sampled(lambda seed: optuna.samplers.GPSampler(seed=seed))
#: By name.
SAMPLERS: dict[str, Arm] = {"random": random, "tpe": tpe, "gp": gp}

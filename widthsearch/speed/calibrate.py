"""A latency budget's model: which networks of a study are measured for it, and the fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from widthsearch.errors import UsageError
from widthsearch.maths.cost import Cost
from widthsearch.maths.latency import Fitted, fit, relative_errors
from widthsearch.space import WidthSpace
from widthsearch.speed.bench import batch_of, hardware, time_networks
from widthsearch.study.study import Study
from widthsearch.training.device import device_of

FITTED, HELD_OUT = 40, 12  # networks of random widths
RANGE = 2.0  # factor by which all widths together, and each on its own, differ from the budget's, each way
LARGEST = 100.0  # budgets of more times the seed's latency are refused

Array = NDArray[np.float64]


def latency_cost(
    study: Study,
    space: WidthSpace,
    *,
    minimum: Mapping[str, int],
    multiple_of: Mapping[str, int],
) -> tuple[Cost, Fitted]:
    """The cost of a study's networks with a latency, measured now, on this machine.

    Networks of log-uniform widths around the uniform network that takes as long as the budget allows, the
    seed network among them; a network's latency is that of its fastest block, since what disturbs a
    measurement only adds to it.  Raises :class:`UsageError` for a budget out of reach.
    """
    device = device_of(study.recipe)
    inputs = batch_of(space.example, study.budget.batch, device)
    # Of one thread, the time that it computes: others who use its core do not count.
    alone = device.type == "cpu" and study.threads == 1
    clock = time.thread_time if alone else time.perf_counter

    def seconds(widths: Array, passes: int) -> Array:
        candidates = (dict(zip(space.widths, map(int, own), strict=True)) for own in widths)
        nets = dict(enumerate(map(space.resize, candidates)))
        blocks = time_networks(nets, inputs, threads=study.threads, passes=passes, clock=clock)
        return np.array([own.min() for own in blocks.values()])

    own = np.array(list(space.widths.values()), dtype=np.float64)
    step = np.array([multiple_of[v] for v in space.widths])
    least = np.array([minimum[v] for v in space.widths])

    def whole(widths: Array) -> Array:
        rounded: Array = np.maximum(np.round(widths / step), np.ceil(least / step)) * step
        return rounded

    def uniform(factor: float) -> float:
        return float(seconds(whole(factor * own[None]), passes=10)[0])

    factor = _factor(study, uniform, floor=float((least / own).min()))
    random = np.random.default_rng(study.seed)
    spread = math.log(RANGE)
    together = random.uniform(-spread, spread, (FITTED + HELD_OUT, 1))
    each = random.uniform(-spread, spread, (FITTED + HELD_OUT, len(own)))
    widths = np.concatenate([own[None], whole(factor * own * np.exp(together + each))])
    measured = seconds(widths, passes=60)
    cost = fit(space.layer_shapes(), widths[:-HELD_OUT], measured[:-HELD_OUT])
    errors = relative_errors(cost, widths[-HELD_OUT:], measured[-HELD_OUT:])
    facts = Fitted(
        batch=study.budget.batch,
        threads=study.threads,
        device=device.type,
        machine=hardware(device),
        fitted=FITTED + 1,
        held_out=HELD_OUT,
        median_error=float(np.median(errors)),
        largest_error=float(errors.max()),
        seed=float(measured[0]),
    )
    return cost, facts


def _factor(study: Study, uniform: Callable[[float], float], floor: float) -> float:
    """The factor on all widths of the seed network at which its measured latency is the budget's.

    ``uniform(factor)`` measures; factors below ``floor`` change no width any more.
    """
    seed = uniform(1.0)
    limit = study.budget.absolute({"macs": 1, "params": 1, "latency": seed})["latency"]
    if limit > LARGEST * seed:
        raise UsageError(
            f"budget latency={study.budget.latency!r}: over {LARGEST:g} times what the seed network takes "
            f"({1e3 * seed:.3g} ms); give a budget nearer to that"
        )
    low = high = 1.0
    if seed > limit:
        while (least := uniform(low)) > limit:
            if low <= floor:
                raise UsageError(
                    f"budget latency={study.budget.latency!r} is too small: the minimum widths alone take "
                    f"{1e3 * least:.3g} ms (batch {study.budget.batch}), the seed network {1e3 * seed:.3g} ms"
                )
            low, high = low / 2, low
    else:
        while high < LARGEST and uniform(high) <= limit:
            low, high = high, 2 * high
    for _ in range(4):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if uniform(middle) <= limit else (low, middle)
    return low

"""Every kind of study in memory: whatever its drivers and workers die of, it comes to the undisturbed end.

That real drivers, workers and daemons leave behind what is pretended here is shown by test_faults.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_comparison
import test_plan
import test_probe
import test_run_off

from widthsearch.driver.questions import make_probe
from widthsearch.plans.comparison import Comparison
from widthsearch.plans.kinds import read_plan
from widthsearch.plans.plan import WORKER_DEATHS, Run, Slot
from widthsearch.plans.pruners import PRUNERS, PrunerPlan
from widthsearch.plans.search import SearchPlan

PLAN = replace(test_plan.PLAN, rounds=2)
BUDGET = ({"macs": 550},)
ARMS = ("grow-shrink", "equal-ratio", "one-shot", "tpe")


def swept(slot: Slot) -> Run:
    return Run(slot.key, "complete", slot.widths, value=1.0, branch=slot.branch)


Train = Callable[[Slot], Run]
KINDS: dict[str, tuple[Any, Train]] = {
    "search": (SearchPlan(PLAN), test_plan.pretend),
    "search, longer steps": (
        SearchPlan(replace(test_plan.DOUBLING, cost_aware_start=True)),
        test_plan.pretend,
    ),
    "search with a run-off": (SearchPlan(test_run_off.RUN_OFF), test_run_off.lucky),
    "comparison": (
        Comparison(PLAN, BUDGET, ARMS, repeats=2, cost=test_comparison.LIMIT),
        test_comparison.train,
    ),
    "probe": (make_probe(PLAN, each=20, again=1), test_probe.train),
    "pruners": (PrunerPlan(replace(PLAN, seeds=6), PRUNERS), swept),
}


def outcome(
    data: Any, train: Train, workers: int, faults: random.Random | None
) -> tuple[Any, Any, list[Run]]:
    """How the study ends, what was trained, and all runs; with a fault in every third event or so, if any."""
    runs: list[Run] = []
    running: list[Slot] = []
    order = faults or random.Random(0)
    for _ in range(5000):
        live = [Run(s.key, "running", s.widths, branch=s.branch) for s in running]
        step = read_plan(data).next_step(runs + live)
        if isinstance(step, Slot) and len(running) < workers:
            assert step not in running
            running.append(step)
            continue
        if not running:
            done = [
                (r.branch, r.key, tuple(r.widths.items()), r.value) for r in runs if r.state == "complete"
            ]
            assert len(done) == len(set(done))
            return step, set(done), runs
        luck = faults.random() if faults else 1.0
        if luck < 0.15:  # the driver is killed, and all that it had started with it
            runs += [Run(s.key, "interrupted", s.widths, branch=s.branch) for s in running]
            running = []
            continue
        slot = running.pop(order.randrange(len(running)))
        deaths = sum(
            (r.branch, r.key, r.widths, r.state) == (slot.branch, slot.key, slot.widths, "died") for r in runs
        )
        if luck < 0.3 and deaths < WORKER_DEATHS:
            runs.append(Run(slot.key, "died", slot.widths, error="it died", branch=slot.branch))
        else:
            runs.append(train(slot))
    raise AssertionError("the study does not end")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_dies_the_end_is_the_same(kind: str, seed: int) -> None:
    plan, train = KINDS[kind]
    data = json.loads(json.dumps(plan.to_json()))
    end, trained, _ = outcome(data, train, 1, None)
    again = outcome(data, train, 1 + seed, random.Random(seed))
    assert (again[0], again[1]) == (end, trained)
    states = {run.state for run in again[2]}
    assert states == {"complete", "interrupted", "died"}

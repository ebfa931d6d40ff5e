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
from widthsearch.plans.plan import WORKER_DEATHS, Run, Slot, StudyPlan, identity
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
        Comparison(replace(PLAN, final_seeds=1), BUDGET, ARMS, repeats=2, cost=test_comparison.LIMIT),
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
    order, plan = faults or random.Random(0), read_plan(data)
    for _ in range(5000):
        live = [Run(s.key, "running", s.widths, branch=s.branch) for s in running]
        step = plan.next_step(runs + live)
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
            running, plan = [], read_plan(data)
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


def resumed(plan: StudyPlan, runs: list[Run]) -> list[Run]:
    """The runs as they count after `resume`: what was given up is open again where nothing was decided by it."""
    undecided = {identity(slot) for slot in plan.undecided(runs)}
    return [
        replace(run, state="interrupted")
        if run.state in ("failed", "died") and identity(run) in undecided
        else run
        for run in runs
    ]


@pytest.mark.parametrize(
    ("kind", "state"), [(kind, "failed") for kind in KINDS] + [("search", "died"), ("pruners", "died")]
)
def test_whenever_everything_begins_to_fail_resume_goes_on_as_if_it_had_not(kind: str, state: Any) -> None:
    """A full GPU, a disk that is not there: all trainings fail until the study ends, or its user stops it."""
    plan, train = KINDS[kind]
    if kind == "comparison":  # all of its arms take minutes
        plan = replace(plan, arms=("grow-shrink", "one-shot"), repeats=1)
    end, trained, _ = outcome(json.loads(json.dumps(plan.to_json())), train, 1, None)
    every = max(1, len(trained) // 4)
    for begins in range(every, len(trained), every):
        runs: list[Run] = []
        for stops_after in (10**6, 7, 0):  # it fails three times, the second time for some trainings alone
            broken = 0
            while isinstance(step := plan.next_step(runs), Slot):
                if stops_after and sum(run.state == "complete" for run in runs) >= begins:
                    broken += 1
                    runs.append(Run(step.key, state, step.widths, error="no room", branch=step.branch))
                    if broken > stops_after:
                        break
                else:
                    runs.append(train(step))
            runs = resumed(plan, runs) if stops_after else runs
        done = [(r.branch, r.key, tuple(r.widths.items()), r.value) for r in runs if r.state == "complete"]
        assert len(done) == len(set(done))
        assert (step, set(done)) == (end, trained)


def test_what_was_decided_without_a_lost_training_stays_decided() -> None:
    """A measure and a fresh seed fail for ever: after the end the seed alone is tried again."""
    plan, runs = SearchPlan(PLAN), []
    gone = (("measure", 0, 1, 0.0), ("baseline", -1, 3, 0.0))
    while isinstance(step := plan.next_step(runs), Slot):
        broken = Run(step.key, "failed", step.widths, error="no room")
        runs.append(broken if step.key in gone else test_plan.pretend(step))
    step = plan.next_step(resumed(plan, runs))
    assert isinstance(step, Slot) and step.key == gone[1]


@pytest.mark.sample(7)
@pytest.mark.parametrize(
    ("kind", "seed"),
    [  # a comparison takes minutes: once here, the others at night
        pytest.param(kind, seed, marks=pytest.mark.nightly if kind == "comparison" and seed else ())
        for kind in KINDS
        for seed in range(3)
    ],
)
def test_whatever_dies_the_end_is_the_same(kind: str, seed: int) -> None:
    plan, train = KINDS[kind]
    data = json.loads(json.dumps(plan.to_json()))
    end, trained, _ = outcome(data, train, 1, None)
    again = outcome(data, train, 1 + seed, random.Random(3 + seed))
    assert (again[0], again[1]) == (end, trained)
    states = {run.state for run in again[2]}
    assert states == {"complete", "interrupted", "died"}

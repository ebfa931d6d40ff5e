"""A race: hopeless networks leave, good ones are not thrown out more often than the test says."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from test_plan import PLAN, pretend, simulate

from widthsearch.errors import UsageError
from widthsearch.maths.race import LEVEL, differences, hopeless
from widthsearch.plans.history import AGREED, History
from widthsearch.plans.plan import Done, Run, Slot
from widthsearch.plans.settings import EFFORTS, settings_of_effort


def test_differences_are_paired_by_seed() -> None:
    assert differences({0: 1.0, 2: 3.0, 5: 9.0}, {2: 1.0, 0: 0.5, 1: 7.0}) == [0.5, 2.0]


def test_one_network_against_the_leader_is_students_test() -> None:
    noise = np.random.default_rng(0)
    for shift in np.linspace(0, 3, 30):
        values = noise.normal(shift, 1, 5).tolist()
        p = stats.ttest_1samp(values, 0, alternative="greater").pvalue
        assert hopeless([values, []]) == [p < LEVEL, False]


def test_the_variance_of_all_tells_after_the_first_seed() -> None:
    quiet = [[0.0, 0.1, -0.1, 0.05], [0.1, 0.0, 0.1, 0.02]]
    assert hopeless([[2.0], [0.05], *quiet]) == [True, False, False, False]
    assert hopeless([[2.0], [0.05]]) == [False, False]  # nothing is known of the noise
    wild = [[0.0, 5.0, -5.0, 0.05]]
    assert hopeless([[2.0], *wild])[0] is False


def test_a_network_as_good_as_the_leader_is_thrown_out_as_seldom_as_the_level_says() -> None:
    noise, out, n = np.random.default_rng(1), 0, 4000
    for _ in range(n):
        own, others = noise.normal(0, 1, 3), noise.normal(0, 1, (2, 3))
        out += hopeless([own.tolist(), *others.tolist()])[0]
    assert out / n == pytest.approx(LEVEL, abs=4 * (LEVEL * (1 - LEVEL) / n) ** 0.5)


PATIENT = replace(PLAN, seeds=6, final_seeds=6, replicas=6, step_sizes=(0.2, 0.4, 0.8), cost_aware_start=True)


def noisy(slot: Slot, amount: float) -> Run:
    """The same noise for all networks of a seed, and some of each network's own."""
    run = pretend(slot)
    if slot.kind == "measure":
        return run
    shared, own = random.Random(slot.replica).gauss(0, 1), random.Random(repr(slot)).gauss(0, amount)
    assert run.value is not None
    return replace(run, value=run.value + shared + own)


def trainings(asked: list[Slot], plan: object = PATIENT) -> list[Slot]:
    return [s for s in asked if s.kind != "measure" and s.replica not in PATIENT.fresh]


@pytest.mark.parametrize("amount", [0.01, 0.3])
def test_what_leaves_is_not_trained_again_and_the_best_is_trained_to_the_end(amount: float) -> None:
    end, asked, finished = simulate(PATIENT, run=lambda slot: noisy(slot, amount))
    assert isinstance(end, Done)
    history = History(PATIENT, finished)
    for c in (*history.starts, *(c for r in range(4) if history.measured(r) for c in history.candidates(r))):
        seeds = sorted(s.replica for s in asked if s.key[:2] == c.slot(0).key[:2] and s.step == c.step)
        assert seeds[: PATIENT.seeds] == list(range(min(len(seeds), PATIENT.seeds)))  # none is left out
    best = history.recommended(PATIENT.rounds)
    assert best is not None and history.finished(best)
    full = sum(len(history.candidates(r)) for r in range(4) if history.measured(r)) * PATIENT.seeds
    assert len([s for s in trainings(asked) if s.round >= 0]) < full + 4 * PATIENT.final_seeds


def test_the_less_noise_the_fewer_trainings() -> None:
    quiet, loud = (len(trainings(simulate(PATIENT, run=lambda s, a=a: noisy(s, a))[1])) for a in (0.01, 2.0))
    assert quiet < loud


@pytest.mark.parametrize("workers", [2, 7])
def test_neither_workers_nor_the_order_in_which_they_end_change_a_race(workers: int) -> None:
    def run(slot: Slot) -> Run:
        return noisy(slot, 0.3)

    one = simulate(PATIENT, run=run)
    for seed in range(3):
        many = simulate(PATIENT, workers=workers, run=run, order=random.Random(seed))
        assert many[0] == one[0]
        assert [s.key for s in many[1]] == [s.key for s in one[1]]


def test_what_is_known_later_changes_no_earlier_race() -> None:
    """The run-off trains networks on more seeds; looked at again, every race has the end that it had."""
    _, asked, finished = simulate(PATIENT, run=lambda slot: noisy(slot, 0.3))
    for k in range(0, len(finished), 5):
        before, after = History(PATIENT, finished[:k]), History(PATIENT, finished)
        if before.begun:
            assert before.left_of(before.start()) == after.left_of(after.start())


def test_a_measure_stops_once_its_replicas_agree() -> None:
    def run(slot: Slot, noise: float) -> Run:
        made = pretend(slot)
        if slot.kind != "measure":
            return made
        lean = 0.2 + noise * (-1) ** slot.replica
        return replace(made, prune_ratio={"a": 0.5 - lean, "b": 0.5 + lean})

    for noise, replicas in ((0.001, 2), (0.2, 6)):
        _, asked, finished = simulate(replace(PATIENT, rounds=1), run=lambda s, n=noise: run(s, n))
        assert len([s for s in asked if s.kind == "measure"]) == replicas
        assert History(PATIENT, finished).measured(0)
    assert 0 < AGREED < 1


def test_a_quick_search_is_one_measure_and_one_proposal() -> None:
    quick = replace(PLAN, cost_aware_start=True, widths={"a": 60, "b": 20}, **settings_of_effort("quick"))
    _, asked, _ = simulate(quick)
    kinds = [s.kind for s in asked if s.replica not in quick.fresh]
    assert sorted(kinds) == ["baseline", "measure", "score", "score"]
    assert sum(quick.expected().values()) == len(asked)
    for name in EFFORTS:
        replace(PLAN, **settings_of_effort(name))
    with pytest.raises(UsageError, match="quick, normal, thorough"):
        settings_of_effort("much")

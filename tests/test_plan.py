"""The schedule: what comes next is a function of the trials alone, whoever asks and however they were run."""

import random
from dataclasses import replace

import numpy as np
import pytest

from widthsearch.errors import UsageError
from widthsearch.maths.cost import Cost, Polynomial
from widthsearch.plans.history import History
from widthsearch.plans.plan import WORKER_DEATHS, Done, Failed, Plan, Run, Slot, Wait
from widthsearch.plans.search import SearchPlan, next_step
from widthsearch.plans.settings import EFFORTS, settings_of_effort

# A chain 10 -> a -> b -> 5 without biases: forms 1, 10, a, b, 5 and three products.
FORMS = np.array([[0, 0], [0, 0], [1, 0], [0, 1], [0, 0]], dtype=float)
CONSTANTS = np.array([1, 10, 0, 0, 5], dtype=float)
CHAIN = Polynomial(np.ones(3), np.array([[1, 2], [2, 3], [3, 4]]))
COST = Cost(("a", "b"), FORMS, CONSTANTS, {"macs": CHAIN, "params": CHAIN})
PLAN = Plan(
    widths={"a": 40, "b": 40},
    cost=COST,
    budget={"macs": 550},
    minimum={"a": 1, "b": 1},
    multiple_of={"a": 1, "b": 1},
    pressure="neurons",
    over=4.0,
    rounds=4,
    replicas=3,
    seeds=2,
    report_seeds=3,
    patience=2,
    step_sizes=(0.25, 0.5),
    tolerance=0.02,
    retries=1,
    seed=7,
    doublings=0,
    final_seeds=0,
    measure_length=1.0,
    cost_aware_start=False,
)


def pretend(slot, need=(30.0, 6.0)):
    """A deterministic training: layer a needs five times the neurons of layer b."""
    rng = random.Random(str(slot.key))
    w = slot.widths
    if slot.kind == "measure":
        share = COST(w)["macs"] / (4 * 550)
        wanted = {v: n * (1 + rng.gauss(0, 0.05)) * share for v, n in zip(w, need, strict=True)}
        ratio = {v: min(0.95, max(0.05, 1 - wanted[v] / w[v])) for v in w}
        return Run(slot.key, "complete", w, value=3.0, prune_ratio=ratio)
    loss = sum(abs(np.log(w[v] / n)) for v, n in zip(w, need, strict=True)) + rng.gauss(0, 0.01)
    return Run(slot.key, "complete", w, value=float(loss))


def simulate(plan=PLAN, workers=1, run=pretend, order=None, ask=next_step, most=1000):
    """Run a whole search with ``workers`` pretended workers; ``order`` picks which of them ends next."""
    finished, running, asked = [], [], []
    for _ in range(most):
        live = [Run(s.key, "running", s.widths, branch=s.branch) for s in running]
        step = ask(plan, finished + live)
        if isinstance(step, Slot) and len(running) < workers:
            assert step not in running
            running.append(step)
            asked.append(step)
        elif running:
            slot = running.pop(order.randrange(len(running)) if order else 0)
            finished.append(run(slot))
        else:
            return step, asked, finished
    raise AssertionError("the search does not end")


def test_a_search_goes_through_all_phases_and_finds_the_layer_that_needs_more():
    step, asked, finished = simulate()
    assert isinstance(step, Done)
    best = History(PLAN, finished).best(PLAN.rounds)
    assert (best.round, best.step) == (step.round, step.step)
    widths = best.widths
    assert widths["a"] > 2 * widths["b"]
    assert COST(widths)["macs"] <= 550
    kinds = [s.kind for s in asked]
    # Two measures agree; the start has its other seed with the proposal that is ahead of it.
    assert kinds[:7] == ["baseline", "measure", "measure", "score", "score", "baseline", "score"]
    assert [(s.replica, s.step) for s in asked[3:7]] == [(0, 0.25), (0, 0.5), (1, 0.0), (1, 0.5)]
    assert kinds[-6:] == ["report", "baseline"] * 3
    assert {s.replica for s in asked if s.kind == "report"} == {2, 3, 4}  # fresh seeds


def test_the_search_starts_from_cost_aware_widths_where_these_score_better():
    plan = replace(PLAN, cost_aware_start=True)
    inflated, other = (replace(plan, widths=w) for w in ({"a": 2, "b": 800}, {"a": 4000, "b": 1}))
    end, asked, finished = simulate(inflated)
    starts = History(inflated, finished).starts
    assert [s.widths for s in starts] == [inflated.baseline, inflated.cost_aware]
    # On the first half of the seeds: the better one has the others once a proposal is ahead of it.
    assert [(s.kind, s.replica) for s in asked[:3]] == [("baseline", 0), ("score", 0), ("measure", 0)]
    measured = [s for s in asked if s.kind == "measure"]
    assert measured[0].widths == inflated.over_wide(inflated.cost_aware)
    # From there on nothing depends on the seed network.
    again = simulate(other)
    assert end == again[0]
    assert measured == [s for s in again[1] if s.kind == "measure"]
    fits = History(inflated, finished).best(plan.rounds).widths
    assert fits["a"] > 2 * fits["b"]


def test_good_proportions_stay_the_start():
    plan = replace(PLAN, widths={"a": 60, "b": 20})
    without, withal = simulate(plan), simulate(replace(plan, cost_aware_start=True))
    assert without[0] == withal[0]
    aware = {("score", -1, k, 1.0) for k in range(plan.seeds)}
    assert [s for s in withal[1] if s.key not in aware] == without[1]
    assert len(withal[1]) == len(without[1]) + plan.first_seeds


def test_equal_starts_are_one_and_not_two():
    plan = replace(PLAN, widths=PLAN.cost_aware, cost_aware_start=True)
    assert [c.widths for c in History(plan, []).starts] == [plan.baseline]


def test_where_no_start_can_be_trained_nothing_is_measured():
    def run(slot):
        return Run(slot.key, "failed", slot.widths, error="loss is nan")

    step, asked, _ = simulate(replace(PLAN, cost_aware_start=True, widths={"a": 60, "b": 20}), run=run)
    assert isinstance(step, Failed) and "loss is nan" in step.because
    assert "measure" not in {s.kind for s in asked}


DOUBLING = replace(PLAN, step_sizes=(0.1, 0.2), doublings=2)


@pytest.mark.parametrize("plan", [PLAN, DOUBLING], ids=["", "doubling"])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_workers_and_the_order_in_which_they_end_change_nothing(workers, plan):
    one = simulate(plan)
    for seed in range(5):
        many = simulate(plan, workers=workers, order=random.Random(seed))
        assert many[0] == one[0]
        assert [(s.key, s.widths) for s in many[1]] == [(s.key, s.widths) for s in one[1]]


@pytest.mark.parametrize("plan", [PLAN, DOUBLING], ids=["", "doubling"])
def test_a_search_interrupted_anywhere_goes_on_to_the_same_end(plan):
    end, asked, finished = simulate(plan)
    for k in range(len(asked)):
        slot = asked[k]
        runs = [*finished[:k], Run(slot.key, "interrupted", slot.widths)]
        assert next_step(plan, runs) == slot


LINE = replace(PLAN, rounds=1, step_sizes=(0.2, 0.4), doublings=2)


@pytest.mark.parametrize(
    "losses, trained, found",  # by step, on all seeds; the start's (0) is 1; what is trained on which seed
    [
        ({0.2: 0.8, 0.4: 0.9}, "0, .2 .4 | 0 .2", 0.2),
        ({0.2: 0.8, 0.4: 0.7, 0.8: 0.75}, "0, .2 .4 | 0 .4, .8", 0.4),
        ({0.2: 0.8, 0.4: 0.7, 0.8: 0.6, 1.6: 0.7}, "0, .2 .4 | 0 .4, .8 | .8, 1.6", 0.8),
        # Doubled twice:
        ({0.2: 0.8, 0.4: 0.7, 0.8: 0.6, 1.6: 0.5}, "0, .2 .4 | 0 .4, .8 | .8, 1.6 | 1.6", 1.6),
        ({0.2: 1.1, 0.4: 0.9, 0.8: 1.2}, "0, .2 .4 | 0 .4, .8", 0.4),
        ({0.2: 1.1, 0.4: 1.2}, "0, .2 .4", None),  # the search ends, with half of the trainings of its start
    ],
)
def test_the_best_step_on_the_first_half_of_the_seeds_has_the_others(losses, trained, found):
    def run(slot):
        r = pretend(slot)
        return (
            r if slot.kind == "measure" else replace(r, value=losses[slot.step] if slot.round >= 0 else 1.0)
        )

    step, asked, _ = simulate(LINE, run=run)
    expected = [
        (float(step), replica)
        for group in trained.split(",")
        for replica, steps in enumerate(group.split("|"))
        for step in steps.split()
    ]
    fresh = LINE.selecting.stop
    tried = [(s.step, s.replica) for s in asked if s.kind != "measure" and s.replica < fresh]
    assert tried == expected
    assert (step.round, step.step) == ((0, found) if found is not None else (-1, 0.0))
    assert all(COST(s.widths)["macs"] <= 550 for s in asked if s.kind == "score")
    assert len(expected) <= LINE.start_trainings + LINE.proposal_trainings(LINE.doublings)


@pytest.mark.parametrize(
    "start, proposal, trained, found",
    [
        ((0.5, 2.0), (0.6, 0.1), [0], -1),  # it is behind on the same seed, whatever the mean of the start
        ((2.0, 0.5), (1.9, 0.1), [0, 1], 0),
        ((2.0, 0.5), (1.9, 0.7), [0, 1], -1),  # ahead on the first half, and behind on all
    ],
)
def test_proposals_meet_the_best_so_far_on_the_same_seeds(start, proposal, trained, found):
    def run(slot):
        if slot.kind == "measure":
            return pretend(slot)
        return replace(pretend(slot), value=(proposal if slot.round >= 0 else start)[slot.replica % 2])

    plan = replace(PLAN, rounds=1, step_sizes=(0.2,), doublings=0)
    step, asked, _ = simulate(plan, run=run)
    assert [s.replica for s in asked if s.kind == "score"] == trained
    assert step.round == found


def test_where_the_best_of_the_first_half_is_no_better_on_all_the_next_one_that_was_ahead_has_its_seeds():
    losses = {0.2: (0.8, 1.5), 0.4: (0.9, 0.9), 0.8: (1.2, 0.1)}

    def run(slot):
        if slot.kind == "measure":
            return pretend(slot)
        own = losses[slot.step][slot.replica % 2] if slot.round >= 0 else 1.0
        return replace(pretend(slot), value=own)

    step, asked, _ = simulate(LINE, run=run)
    scored = [(s.step, s.replica) for s in asked if s.kind == "score"]
    assert scored == [(0.2, 0), (0.4, 0), (0.2, 1), (0.4, 1), (0.8, 0)]
    assert (step.round, step.step) == (0, 0.4)


def test_the_better_start_has_its_other_seeds_with_the_first_proposal_that_is_ahead_of_it():
    plan = replace(PLAN, cost_aware_start=True, widths={"a": 60, "b": 20}, seeds=5)
    for better in (0.0, 1.0):
        for level, again in ((0.4, [(3, better), (4, better)]), (0.6, [])):

            def run(slot, better=better, level=level):
                value = level - slot.step / 100 if slot.round >= 0 else 0.5 if slot.step == better else 1.0
                return replace(pretend(slot), value=value)

            _, asked, _ = simulate(plan, run=run)
            tried = [(s.replica, s.step) for s in asked if s.round < 0 and s.replica < plan.selecting.stop]
            assert tried == [(k, step) for k in range(3) for step in (0.0, 1.0)] + again
    assert plan.start_trainings == 8


@pytest.mark.parametrize(
    "uniform, rounds, because",
    [
        (0.52, 2, "no better score for 2 rounds"),  # 4 % behind: both starts are measured
        (0.53, 1, "no better score for 1 round"),  # 6 %
        (None, 1, "no better score for 1 round"),  # not known
    ],
)
def test_where_nothing_is_better_the_other_start_is_measured_if_it_is_about_as_good(uniform, rounds, because):
    plan = replace(PLAN, cost_aware_start=True, widths={"a": 60, "b": 20}, patience=1)

    def run(slot):
        if slot.kind == "measure":
            return pretend(slot)
        loss = 0.6 if slot.round >= 0 else 0.5 if slot.step else uniform
        state = "complete" if loss else "failed"
        return replace(pretend(slot), value=loss, state=state, error="" if loss else "loss is nan")

    step, asked, finished = simulate(plan, run=run)
    history = History(plan, finished)
    assert [history.source(r) for r in range(rounds)] == history.starts[::-1][:rounds]
    wide = list({s.round: s.widths for s in asked if s.kind == "measure"}.values())
    assert wide == [plan.over_wide(plan.cost_aware), plan.over_wide(plan.widths)][:rounds]
    assert (step.because, step.round, step.step) == (because, -1, 1.0)


def test_what_is_found_from_the_other_start_must_be_better_than_the_better_one():
    plan = replace(PLAN, cost_aware_start=True, widths={"a": 60, "b": 20}, patience=1)
    for found, round_ in ((0.51, -1), (0.49, 1)):

        def run(slot, found=found):
            start = 0.5 if slot.step else 0.52
            loss = start if slot.round < 0 else found if slot.round == 1 else 0.6
            return pretend(slot) if slot.kind == "measure" else replace(pretend(slot), value=loss)

        assert simulate(plan, run=run)[0].round == round_


def test_what_is_lost_on_the_first_half_of_the_seeds_is_behind():
    def run(slot, lost):
        r = pretend(slot)
        if slot.kind == "score" and slot.step in lost:
            return replace(r, state="failed", error="loss is nan", value=None)
        return r if slot.kind == "measure" else replace(r, value=1.0 - slot.step / 2)

    for lost, tried, found in (
        ((0.2,), {0.2, 0.4, 0.8, 1.6}, 1.6),
        ((0.4,), {0.2, 0.4}, 0.2),
        ((0.8,), {0.2, 0.4, 0.8}, 0.4),
    ):
        step, asked, _ = simulate(LINE, run=lambda slot, lost=lost: run(slot, lost))
        assert {s.step for s in asked if s.kind == "score"} == tried
        assert step.step == found


@pytest.mark.parametrize("better", [0.1, 2.0], ids=["found", "start"])
def test_how_many_trainings_are_left_is_known_once_the_verdict_has_begun(better):
    def run(slot):
        if slot.kind == "measure":
            return pretend(slot)
        return replace(pretend(slot), value=better if slot.round >= 0 else 1.0)

    plan = SearchPlan(PLAN)
    _, asked, _ = simulate(run=run)
    begun = [(slot.kind, slot.replica) for slot in asked]
    first = next(k for k, slot in enumerate(asked) if slot.kind != "measure" and slot.replica in PLAN.fresh)
    assert plan.expected_after(begun[:first]) == plan.expected()
    for k in range(first + 1, len(asked) + 1):
        assert plan.expected_after(begun[:k]) == {
            kind: sum(of == kind for of, _ in begun) for kind in plan.expected()
        }
    more = SearchPlan(PLAN.going_on(9))  # after the verdict
    assert more.expected_after(begun) == more.expected()


def test_a_failed_run_is_retried_with_the_same_seed_and_then_given_up():
    tries = []

    def run(slot):
        if slot.key == ("score", 0, 1, 0.5):
            tries.append(slot.random_seed(PLAN.seed))
            return Run(slot.key, "failed", slot.widths, error="loss is nan")
        return pretend(slot)

    step, _, _ = simulate(run=run)
    assert len(tries) == 1 + PLAN.retries
    assert len(set(tries)) == 1
    assert isinstance(step, Done)
    assert (step.round, step.step) != (0, 0.5)  # what lost a run ranks behind all that did not


def test_workers_that_die_are_no_failed_trainings_but_not_for_ever():
    slot = next_step(plan := replace(PLAN, seeds=4), [])
    died = Run(slot.key, "died", slot.widths, error="out of memory")
    runs = [died] * WORKER_DEATHS
    assert next_step(plan, runs) == slot
    assert next_step(plan, [*runs, died]).replica == slot.replica + 1


def test_fewer_rounds_than_were_made_end_the_search_at_once():
    """A study file that was changed, and gone on with by force."""
    plan = replace(PLAN, rounds=3, at_least=3)
    _, _, runs = simulate(plan)
    step, asked, _ = simulate(replace(PLAN, rounds=1), ask=lambda now, more: next_step(now, [*runs, *more]))
    assert isinstance(step, Done) and "round limit (1)" in step.because
    assert {s.kind for s in asked} <= {"report"}


def test_more_rounds_are_made_whatever_had_stopped_the_search():
    _, _, runs = simulate(replace(PLAN, rounds=1))
    assert isinstance(next_step(replace(PLAN, rounds=1), runs), Done)
    more = replace(PLAN, rounds=3, at_least=3)
    step = next_step(more, runs)
    assert (step.kind, step.round) == ("measure", 1)


def test_a_search_whose_measures_all_fail_says_so():
    def run(slot):
        return Run(slot.key, "failed", slot.widths, error="training loss is nan")

    step, _, _ = simulate(run=run)
    assert isinstance(step, Failed)
    assert "training loss is nan" in step.because


def test_a_search_whose_scores_all_fail_says_so():
    def run(slot):
        if slot.kind == "score":
            return Run(slot.key, "failed", slot.widths, error="training loss is nan")
        return pretend(slot)

    step, _, _ = simulate(run=run)
    assert isinstance(step, Failed)
    assert "every score of round 1 failed" in step.because


def test_it_stops_when_balanced():
    def run(slot):
        r = pretend(slot)
        return replace(r, prune_ratio={"a": 0.5, "b": 0.5}) if slot.kind == "measure" else r

    step, _, finished = simulate(run=run)
    assert isinstance(step, Done)
    assert "balanced" in step.because
    assert {r.key[1] for r in finished if r.key[0] == "measure"} == {0}


def unbalanced(slot, better):
    """Ratios that never balance; the score of round r is better(r)."""
    if slot.kind == "measure":
        lean = 0.3 + 0.01 * slot.replica
        return Run(slot.key, "complete", slot.widths, value=3.0, prune_ratio={"a": lean, "b": 0.9 - lean})
    return Run(slot.key, "complete", slot.widths, value=better(slot.round))


def test_it_stops_when_the_score_does_not_improve_and_keeps_the_best_round_not_the_last():
    step, _, finished = simulate(run=lambda s: unbalanced(s, lambda r: 2.0 if r < 0 else 1.0 + r))
    assert isinstance(step, Done)
    assert step.because == "no better score for 2 rounds"
    assert step.round == 0
    assert max(r.key[1] for r in finished) == 2


def test_it_stops_at_the_round_limit():
    step, _, _ = simulate(run=lambda s: unbalanced(s, lambda r: 1.0 - 0.1 * r))
    assert isinstance(step, Done)
    assert step.because == "round limit (4) reached"
    assert step.round == 3


def test_the_uniform_network_is_kept_where_no_proposal_scores_better():
    step, asked, finished = simulate(run=lambda s: unbalanced(s, lambda r: 1.0 if r < 0 else 1.1))
    assert (step.round, step.because) == (-1, "no better score for 2 rounds")
    assert History(PLAN, finished).best(PLAN.rounds).widths == PLAN.baseline
    assert [s.kind for s in asked[-3:]] == ["baseline"] * 3  # its fresh seeds, and nothing to compare with


def test_the_next_round_starts_from_the_best_network_at_whatever_step_it_was():
    def run(slot):  # the shorter step is better than the longer one
        r = unbalanced(slot, lambda r: 1.0)
        return replace(r, value=0.5) if slot.step == 0.25 and slot.round == 0 else r

    _, asked, finished = simulate(run=run)
    best = History(PLAN, finished).best(1)
    assert (best.round, best.step) == (0, 0.25)
    measured = next(s.widths for s in asked if (s.kind, s.round) == ("measure", 1))
    assert measured["a"] / measured["b"] == pytest.approx(best.widths["a"] / best.widths["b"], rel=0.1)
    assert {(s.round, s.step) for s in asked if s.kind == "report"} == {(0, 0.25)}


def test_no_network_is_scored_twice():
    step, asked, _ = simulate(replace(PLAN, step_sizes=(0.495, 0.5, 0.505), rounds=2))
    scored = [(s.replica, tuple(s.widths.items())) for s in asked if s.kind in ("score", "baseline")]
    assert len(scored) == len(set(scored))


def test_plain_runs_of_one_replica_share_their_random_numbers_and_measures_do_not():
    w = {"a": 2, "b": 2}
    seeds = {kind: Slot(kind, 0, 1, w).random_seed(7) for kind in ("score", "baseline", "report")}
    assert len(set(seeds.values())) == 1
    assert Slot("score", 3, 1, w).random_seed(7) == seeds["score"]
    others = [Slot("score", 0, 2, w), Slot("measure", 0, 1, w), Slot("measure", 1, 1, w)]
    assert len({s.random_seed(7) for s in others} | {seeds["score"]}) == 4
    assert Slot("score", 0, 1, w).random_seed(8) != seeds["score"]


def test_measures_are_over_wide_and_everything_else_is_within_budget():
    _, asked, _ = simulate()
    for slot in asked:
        cost = COST(slot.widths)["macs"]
        assert cost <= (4 * 550 if slot.kind == "measure" else 550)
        assert cost > (3 * 550 if slot.kind == "measure" else 400)


def test_a_plan_survives_json():
    import json

    again = Plan.from_json(json.loads(json.dumps(PLAN.to_json())))
    assert again.cost({"a": 3.5, "b": 2}) == COST({"a": 3.5, "b": 2})
    assert simulate(again)[1] == simulate()[1]


def test_a_slot_waits_for_what_it_depends_on():
    measure = [Run(("measure", 0, k, 0.0), "running", {"a": 80, "b": 80}) for k in range(3)]
    baseline = [Run(("baseline", -1, k, 0.0), "complete", {"a": 18, "b": 18}, value=1.0) for k in range(2)]
    assert next_step(PLAN, measure + baseline) == Wait()


def test_a_quick_search_is_one_measure_and_one_proposal():
    quick = replace(PLAN, cost_aware_start=True, widths={"a": 60, "b": 20}, **settings_of_effort("quick"))
    _, asked, _ = simulate(quick)
    kinds = [s.kind for s in asked if s.replica not in quick.fresh]
    assert sorted(kinds) == ["baseline", "measure", "score", "score"]
    assert sum(quick.expected().values()) == len(asked)
    for name in EFFORTS:
        replace(PLAN, **settings_of_effort(name))
    with pytest.raises(UsageError, match="quick, normal, thorough"):
        settings_of_effort("much")

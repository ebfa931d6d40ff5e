"""Comparisons: every arm under the same budget and cost, the same trials however they are run, honest intervals."""

import random
from dataclasses import replace

import numpy as np
import optuna
import pytest
import test_plan
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_plan import CHAIN, CONSTANTS, COST, FORMS, PLAN, pretend

from widthsearch.errors import UsageError
from widthsearch.maths import rule
from widthsearch.maths.cost import Cost
from widthsearch.maths.intervals import crossed, paired_gain
from widthsearch.plans.arm import ArmSearch, Point, at_budget
from widthsearch.plans.arms import ARMS
from widthsearch.plans.comparison import Comparison, least_cost, most_cost, parse_arm
from widthsearch.plans.history import History
from widthsearch.plans.kinds import read_plan
from widthsearch.plans.plan import FINALISTS, Branch, Done, Run, Wait
from widthsearch.plans.samplers import RANGE, sampled
from widthsearch.plans.search import SearchPlan
from widthsearch.plans.search import next_step as next_of_search

BUDGETS = ({"macs": 550}, {"macs": 1100})
TWO_ROUNDS = replace(PLAN, rounds=2, doublings=2, final_seeds=1)
LIMIT = most_cost(replace(TWO_ROUNDS, budget=BUDGETS[0]), 2)
EVERY = (
    "grow-shrink",
    "uniform",
    "constant",
    "cost-aware",
    "equal-ratio",
    "global",
    "sensitivity",
    "one-shot",
    "random",
    "tpe",
    "random*2",
)
COMPARISON = Comparison(replace(TWO_ROUNDS, budget=BUDGETS[1]), BUDGETS, EVERY, repeats=2, cost=LIMIT)


def train(slot):
    """A pretended training at the budget of its branch."""
    run = pretend(replace(slot, kind="measure" if slot.kind == "measure" else "score"))
    noise = random.Random(repr((slot.branch, slot.key))).gauss(0, 0.01)
    # With what a sampler asked for, as it stands in a trial: asking again takes long.
    return replace(run, key=slot.key, branch=slot.branch, value=run.value + noise, asked=slot.asked)


def next_of(plan, runs):
    return plan.next_step(runs)


def simulate(plan=COMPARISON, workers=1, order=None, run=train):
    """Run a whole comparison with pretended workers."""
    return test_plan.simulate(read_plan(plan.to_json()), workers, run, order, ask=next_of, most=20_000)


@pytest.fixture(scope="module")
def whole():
    return simulate()


def identity(slot):
    return (slot.branch, slot.key, tuple(sorted(slot.widths.items())))


def test_every_arm_recommends_something_in_every_repeat(whole):
    step, _, finished = whole
    assert isinstance(step, Done)
    outcomes = COMPARISON.outcomes(finished)
    assert len(outcomes) == 2 * 2 * len(EVERY)
    assert all(o.points for o in outcomes)


def test_everything_fits_its_budget_and_only_over_wide_networks_do_not(whole):
    _, asked, _ = whole
    for slot in asked:
        limit = BUDGETS[slot.branch.budget]["macs"]
        over_wide = slot.kind in ("measure", "pruned")
        assert COST(slot.widths)["macs"] <= (PLAN.over if over_wide else 1) * limit


def test_no_search_costs_more_than_it_may(whole):
    _, asked, finished = whole
    spent = {}
    for slot in asked:
        if slot.branch.arm != "report":
            unit = COST(COMPARISON.plan_of(slot).baseline)["macs"]
            spent[slot.branch] = spent.get(slot.branch, 0) + COST(slot.widths)["macs"] / unit
    for branch, cost in spent.items():
        # Two arms look at the random search, each with a run-off.
        both = LIMIT * 2 + TWO_ROUNDS.run_off_trainings
        assert cost <= (both if branch.arm == "random" else LIMIT) * (1 + 1e-9)
        if branch.arm in ("random", "tpe"):
            spare = (FINALISTS - 1) * TWO_ROUNDS.final_seeds  # of what is kept back for the run-off
            assert cost > LIMIT - 1.5 - spare  # and the rest is used
    for outcome in COMPARISON.outcomes(finished):
        costs = [p.cost for p in outcome.points]
        assert costs == sorted(costs)
        assert costs[-1] <= LIMIT * parse_arm(outcome.arm)[2] * (1 + 1e-9)


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [2, 5])
def test_workers_and_the_order_in_which_they_end_change_nothing(whole, workers):
    many = simulate(workers=workers, order=random.Random(workers))
    assert sorted(map(repr, map(identity, many[1]))) == sorted(map(repr, map(identity, whole[1])))
    assert COMPARISON.outcomes(many[2]) == COMPARISON.outcomes(whole[2])


def test_a_comparison_interrupted_anywhere_goes_on_to_the_same_end(whole):
    _, asked, finished = whole
    for k in range(0, len(asked), 97):
        slot = asked[k]
        runs = [*finished[:k], Run(slot.key, "interrupted", slot.widths, branch=slot.branch)]
        again = read_plan({**COMPARISON.to_json(), "marker": k})  # nothing remembered from before
        assert next_of(again, runs) == slot


def test_the_first_repeat_is_the_search_that_launch_makes(whole):
    """Slot by slot, until the search has found its widths."""
    _, asked, finished = whole
    for budget in range(2):
        branch = Branch(budget, 0, "grow-shrink")
        plan = replace(TWO_ROUNDS, budget=BUDGETS[budget])
        own = [s for s in asked if s.branch == branch]
        runs = [replace(r, branch=None) for r in finished if r.branch == branch]
        for k, slot in enumerate(own):
            assert next_of_search(plan, runs[:k]) == replace(slot, branch=None)
            assert slot.random_seed(COMPARISON.plan_of(slot).seed) == slot.random_seed(plan.seed)


def test_repeats_have_seeds_of_their_own_and_share_the_fresh_ones(whole):
    _, asked, _ = whole
    seeds = {}
    for slot in asked:
        seed = slot.random_seed(COMPARISON.plan_of(slot).seed)
        seeds.setdefault((slot.branch.repeat, slot.branch.arm == "report"), set()).add(seed)
    searches = [seeds[0, False], seeds[1, False]]
    fresh = seeds[-1, True]
    assert len(fresh) == PLAN.report_seeds
    assert not searches[0] & searches[1]
    assert not fresh & (searches[0] | searches[1])


def test_no_network_is_trained_twice_on_a_fresh_seed(whole):
    _, asked, _ = whole
    reports = [identity(s) for s in asked if s.branch.arm == "report"]
    assert len(reports) == len(set(reports))


def test_ten_times_the_cost_goes_on_from_the_same_candidates(whole):
    _, asked, _ = whole
    branch, plan = Branch(0, 0, "random"), replace(TWO_ROUNDS, budget=BUDGETS[0])
    short, long = (next(ARMS["random"](ArmSearch(branch, plan, times * LIMIT))) for times in (1, 2))
    assert long[: len(short)] == short and len(long) > 1.8 * len(short)
    assert [s for s in asked if s.branch == branch and s.replica == 0] == long  # and none was trained twice


# Fair rivals

SAMPLERS = ("random", "tpe")
# Cost-aware widths lie farther from uniform ones than samplers look by themselves.
SKEWED = replace(PLAN, widths={"a": 2, "b": 800}, cost_aware_start=True, final_seeds=3)
FAIR = Comparison(SKEWED, BUDGETS[:1], SAMPLERS, repeats=1, cost=40)


def lucky(slot):
    """The cost-aware widths are by far the best on the first seed, and on no other."""
    if slot.widths == SKEWED.cost_aware and slot.branch.arm != "report":
        return replace(train(slot), value=0.0 if slot.replica == 0 else 9.0)
    return train(slot)


@pytest.fixture(scope="module")
def fair():
    return simulate(FAIR, run=lucky)


@pytest.mark.parametrize("arm", SAMPLERS)
def test_a_sampler_begins_with_the_starts_of_the_search(fair, arm):
    _, asked, _ = fair
    first, second = [s for s in asked if s.branch.arm == arm][:2]
    ours = [c.slot(0) for c in History(SKEWED, ()).starts]
    assert [replace(s, branch=None) for s in (first, second)] == ours
    assert [dict(s.widths) for s in ours] == [SKEWED.baseline, SKEWED.cost_aware]
    # What the search does not start from, nobody does.
    alone = replace(FAIR, plan=replace(SKEWED, cost_aware_start=False), arms=(arm,), cost=15)
    _, asked, _ = simulate(alone)
    assert SKEWED.cost_aware not in [s.widths for s in asked if s.branch.arm == arm][:2]


@pytest.mark.parametrize("arm", SAMPLERS)
def test_a_sampler_recommends_what_the_run_off_says_and_pays_for_it(fair, arm):
    step, asked, finished = fair
    assert isinstance(step, Done)
    own = [s for s in asked if s.branch.arm == arm]
    losses = {}
    for run in finished:
        if run.branch.arm == arm:
            losses.setdefault(tuple(run.widths.values()), {}).setdefault(run.key[2], run.value)
    known = {widths: of[0] for widths, of in losses.items()}
    finalists = []
    while len(finalists) < FINALISTS and (best := min(known, key=known.get)) not in finalists:
        finalists.append(best)
        known[best] = np.mean(list(losses[best].values()))
    last = own[-len(finalists) * SKEWED.final_seeds :]
    assert [(tuple(s.widths.values()), s.replica) for s in last] == [
        (widths, k) for widths in finalists for k in (1, 2, 3)
    ]
    assert {s.replica for s in own[: -len(last)]} == {0}
    assert len(finished) == len({identity(s) for s in asked}) == len(asked)
    (outcome,) = [o for o in FAIR.outcomes(finished) if o.arm == arm]
    *before, point = outcome.points
    best = min(finalists, key=lambda widths: np.mean(list(losses[widths].values())))
    assert tuple(point.widths.values()) == best != finalists[0]  # that one was lucky
    assert SKEWED.cost_aware == before[-1].widths
    assert finalists[0] == tuple(SKEWED.cost_aware.values())
    search = ArmSearch(own[0].branch, SKEWED, FAIR.cost)
    assert point.cost == pytest.approx(sum(map(search.cost_of, own))) and point.cost <= FAIR.cost


def test_without_a_run_off_the_best_of_single_trainings_is_recommended():
    plan = replace(FAIR, plan=replace(SKEWED, final_seeds=0))
    _, asked, finished = simulate(plan, run=lucky)
    assert {s.replica for s in asked if s.branch.arm in SAMPLERS} == {0}
    for outcome in plan.outcomes(finished):
        assert outcome.points[-1].widths == SKEWED.cost_aware


def test_a_network_that_is_asked_for_again_and_again_comes_into_the_run_off_once():
    class Same(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            return 2.5 if name == "a" else -2.5

    def run(slot):  # lucky on the first seed, in every round
        return (
            replace(train(slot), value=0.0 if slot.replica == 0 else 9.0) if slot.round >= 0 else train(slot)
        )

    search = ArmSearch(Branch(0, 0, "tpe"), SKEWED, limit=30)
    arm, runs = sampled(lambda seed: Same()), []
    while (phase := search.walk(arm, runs)[0]) is not None:
        runs += [run(slot) for slot, state in zip(*phase, strict=True) if state == "open"]
    assert len({run.key[1] for run in runs}) > 15
    # Asked for in every round, it comes into the run-off as that of the first one alone.
    assert {run.key[1] for run in runs if run.key[2] > 0} == {-1, 0}


@pytest.mark.parametrize("plan", [COMPARISON, SearchPlan(PLAN)], ids=["comparison", "search"])
def test_a_study_of_before_is_refused(plan):
    with pytest.raises(ValueError, match="format 1"):
        read_plan({**plan.to_json(), "format": 1})


@pytest.mark.parametrize("arm", ["global", "sensitivity"])
def test_global_pruning_recommends_the_widths_that_are_left(arm):
    kept = PLAN.at_budget({"a": 5, "b": 1})
    search = ArmSearch(Branch(0, 0, arm), PLAN, LIMIT)
    (slot,) = search.walk(ARMS[arm], [])[0].slots
    assert (slot.kind, slot.widths) == ("measure", PLAN.over_wide_seed)
    ratios = {v: 1 - kept[v] / w for v, w in slot.widths.items()}
    run = Run(slot.key, "complete", slot.widths, value=1.0, prune_ratio=ratios, branch=slot.branch)
    assert search.walk(ARMS[arm], [run]) == (None, [Point(search.cost_of(slot), kept)])
    lost = [Run(slot.key, "failed", slot.widths, error="loss is nan", branch=slot.branch)] * 2
    assert search.walk(ARMS[arm], lost) == (None, [])


def test_a_lost_training_is_only_a_candidate_less():
    lost = Branch(0, 0, "random")

    def run(slot):
        if slot.branch == lost and slot.round == 3:
            return Run(slot.key, "failed", slot.widths, error="loss is nan", branch=slot.branch)
        return train(slot)

    plan = replace(COMPARISON, arms=("uniform", "random"), repeats=1)
    step, asked, finished = simulate(plan, run=run)
    assert isinstance(step, Done)
    assert sum(s.branch == lost and s.round == 3 for s in asked) == 1 + PLAN.retries
    assert all(o.points for o in plan.outcomes(finished))


@pytest.mark.parametrize("lost, found", [(("baseline", "score"), 0), (("measure",), 1)])
def test_a_search_that_fails_recommends_its_start_or_nothing_and_the_others_go_on(lost, found):
    def run(slot):
        if slot.branch.arm == "grow-shrink" and slot.kind in lost:
            return Run(slot.key, "failed", slot.widths, error="loss is nan", branch=slot.branch)
        return train(slot)

    plan = replace(COMPARISON, arms=("grow-shrink", "uniform"), repeats=1)
    step, _, finished = simulate(plan, run=run)
    assert isinstance(step, Done)
    assert [len(o.points) for o in plan.outcomes(finished)] == [found, 1] * 2


def test_a_round_that_proposes_nothing_new_ends_in_a_recommendation_too():
    def run(slot):
        trained = train(slot)
        return replace(trained, prune_ratio={"a": 0.5, "b": 0.5}) if slot.kind == "measure" else trained

    plan = replace(COMPARISON, arms=("grow-shrink", "one-shot"), budgets=BUDGETS[:1], repeats=1)
    step, asked, finished = simulate(plan, run=run)
    assert isinstance(step, Done)
    assert "score" not in {slot.kind for slot in asked}
    start = replace(TWO_ROUNDS, budget=BUDGETS[0]).baseline
    assert [o.points[-1].widths for o in plan.outcomes(finished)] == [start, start]


# The weights out of b are dear: 10-60, scaled to 550 MACs and 1,100 such parameters, leaves MACs unused that
# cost-aware widths use.
DEAR = Cost(
    ("a", "b"),
    FORMS,
    CONSTANTS,
    {"macs": CHAIN, "params": replace(CHAIN, coefficients=np.array([1.0, 1, 10]))},
)
UNEVEN = replace(PLAN, widths={"a": 10, "b": 60}, cost=DEAR, rounds=1, cost_aware_start=True)


@pytest.mark.parametrize("rounds", (1.0, 1.4, 1.8, 2.0))
def test_a_search_and_its_run_off_cost_no_more_than_they_may(rounds):
    plan = replace(TWO_ROUNDS, budget=BUDGETS[0], final_seeds=2)
    one, two = least_cost(plan, 1), least_cost(plan, 2)
    comparison = Comparison(plan, BUDGETS[:1], ("grow-shrink",), 3, cost=one + (rounds - 1) * (two - one))
    _, asked, finished = simulate(comparison)
    for outcome in comparison.outcomes(finished):
        branch = Branch(0, outcome.repeat, "grow-shrink")
        search = ArmSearch(branch, plan, comparison.cost)
        own = [slot for slot in asked if slot.branch == branch]
        assert sum(map(search.cost_of, own)) == pytest.approx(outcome.points[-1].cost)
        assert outcome.points[-1].cost <= comparison.cost * (1 + 1e-9)
        final = sum(slot.replica in (2, 3) and slot.kind != "measure" for slot in own)
        assert final in [k * plan.final_seeds for k in range(1, 1 + FINALISTS)]


@pytest.mark.parametrize("budget", [{"macs": 550}, {"macs": 550, "params": 1100}, {"params": 1100}])
def test_the_default_cost_pays_for_the_rounds_from_whichever_start(budget):
    plan = replace(UNEVEN, budget=budget)
    comparison = Comparison(plan, (budget,), ("grow-shrink",), repeats=3)
    _, asked, finished = simulate(comparison)
    for outcome in comparison.outcomes(finished):
        own = [s for s in asked if s.branch.repeat == outcome.repeat and s.branch.arm == "grow-shrink"]
        assert {s.kind for s in own} == {"baseline", "measure", "score"}
        assert len(outcome.points) == 2
        if "macs" in budget:  # without, a proposal may be dearer than both starts
            assert outcome.points[-1].cost <= comparison.limit(0) * (1 + 1e-9)


def search_of(arm, losses, plan):
    """The arm's first candidates, given their losses in order."""
    search = ArmSearch(Branch(0, 0, arm), plan, limit=len(losses) + 20)
    runs = []
    for loss in losses:
        phase, _ = search.walk(ARMS[arm], runs)
        slot = next(slot for slot, state in zip(*phase, strict=True) if state == "open")
        runs.append(Run(slot.key, "complete", slot.widths, value=loss, branch=slot.branch, asked=slot.asked))
    return [dict(run.widths) for run in runs], search


@pytest.mark.parametrize("name", ["tpe", "gp"])
@pytest.mark.parametrize("plan", [PLAN, SKEWED], ids=["one start", "two starts"])
def test_a_sampler_of_optunas_sees_exactly_the_trials_before(name, plan):
    """What the arm asks for is what the sampler itself asks for, given the same trials."""
    losses = [random.Random(i).random() for i in range(14)]
    widths, search = search_of(name, losses, plan)
    starts = [dict(c.widths) for c in History(plan, ()).starts]
    assert widths[: len(starts)] == starts
    # It does look around; where one width is 1 many factors come to the same widths.
    assert len({tuple(w.items()) for w in widths}) > (7 if plan is PLAN else 3)
    # Both starts are in the space, uniform widths in the middle of it.
    logs = [np.log(plan.cost_aware[v] / w) for v, w in plan.widths.items()]
    aware = {v: log - (max(logs) + min(logs)) / 2 for v, log in zip(plan.widths, logs, strict=True)}
    known = [dict.fromkeys(plan.widths, 0.0), aware][: len(starts)]
    reach = max(np.log(RANGE), *(abs(f) for of in known for f in of.values()))
    assert (reach > np.log(RANGE)) == (plan is SKEWED)
    study = optuna.create_study()
    space = {v: optuna.distributions.FloatDistribution(-reach, reach) for v in plan.widths}
    sampler = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}[name]
    for i, loss in enumerate(losses):
        if i < len(starts):
            params = known[i]
        else:
            assert at_budget(plan, tuple(params[v] for v in plan.widths)) == widths[i]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=loss))
        study.sampler = sampler(seed=search.random_seed(i + 1))
        trial = study.ask(fixed_distributions=space)
        params = trial.params
        study.tell(trial, state=optuna.trial.TrialState.FAIL)


def test_a_sampler_is_not_asked_again_for_what_was_trained():
    """Asking a Gaussian process 300 times takes minutes: `show` and `resume` must not."""
    seeds = []

    def sampler(seed):
        seeds.append(seed)
        return optuna.samplers.TPESampler(seed=seed)

    arm, branch, runs = sampled(sampler), Branch(0, 0, "tpe"), []
    search = ArmSearch(branch, PLAN, limit=20.5)
    for k in range(12):
        search.history = History(PLAN, runs)
        slot = [step for step in arm(search) if not isinstance(step, Point)][k][0]
        run = Run(slot.key, "complete", slot.widths, value=1 / (1 + k), branch=branch, asked=slot.asked)
        runs.append(run)
        # The start follows from the plan, and nobody has to ask for it.
        assert (at_budget(PLAN, slot.asked) if k else PLAN.baseline) == slot.widths
    seeds.clear()
    again = ArmSearch(branch, replace(PLAN), limit=20.5)  # another process: nothing is remembered
    again.history = History(PLAN, runs)
    steps = [step for step in arm(again) if not isinstance(step, Point)]
    assert [s.widths for (s,) in steps[:12]] == [r.widths for r in runs]
    assert seeds[0] == search.random_seed(12)  # only what comes next


@given(st.tuples(*[st.floats(-3, 3)] * 2))
def test_any_factors_give_widths_that_fit_and_use_the_budget(factors):
    widths = at_budget(PLAN, factors)
    assert PLAN.constraints().allow(widths)
    wider = [{**widths, v: w + 1} for v, w in widths.items()]
    assert not all(PLAN.constraints().allow(w) for w in wider)


def test_constant_width_is_constant(whole):
    _, _, finished = whole
    (point,) = next(o for o in COMPARISON.outcomes(finished) if o.arm == "constant").points
    assert max(point.widths.values()) - min(point.widths.values()) <= 1


def test_equal_ratio_cuts_every_layer_by_the_same_share(whole):
    _, _, finished = whole
    (point,) = next(o for o in COMPARISON.outcomes(finished) if o.arm == "equal-ratio").points
    shares = [point.widths[v] / point.over_wide[v] for v in PLAN.widths]
    assert max(shares) - min(shares) < 0.05
    assert point.widths == rule.scale_to_budget(PLAN.widths, replace(PLAN, budget=BUDGETS[0]).constraints())


def test_a_training_that_runs_is_waited_for():
    plan = replace(COMPARISON, arms=("uniform",), repeats=1, budgets=BUDGETS[:1])
    slots = plan.report_slots(0, Point(0.0, replace(PLAN, budget=BUDGETS[0]).baseline))
    runs = [Run(s.key, "running", s.widths, branch=s.branch) for s in slots]
    assert next_of(plan, runs) == Wait()


@pytest.mark.parametrize("name", ["best", "tpe*", "tpe*0.5", "tpe*x", "random*1e9", ""])
def test_what_is_no_arm_is_refused(name):
    with pytest.raises(UsageError, match="arm"):
        parse_arm(name)


# Intervals


def test_one_repeat_gives_students_interval():
    values = np.random.default_rng(0).normal(1, 1, 8)
    found = crossed(values[None])
    low, high = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
    assert found["ci95"] == pytest.approx([low, high])
    assert found["se"] == pytest.approx(stats.sem(values))
    assert found["p"] == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    gain = paired_gain(dict(enumerate(values)), dict.fromkeys(range(8), 0.0))
    assert gain["ci95"] == pytest.approx([low, high])


def test_repeats_that_agree_tell_no_more_than_one_of_them():
    values = np.random.default_rng(1).normal(1, 1, 8)
    one, three = crossed(values[None]), crossed(np.tile(values, (3, 1)))
    assert three["se"] == pytest.approx(one["se"])
    assert crossed(np.zeros((3, 8)))["ci95"] == [0.0, 0.0]
    assert (crossed(np.zeros((3, 8)))["p"], crossed(np.ones((3, 8)))["p"]) == (1.0, 0.0)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 8), st.floats(-2, 2))
def test_a_p_value_is_below_5_percent_where_the_interval_leaves_out_0(seed, repeats, seeds, shift):
    found = crossed(np.random.default_rng(seed).normal(shift, 1, (repeats, seeds)))
    low, high = found["ci95"]
    assert (found["p"] < 0.05) == (low > 0 or high < 0)


@pytest.mark.parametrize("repeats, seeds, noise", [(3, 8, 1.0), (4, 16, 0.3), (1, 8, 0.5)])
def test_the_interval_holds_the_truth_as_often_as_it_says(repeats, seeds, noise):
    """2,000 searches with effects of search, seed and both: 95 % of the intervals hold the mean."""
    rng, held = np.random.default_rng(repeats), 0
    for _ in range(2000):
        by_search = rng.normal(0, noise if repeats > 1 else 0, (repeats, 1))
        by_seed, rest = rng.normal(0, 1, (1, seeds)), rng.normal(0, 0.7, (repeats, seeds))
        low, high = crossed(3 + by_search + by_seed + rest)["ci95"]
        held += low <= 3 <= high
    assert 0.92 <= held / 2000 <= 0.99

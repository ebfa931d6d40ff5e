"""``GrowShrinkSampler`` against Optuna's own conformance tests, and on a study with a plan."""

from dataclasses import replace

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from test_plan import COST, PLAN, pretend, simulate

from widthsearch.database import records
from widthsearch.database.records import runs_of
from widthsearch.database.sampler import GrowShrinkSampler
from widthsearch.plans.plan import Done, Run, Slot
from widthsearch.plans.search import SearchPlan, next_step

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Its own proportions are bad enough for the search to start from cost-aware ones.
SKEWED = replace(PLAN, widths={"a": 2, "b": 800}, cost_aware_start=True)


class TestConformance(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return GrowShrinkSampler


def planned_study(plan=PLAN):
    study = optuna.create_study(sampler=GrowShrinkSampler())
    study.set_user_attr(records.PLAN, SearchPlan(plan).to_json())
    return study


def label(trial, slot):
    trial.set_user_attr(records.STEP, slot.step)
    for key, value in (
        (records.ROUND, slot.round),
        (records.REPLICA, slot.replica),
        (records.KIND, slot.kind),
    ):
        trial.set_user_attr(key, value)


@pytest.mark.parametrize("plan", [PLAN, SKEWED], ids=["uniform start", "cost-aware start"])
def test_optunas_ask_and_tell_run_the_whole_search(plan):
    """With the sampler alone, the trials are those of the schedule; measures are infeasible, best_trial is not."""
    study = planned_study(plan)
    widths = []
    while isinstance(slot := next_step(plan, runs_of(study.trials)), Slot):
        trial = study.ask()
        proposed = {v: trial.suggest_int(v, 1, 10_000) for v in PLAN.widths}
        assert proposed == dict(slot.widths)
        label(trial, slot)
        run = pretend(slot)
        if run.prune_ratio is not None:
            trial.set_user_attr(records.PRUNE_RATIO, run.prune_ratio)
        trial.set_constraint("macs", COST(proposed)["macs"] / PLAN.budget["macs"] - 1)
        study.tell(trial, run.value)
        widths.append(proposed)
    end, asked, _ = simulate(plan)
    assert widths == [dict(s.widths) for s in asked]
    assert study.best_trial.user_attrs[records.KIND] in ("score", "report")
    assert isinstance(end, Done)
    assert GrowShrinkSampler()._next_widths(study) == widths[-2]  # done: the recommended widths


def test_two_samplers_that_see_the_same_trials_propose_the_same():
    plan = replace(SKEWED, seeds=4)  # two of each start come first
    study = planned_study(plan)
    for _ in range(4):
        slot = next_step(plan, runs_of(study.trials))
        proposals = [GrowShrinkSampler(seed=s)._next_widths(study) for s in (1, 2)]
        assert proposals[0] == proposals[1] == dict(slot.widths)
        label(study.ask(), slot)  # running trials count: the next proposal is for the next slot


def test_it_says_so_when_the_next_widths_are_not_known_yet():
    study = planned_study()
    for _ in range(PLAN.first_seeds):  # of the baseline, which the measures wait for
        slot = next_step(PLAN, runs_of(study.trials))
        label(study.ask(), slot)
    with pytest.raises(RuntimeError, match="still run"):
        study.ask().suggest_int("a", 1, 10_000)


def test_trials_of_somebody_else_are_ignored():
    study = planned_study()
    study.enqueue_trial({"a": 3, "b": 3})
    study.add_trial(optuna.trial.create_trial(value=0.0))
    assert runs_of(study.trials) == []
    assert isinstance(next_step(PLAN, runs_of(study.trials)), Slot)


def test_the_state_of_a_run_is_read_from_its_trial():
    study = planned_study()
    for interrupted in (True, False):
        trial = study.ask()
        label(trial, next_step(PLAN, []))
        if not interrupted:
            trial.set_user_attr(records.ERROR, "loss is nan")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    states: list[Run] = runs_of(study.trials)
    assert [r.state for r in states] == ["interrupted", "failed"]
    assert states[1].error == "loss is nan"

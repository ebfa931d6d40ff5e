"""The run-off: the best on a few seeds may have been lucky there, so it is trained on more, until the best has been."""

import json
import random
from dataclasses import replace

import optuna
import pytest
from commands import DATA, URL, command, write_study
from test_plan import PLAN, simulate, unbalanced

from widthsearch.database.records import plan_of
from widthsearch.database.sampler import GrowShrinkSampler, search_space
from widthsearch.driver.prepare import prepare
from widthsearch.plans.history import History
from widthsearch.plans.plan import FINALISTS, Done, Run, Slot, Wait
from widthsearch.plans.search import SearchPlan, next_step
from widthsearch.report.trials import scored_candidates, trials_of
from widthsearch.study.file import load_study
from widthsearch.training.trial import TrialRunner

RUN_OFF = replace(PLAN, final_seeds=3, rounds=2)  # on seeds 0 and 1; 2, 3 and 4; fresh ones are 5, 6 and 7


def lucky(slot: Slot) -> Run:
    """Round 1's longer step is the best on the first two seeds and fails on later ones; round 0's is steady."""
    trained = unbalanced(slot, lambda r: 1.0 if r < 0 else 0.8)
    if slot.kind == "measure":
        return trained
    if (slot.round, slot.step) == (1, 0.5):
        return replace(trained, value=0.5 if slot.replica < 2 else 2.3)
    return replace(trained, value=0.6) if (slot.round, slot.step) == (0, 0.5) else trained


def test_what_was_lucky_on_few_seeds_is_not_recommended():
    step, asked, finished = simulate(RUN_OFF, run=lucky)
    history = History(RUN_OFF, finished)
    best = history.best(2)
    assert (best.round, best.step) == (1, 0.5)
    assert isinstance(step, Done)
    assert (step.round, step.step) == (0, 0.5)
    assert history.recommended(2).widths == {s.kind: s for s in asked}["report"].widths
    # Without a run-off it would have been.
    step, _, _ = simulate(replace(RUN_OFF, final_seeds=0), run=lucky)
    assert (step.round, step.step) == (1, 0.5)


def test_in_the_run_off_is_the_best_so_far_until_the_best_has_been_and_its_seeds_are_no_fresh_ones():
    _, asked, finished = simulate(RUN_OFF, run=lucky)
    finalists = History(RUN_OFF, finished).finalists(2)
    assert [(c.round, c.step) for c in finalists] == [(1, 0.5), (0, 0.5)]  # the second one stays ahead
    more = [s for s in asked if s.kind in ("score", "baseline") and s.replica in (2, 3, 4)]
    assert [s.key for s in more] == [c.slot(k).key for c in finalists for k in (2, 3, 4)]
    first = asked.index(more[0])
    assert asked[first : first + len(more)] == more
    assert {s.kind for s in asked[first + len(more) :]} == {"report", "baseline"}
    assert {s.replica for s in asked[first + len(more) :]} == set(RUN_OFF.fresh) == {5, 6, 7}
    # The score by which rounds are compared stays what it was, or a search would take back its own steps.
    assert History(RUN_OFF, finished).losses(finalists[0], RUN_OFF.seeds).keys() == {0, 1}


@pytest.mark.parametrize("fall, on_trial", [(0.0, 1), (9.0, FINALISTS)])
def test_one_that_stays_ahead_needs_no_rival_and_three_are_on_trial_at_most(fall, on_trial):
    plan = replace(RUN_OFF, rounds=3)  # each round is better than the one before

    def run(slot):
        # What is shown to be better than the start is so on both seeds alike: not where all fall.
        level = 1.0 + (0.4 * (slot.replica % 2) if fall else 0.0)
        trained = unbalanced(slot, lambda r: level if r < 0 else 0.8 - 0.1 * r)
        final = slot.kind in ("score", "baseline") and slot.replica in (2, 3, 4)
        return replace(trained, value=trained.value + fall * final)

    step, _, finished = simulate(plan, run=run)
    history = History(plan, finished)
    finalists = history.finalists(3)
    assert sum(history.stayed(c) for r in range(-1, 3) for _, c in history.scored(r)) > FINALISTS
    assert len(finalists) == on_trial and finalists[0] == history.best(3)
    best = min(finalists, key=lambda c: history.score(c, plan.final_seeds))
    assert (step.round, step.step) == (best.round, best.step)


@pytest.mark.parametrize(
    "start, on_trial, recommended",  # its losses by seed, where the proposal has .6 on all
    [
        ((0.9, 0.9, 0.1, 0.1, 0.1), False, 0),  # the proposal is better by .3 on both seeds: shown
        ((1.5, 0.61, 0.1, 0.1, 0.1), True, -1),  # better on both, but not shown to be
        ((1.5, 0.61, 0.6, 0.6, 0.6), True, 0),
    ],
)
def test_the_start_is_on_trial_where_a_proposal_is_not_shown_to_be_better(start, on_trial, recommended):
    def run(slot):
        trained = unbalanced(slot, lambda r: 0.6)
        if slot.kind == "measure" or slot.round >= 0 or slot.replica >= 5:
            return trained
        return replace(trained, value=start[slot.replica])

    plan = replace(RUN_OFF, rounds=1)
    step, _, finished = simulate(plan, run=run)
    rounds = [c.round for c in History(plan, finished).finalists(1)]
    assert rounds == ([0, -1] if on_trial else [0])
    assert step.round == recommended
    assert len(rounds) * plan.final_seeds <= plan.run_off_trainings


def test_a_lost_training_counts_before_any_loss():
    def run(slot):
        if (slot.round, slot.step, slot.replica) == (0, 0.5, 3):
            return Run(slot.key, "failed", slot.widths, error="training loss is nan")
        return replace(lucky(slot), value=0.1) if (slot.round, slot.step) == (0, 0.5) else lucky(slot)

    step, _, _ = simulate(RUN_OFF, run=run)
    assert (step.round, step.step) not in ((0, 0.5), (1, 0.5))


def test_until_the_run_off_is_over_the_best_scored_is_the_one():
    _, asked, finished = simulate(RUN_OFF, run=lucky)
    last = max(i for i, s in enumerate(asked) if s.replica == 4)
    for runs in (finished[:last], finished[: last - 1]):
        history = History(RUN_OFF, runs)
        assert history.recommended(2) == history.best(2)
    assert History(RUN_OFF, finished[: last + 1]).recommended(2) != history.best(2)


@pytest.mark.parametrize("seed", range(5))
def test_any_number_of_workers_comes_to_the_same_end(seed):
    noise = random.Random(seed)
    undisturbed = simulate(RUN_OFF, run=lucky)
    workers, order = noise.randint(2, 6), random.Random(seed)
    step, asked, _ = simulate(RUN_OFF, workers=workers, run=lucky, order=order)
    assert step == undisturbed[0]
    assert sorted(s.key for s in asked) == sorted(s.key for s in undisturbed[1])
    # Nothing of the verdict is trained before the run-off is over.
    replicas = [s.replica for s in asked if s.kind in ("score", "baseline", "report")]
    assert replicas.index(5) > max(i for i, k in enumerate(replicas) if k == 4)


def test_more_rounds_begin_where_the_scores_say_and_have_a_run_off_of_their_own():
    _, before, finished = simulate(RUN_OFF, run=lucky)
    more = RUN_OFF.going_on(3)
    step = next_step(more, finished)
    assert isinstance(step, Slot)
    assert (step.kind, step.round) == ("measure", 2)
    assert step.widths == more.over_wide(History(more, finished).relative(1, 0.5))
    while isinstance(step, Slot):
        finished.append(lucky(step))
        step = next_step(more, finished)
    assert not isinstance(step, Wait)
    trained = [run.key for run in finished]
    assert len(trained) == len(set(trained)) > len(before)  # what an earlier run-off had trained is not again


@pytest.mark.parametrize("plan", [replace(PLAN, rounds=1), replace(RUN_OFF, rounds=1)], ids=["none", "one"])
def test_there_is_none_where_it_is_not_asked_for_or_has_nothing_to_choose_from(plan):
    def run(slot):  # no direction, so no proposal: the uniform network alone
        trained = unbalanced(slot, lambda r: 1.0)
        return replace(trained, prune_ratio={"a": 0.5, "b": 0.5}) if slot.kind == "measure" else trained

    step, asked, finished = simulate(plan, run=run)
    assert step.round == -1
    assert not History(plan, finished).run_off(1)
    assert [s.replica for s in asked if s.kind == "baseline"] == [0, *plan.fresh]


@pytest.mark.usefixtures("working_folder")
def test_a_search_shows_its_run_off(tmp_path):
    study = write_study(tmp_path, ("report_seeds=2", "report_seeds=3"))
    assert command("launch", study, "--final-seeds", "2").code == 0
    summary = json.loads(command("show", "--json").out)
    assert (summary["selection_seeds"], summary["run_off_seeds"]) == (4, 2)
    on_trial = len(summary["run_off"])
    assert 1 <= on_trial <= 3 and {c["val_loss"]["n"] for c in summary["run_off"]} == {4}
    best = min(summary["run_off"], key=lambda c: c["val_loss"]["mean"])
    chosen = summary["candidate"] or summary["baseline"]
    assert chosen["widths"] == best["widths"]
    assert "run-off" in command("show").out
    # The figure has these again, on all seeds; the last point's cost is that of the search.
    optuna_study = optuna.load_study(study_name="tiny", storage=URL)
    found = scored_candidates(summary, trials_of(optuna_study))
    left = [c for c in found if c.val_loss["n"] == 1]  # behind on the first of two seeds
    assert sorted(c.val_loss["n"] for c in found)[len(left) :] == [2] * (3 - len(left)) + [4] * on_trial
    assert found[-1].search_cost == pytest.approx(summary["cost"]["in_uniform_trainings"])
    # The sampler, asked once more, says what the search says.
    trial = optuna.load_study(study_name="tiny", storage=URL, sampler=GrowShrinkSampler()).ask(
        search_space(plan_of(optuna_study).plan)
    )
    assert trial.params == best["widths"]


def test_the_test_split_is_not_read_in_the_run_off(tmp_path):
    data = "(x[:64], y[:64]), (x[64:80], y[64:80]), (x[80:], y[80:])"
    study = load_study(
        str(write_study(tmp_path, ("final_seeds=0", "final_seeds=2"), (DATA, f"return {data}")))
    )
    plan = prepare(study).plan
    runner = TrialRunner(study.study, SearchPlan(plan))
    tested = {
        (kind, k): "test_loss" in runner.run(Slot(kind, -1, k, plan.baseline))
        for kind, k in [("score", 0), ("score", 3), ("baseline", 3), ("baseline", 4), ("report", 4)]
    }
    assert [key for key, read in tested.items() if read] == [("baseline", 4), ("report", 4)]

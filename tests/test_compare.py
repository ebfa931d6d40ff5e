"""``widthsearch compare``: the table, the JSON, the figure, resuming; refusals in one line."""

import json
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from commands import (
    BUDGET,
    Quiet,
    assert_refused,
    clean_process,
    command,
    complete,
    here,
    real_command,
    trials,
    write_study,
)

from widthsearch import Objective
from widthsearch.database.records import PLAN
from widthsearch.driver.launch import Question, launch
from widthsearch.driver.questions import make_comparison
from widthsearch.maths.holm import holm
from widthsearch.plans.arm import at_budget
from widthsearch.plans.arms import ARMS
from widthsearch.plans.kinds import read_plan

pytestmark = pytest.mark.usefixtures("working_folder")

NAME = "tiny-compare"
OPTIONS = ("--budgets", "1/4,1/2", "--repeats", "2", "--cost", "18")
EVERY = [*(arm for arm in ARMS if arm != "gp"), "random*2"]


EDITS = ((BUDGET, 'budget=Budget(macs="0.5x", params="0.5x")'), ("final_seeds=0", "final_seeds=1"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, *EDITS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """A comparison of all arms but ``gp``, run to its end without Ray: its URL and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    file = write_study(folder, *EDITS)
    url = f"sqlite:///{folder / 'whole.db'}"
    plot = folder / "plot.html"
    result = command(
        *("compare", file, *OPTIONS, "--storage", url, "--workers", "0", "--plot", plot),
        *("--arms", ",".join(EVERY)),
    )
    assert result.code == 0, result.err
    return url, result.out, plot.read_text()


def test_the_table_has_every_arm_under_every_budget(whole):
    _, out, _ = whole
    page = out[out.index(f"{NAME}  finished") :]
    for arm in EVERY:
        lines = [line.split() for line in page.splitlines() if line.split()[:1] == [arm]]
        assert len(lines) == 2 * 2, arm  # two tables per budget
    assert "2 repeats" in page and "Holm's method" in page


def test_macs_and_parameters_stand_beside_each_gain(whole):
    url, out, html = whole
    page = out[out.index(f"{NAME}  finished") :]
    tables = [line for line in page.splitlines() if "gain over uniform" in line]
    assert [line.split()[:3] for line in tables] == [["arm", "MACs", "params"]] * 2
    assert html.count("<th>arm</th>") == 4 and "Holm&#x27;s method" in html
    shown = json.loads(command("show", "--json", "--storage", url).out)
    rows = [line.split() for line in page.splitlines()]
    for entry in shown["budgets"]:
        for a in entry["arms"]:
            costs = [f"{sum(a[of]) / 2:,.0f}" for of in ("macs", "params")]
            assert [a["arm"], *costs] in [row[:3] for row in rows]


def test_show_prints_the_same_page_and_list_names_the_comparison(whole):
    url, out, _ = whole
    shown = command("show", NAME, "--storage", url)
    assert shown.out.strip() in out
    assert NAME in command("list", "--storage", url).out


def test_json_holds_what_the_table_and_the_figure_need(whole):
    url, _, _ = whole
    shown = json.loads(command("show", "--json", "--storage", url).out)
    assert [entry["budget"] for entry in shown["budgets"]] == [
        {"macs": 89, "params": 96, "latency": None},
        {"macs": 178, "params": 193, "latency": None},
    ]
    for entry in shown["budgets"]:
        assert [a["arm"] for a in entry["arms"]] == EVERY
        for a in entry["arms"]:
            assert len(a["widths"]) == len(a["course"]) == 2  # repeats
            assert all(macs <= entry["budget"]["macs"] for macs in a["macs"])
            assert all(params <= entry["budget"]["params"] for params in a["params"])
            assert a["search_cost"] <= 20 * (2 if a["arm"] == "random*2" else 1) + 1e-9
            assert a["val_loss"]["n"] == 2 and a["val_loss"]["repeats"] == 2
            assert 0 <= a["val_accuracy"]["mean"] <= 1
            assert a["cost_to_close"] <= a["search_cost"]
        by_arm = {a["arm"]: a for a in entry["arms"]}
        difference = by_arm["uniform"]["val_loss"]["mean"] - by_arm["random"]["val_loss"]["mean"]
        assert by_arm["random"]["gain_over_uniform"]["mean"] == pytest.approx(difference)
        assert by_arm["uniform"]["gain_over_uniform"]["ci95"] == [0.0, 0.0]
    for gain, reference in (("gain_over_uniform", "uniform"), ("gain_over_ours", "grow-shrink")):
        arms = [a for entry in shown["budgets"] for a in entry["arms"] if a["arm"] != reference]
        # All differences to one arm are one family, under all budgets.
        assert [a[gain]["p_holm"] for a in arms] == pytest.approx(holm([a[gain]["p"] for a in arms]))


def test_equal_ratio_trains_the_over_wide_network_and_cuts_it_to_the_uniform_widths(whole):
    url, _, _ = whole
    pruned = [t for t in trials(url, NAME) if t.user_attrs["kind"] == "pruned"]
    uniform = [t for t in trials(url, NAME) if t.user_attrs["kind"] == "report"]
    assert len(pruned) == 2 * 2
    for t in pruned:
        kept = t.user_attrs["kept"]
        assert any(kept == u.params for u in uniform if u.user_attrs["budget"] == t.user_attrs["budget"])
        assert t.user_attrs["training_macs"] == 2 * 3 * t.user_attrs["macs"] * 64  # trained twice
        assert max(t.constraints.values()) > 0  # the network that was trained is over the budget


def test_what_a_sampler_asked_for_stands_in_its_trials(whole):
    url, _, _ = whole
    study = optuna.load_study(study_name=NAME, storage=url)
    plan = read_plan(study.user_attrs[PLAN])
    of_arm = [t for t in study.trials if t.user_attrs.get("arm") == "tpe"]
    assert len(of_arm) > 20
    # Starts follow from the plan, and what comes into the run-off from what was asked for before.
    asked = [t for t in of_arm if "asked" in t.user_attrs]
    first = [t for t in of_arm if t.user_attrs["replica"] == 0]
    assert asked == [t for t in first if t.user_attrs["round"] >= 0]
    assert len(first) == len(asked) + 2 * 4  # starts, budgets times repeats
    assert 1 * 4 <= len(of_arm) - len(first) <= 3 * 4  # finalists of the run-off, on one seed more
    for t in asked:
        search = replace(plan.plan, budget=plan.budgets[t.user_attrs["budget"]])
        assert at_budget(search, tuple(t.user_attrs["asked"])) == t.params
    assert not any("asked" in t.user_attrs for t in study.trials if t.user_attrs.get("arm") != "tpe")


def test_the_figure_is_one_page_that_needs_no_network(whole):
    _, _, page = whole
    assert page.count("<script src=") == 0
    # Above it verdict, budget, n and tables.
    assert page.index('class="verdict"') < page.index("<table>") < page.index('class="figure"')
    assert "2 repeats" in page and "178 MACs, 193 parameters" in page and ">n</th>" in page
    for arm in EVERY:
        assert f'"name":"{arm}"' in page.replace(" ", "")


@pytest.mark.parametrize("stop_at", [0, pytest.param(60, marks=pytest.mark.nightly)])
def test_an_interrupted_comparison_is_shown_and_resumed_to_the_same_end(whole, study: Path, stop_at: int):
    """(That it is the same end wherever it was interrupted is shown in memory: test_interrupted.py.)"""
    with clean_process():
        ended = launch(
            str(study),
            here(Quiet(stop_at)),
            changes={},
            question=Question(
                "compare",
                lambda s, plan: make_comparison(
                    s, plan, arms=EVERY, shares=("1/4", "1/2"), repeats=2, cost=18
                ),
            ),
        )
    assert (ended.name, ended.status) == (NAME, "interrupted")
    assert "interrupted" in command("show").out
    json.loads(command("show", "--json").out)
    if stop_at:
        assert command("resume", NAME).code == 0
        assert complete(trials(name=NAME)) == complete(trials(whole[0], NAME))


@pytest.mark.nightly
@pytest.mark.slow
def test_a_comparison_of_its_own_budget_with_ray(study: Path):
    """Whose slots know their arm, what a sampler asked for, and networks that are pruned, on their way to a worker."""
    arms = ("--arms", "uniform,equal-ratio,one-shot,tpe")
    assert command("compare", study, *arms, "--workers", "0", "--name", "one").code == 0
    result = real_command("compare", study, *arms, "--workers", "2", "--name", "two")
    assert result.code == 0, result.err
    assert complete(trials(name="two")) == complete(trials(name="one"))


@pytest.mark.parametrize(
    "options, fragments",
    [
        (("--arms", "uniform,best"), ("'best'", "grow-shrink")),
        (("--arms", "uniform,uniform"), ("uniform,uniform", "once")),
        (("--arms", "tpe*0.1"), ("tpe*0.1", "factor")),
        (("--budgets", "1/4,huge"), ("huge",)),
        (("--budgets", "1/400"), ("too small",)),
        (("--cost", "2"), ("--cost 2", "uniform trainings already: give --cost")),
        (("--cost", "3", "--arms", "uniform,tpe"), ("--cost 3", "run-off", "tpe", "give --cost")),
        (("--plot", "p.png", "--arms", "uniform"), ("p.png", ".html")),
    ],
)
def test_wrong_use_is_one_line(study: Path, options, fragments):
    result = command("compare", study, "--workers", "0", *options)
    assert_refused(result, *fragments)
    assert not Path("widthsearch.db").exists()


def test_a_finished_comparison_has_no_more_rounds(whole):
    url, _, _ = whole
    assert_refused(command("resume", NAME, "--rounds", "9", "--storage", url), "comparison")
    before = Path(url.removeprefix("sqlite:///")).stat().st_size
    assert command("resume", NAME, "--storage", url).code == 0
    assert Path(url.removeprefix("sqlite:///")).stat().st_size == before


def test_optunas_own_samplers_work_on_the_objective(study: Path):
    with clean_process():
        objective = Objective(str(study))
        found = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        found.optimize(objective, n_trials=4)
        again = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        again.optimize(Objective(str(study)), n_trials=4)
    assert [t.value for t in found.trials] == [t.value for t in again.trials]
    for t in found.trials:
        assert set(t.params) == {"fc1", "fc2"}
        assert t.user_attrs["macs"] <= 178 and t.user_attrs["params"] <= 193

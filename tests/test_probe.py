"""``widthsearch probe``: the starts that were asked for, one search each, back or not, and how far apart they end."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_plan
from commands import (
    BUDGET,
    Quiet,
    assert_refused,
    clean_process,
    command,
    complete,
    here,
    trials,
    write_study,
)
from hypothesis import given
from hypothesis import strategies as st

from widthsearch.driver.launch import Question, launch
from widthsearch.driver.questions import make_probe
from widthsearch.errors import UsageError
from widthsearch.plans.history import PAIR, History
from widthsearch.plans.kinds import read_plan
from widthsearch.plans.plan import Done, Failed, Run
from widthsearch.plans.probe import PLAIN, WITHIN, back_after, branch_of, close, spread
from widthsearch.plans.search import next_step as next_of_search
from widthsearch.report.probe import end_of
from widthsearch.show.formats import interval

pytestmark = pytest.mark.usefixtures("working_folder")

PLAN = replace(test_plan.PLAN, doublings=2)
PROBE = make_probe(PLAN, each=20, scale=("2", "0.5"), constant=True, again=1)

# Starts


def test_starts_have_the_widths_that_were_asked_for_under_the_plain_budget():
    probe = make_probe(
        replace(PLAN, widths={"a": 40, "b": 7}),
        inflate=("b=0.1", "a=2.5"),
        each=20,
        scale=("0.5",),
        constant=True,
    )
    assert {name: plan.widths for name, plan in probe.plans.items()} == {
        "plain": {"a": 40, "b": 7},
        "b x0.1": {"a": 40, "b": 1},  # never nothing
        "a x2.5": {"a": 100, "b": 7},
        "a x20": {"a": 800, "b": 7},
        "b x20": {"a": 40, "b": 140},
        "all x0.5": {"a": 20, "b": 4},
        "constant": {"a": 40, "b": 40},
    }
    assert all(plan.budget == PLAN.budget for plan in probe.plans.values())
    assert [s.layer for s in probe.starts.values()] == [None, "b", "a", "a", "b", None, None]


def test_an_inflated_width_reaches_the_networks_unclipped():
    """At the budget, and over-wide: the inflated layer is 20 times the other one, as far as whole widths can be."""
    plan = PROBE.plans["a x20"]
    for widths in (plan.over_wide(plan.widths), replace(plan, budget={"macs": 10**6}).baseline):
        assert abs(widths["a"] - 20 * widths["b"]) <= 20  # one unit of b


def test_rounds_are_at_least_what_is_asked_for():
    assert make_probe(PLAN, constant=True).plan == PLAN  # nothing asked: the study's own
    more = make_probe(PLAN, constant=True, rounds=9).plan
    assert (more.rounds, more.at_least) == (9, 9)
    fewer = make_probe(PLAN, constant=True, rounds=2).plan
    assert (fewer.rounds, fewer.at_least) == (PLAN.rounds, 2)


@pytest.mark.parametrize(
    "asked, fragments",
    [
        ({"inflate": ("c=20",)}, ("'c'", "a, b")),
        ({"inflate": ("a",)}, ("'a'", "conv1=20")),
        ({"inflate": ("=20",)}, ("'=20'", "conv1=20")),
        ({"inflate": ("a=",)}, ("'a='", "above 0")),
        ({"inflate": ("a=0",)}, ("'a=0'", "above 0")),
        ({"inflate": ("a=-3",)}, ("'a=-3'", "above 0")),
        ({"inflate": ("a=nan",)}, ("'a=nan'", "above 0")),
        ({"inflate": ("a=1e99",)}, ("'a=1e99'", "at most")),
        ({"each": 0.0}, ("--factor 0", "above 0")),
        ({"scale": ("2", "")}, ("''", "above 0")),
        ({"scale": ("inf",)}, ("'inf'", "at most")),
        ({}, ("nothing to probe", "--each")),
    ],
)
def test_what_cannot_be_probed_is_refused(asked, fragments):
    with pytest.raises(UsageError) as error:
        make_probe(PLAN, **asked)
    for fragment in fragments:
        assert fragment in str(error.value)


# One search from many starts, with pretended workers


def train(slot):
    run = test_plan.pretend(replace(slot, branch=None))
    return replace(run, branch=slot.branch)


def next_of(plan, runs):
    return plan.next_step(runs)


def simulate(probe=PROBE, workers=1, order=None, run=train):
    return test_plan.simulate(read_plan(probe.to_json()), workers, run, order, ask=next_of, most=5000)


@pytest.fixture(scope="module")
def whole():
    return simulate()


def identity(slot):
    return (slot.branch, slot.key, tuple(sorted(slot.widths.items())))


def test_the_same_proportions_are_the_same_search_and_trained_once(whole):
    step, asked, _ = whole
    assert isinstance(step, Done)
    assert {s.branch.arm for s in asked} == {"plain", "a x20", "b x20", "again 1"}
    # The plain seed is constant already, so scaled ones and the constant one are the same network.
    assert PROBE.same_as == {
        **dict.fromkeys(("plain", "all x2", "all x0.5", "constant"), "plain"),
        **{name: name for name in ("a x20", "b x20", "again 1")},
    }


@pytest.mark.parametrize("name", ["plain", "a x20", "again 1"])
def test_every_start_is_the_search_that_launch_makes_from_its_widths(whole, name):
    """Slot by slot; with the same random numbers, except for those that are made again."""
    _, asked, finished = whole
    plan = replace(PLAN, widths=PROBE.plans[name].widths)
    own = [s for s in asked if s.branch == branch_of(name)]
    runs = [replace(r, branch=None) for r in finished if r.branch == branch_of(name)]
    for k, slot in enumerate(own):
        assert next_of_search(plan, runs[:k]) == replace(slot, branch=None)
        fresh = slot.kind != "measure" and slot.replica >= plan.seeds
        same = slot.random_seed(PROBE.plan_of(slot).seed) == slot.random_seed(PLAN.seed)
        assert same == (fresh or name != "again 1")


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_and_the_order_in_which_they_end_change_nothing(whole, workers):
    many = simulate(workers=workers, order=random.Random(workers))
    assert many[0] == whole[0]
    assert sorted(map(repr, map(identity, many[1]))) == sorted(map(repr, map(identity, whole[1])))


def test_a_probe_interrupted_anywhere_goes_on_to_the_same_end(whole):
    _, asked, finished = whole
    for k in range(0, len(asked), 5):
        slot = asked[k]
        runs = [*finished[:k], Run(slot.key, "interrupted", slot.widths, branch=slot.branch)]
        assert next_of(read_plan(PROBE.to_json()), runs) == slot


COST_AWARE = make_probe(replace(PLAN, widths={"a": 60, "b": 20}, cost_aware_start=True), each=20, again=1)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_searches_that_go_on_from_the_same_network_are_trained_once(workers):
    end, asked, finished = simulate(COST_AWARE, workers, random.Random(workers))
    assert isinstance(end, Done)
    first = [(s, COST_AWARE.plan_of(s).seed) for s in asked if s.kind == "measure" and s.round == 0]
    made = [(s.replica, tuple(s.widths.items()), seed) for s, seed in first]
    assert len(made) == len(set(made)) == 3 * PAIR  # plain, cost-aware, and plain again; two measures agree
    for name, found in COST_AWARE.histories(finished).items():
        _, _, alone = test_plan.simulate(COST_AWARE.plans[name])
        shared = {(r.key, tuple(r.widths.items())) for of in found.runs.values() for r in of}
        own = {(r.key, tuple(r.widths.items())) for r in alone}
        # It may know of more than its own: a start that left in it and stayed in another, or a proposal of
        # another that is its baseline.  It does not go by these.
        assert own <= shared
        assert found.best(PLAN.rounds) == History(COST_AWARE.plans[name], alone).best(PLAN.rounds)
    kinds = {start: {s.kind for s in asked if s.branch == branch_of(start)} for start in COST_AWARE.searches}
    # Blown up either way, cost-aware widths are better, and both searches are that of cost-aware widths.
    assert kinds["b x20"] == {"baseline"} and kinds["a x20"] >= {"measure", "report"}
    assert kinds["plain"] == kinds["again 1"] == {"baseline", "score", "measure", "report"}


def test_a_probe_with_shared_searches_interrupted_anywhere_goes_on_to_the_same_end():
    _, asked, finished = simulate(COST_AWARE)
    for k in range(0, len(asked), 3):
        slot = asked[k]
        runs = [*finished[:k], Run(slot.key, "interrupted", slot.widths, branch=slot.branch)]
        assert next_of(read_plan(COST_AWARE.to_json()), runs) == slot


def lost_measures(*starts):
    def run(slot):
        if slot.kind == "measure" and slot.branch.arm in starts:
            return Run(slot.key, "failed", slot.widths, error="loss is nan", branch=slot.branch)
        return train(slot)

    return run


def test_a_start_whose_search_fails_does_not_stop_the_others():
    step, asked, _ = simulate(run=lost_measures("plain"))
    assert isinstance(step, Done)
    assert {s.branch.arm for s in asked if s.kind == "report"} == {"a x20", "b x20", "again 1"}
    step, _, _ = simulate(run=lost_measures(*PROBE.searches))
    assert isinstance(step, Failed)
    assert "loss is nan" in step.because


def test_an_inflated_layer_comes_back_where_the_measures_say_so(whole):
    """The pretended layers need 30 and 6 units, wherever the search starts."""
    _, _, finished = whole
    wanted = history(finished, PLAIN).best(PLAN.rounds).widths
    found = history(finished, "b x20")
    rounds = sum(bool(found.prune_ratios(r)) for r in range(PLAN.rounds))
    course = [found.best(r + 1).widths for r in range(rounds)]
    assert found.baseline.widths["b"] > 4 * wanted["b"]
    assert back_after(course, wanted, ["b"]) is not None


def history(runs, name):
    return History(PROBE.plans[name], [r for r in runs if r.branch == branch_of(name)])


# Back or not, and how far apart


@pytest.mark.parametrize(
    "widths, after",
    [
        ([80, 40, 14, 11], 1),  # of the start, round 0, round 1 and round 2
        ([80, 12, 40, 15], 2),  # back and away again does not count
        ([9, 10, 11], -1),
        ([15], -1),  # 1.5 times is close
        ([16], None),
        ([6], None),  # so is a layer that fell too far
        ([12, 80], None),
        ([], None),
    ],
)
def test_a_layer_is_back_from_the_round_on_after_which_it_stays_close(widths, after):
    course = [{"a": w, "b": 1000} for w in widths]
    assert back_after(course, {"a": 10, "b": 1}, ["a"]) == after


def test_where_all_widths_were_changed_all_must_come_back():
    course = [{"a": 10, "b": 9}, {"a": 10, "b": 2}]
    assert back_after(course, {"a": 10, "b": 2}, ["a", "b"]) == 0
    assert back_after(course, {"a": 10, "b": 2}, ["a"]) == -1


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_close_is_a_factor_either_way(a, b):
    assert close(a, b) == close(b, a) == (1 / WITHIN <= a / b <= WITHIN)


def test_spread_is_the_deviation_of_log2_widths():
    networks = [{"a": 4, "b": 10}, {"a": 8, "b": 10}, {"a": 16, "b": 10}]
    assert spread(networks) == {
        "a": {"log2_sd": 1.0, "smallest": 4, "largest": 16, "ratio": 4.0},
        "b": {"log2_sd": 0.0, "smallest": 10, "largest": 10, "ratio": 1.0},
    }
    assert spread(networks[:1])["a"] == {"log2_sd": None, "smallest": 4, "largest": 4, "ratio": 1.0}
    assert spread([]) == {}


# The command

NAME = "tiny-probe"
ASKED = {"inflate": ("fc2=20",), "scale": ("2",), "constant": True, "again": 1, "rounds": 2}
OPTIONS = ("--inflate", "fc2=20", "--scale", "2", "--constant", "--again", "1", "--rounds", "2")
STARTS = ["plain", "fc2 x20", "all x2", "constant", "again 1"]


def tiny(folder: Path) -> Path:
    return write_study(folder, (BUDGET, 'budget=Budget(macs="0.5x", params="0.5x")'))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tiny(tmp_path)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory):
    """A probe run to its end without Ray: its URL, what it printed, its figure."""
    folder = tmp_path_factory.mktemp("probed")
    url = f"sqlite:///{folder / 'probed.db'}"
    plot = folder / "plot.html"
    result = command("probe", tiny(folder), *OPTIONS, "--storage", url, "--workers", "0", "--plot", plot)
    assert result.code == 0, result.err
    return url, result.out, plot.read_text()


def shown(url):
    return json.loads(command("show", NAME, "--json", "--storage", url).out)


def test_json_holds_every_start_its_course_and_its_end(probed):
    found = shown(probed[0])
    assert [s["start"] for s in found["starts"]] == STARTS
    by_name = {s["start"]: s for s in found["starts"]}
    plain = by_name["plain"]
    wanted = end_of(plain)["widths"]
    for s in found["starts"]:
        assert len(s["course"]) == 2 + len(s["rounds"]) == 4  # two rounds, whatever would stop it
        start = next(n for n in s["starting_networks"] if n["start"] == s["started_from"])
        assert s["course"][:2] == [s["baseline"]["widths"], start["widths"]]
        assert s["course"][-1] == (s["candidate"] or s["baseline"])["widths"]
        assert s["baseline"]["macs"] <= found["budget"]["macs"] == plain["seed"]["macs"] // 2
        assert s["fresh_loss"]["n"] == 2
        for before, best, r in zip(s["course"][1:], s["course"][2:], s["rounds"], strict=False):
            assert best in (r["proposal"], before)
        if s is not plain:
            layers = [s["layer"]] if s["layer"] else wanted
            assert s["back_after"] == back_after(s["course"][1:], wanted, layers)
            assert s["close"] == [sum(close(w[v], wanted[v]) for v in wanted) for w in s["course"]]
            difference = plain["fresh_loss"]["mean"] - s["fresh_loss"]["mean"]
            assert s["gain_over_plain"]["mean"] == pytest.approx(difference)
    assert by_name["all x2"]["same_as"] == "plain"
    assert by_name["all x2"]["gain_over_plain"]["ci95"] == [0.0, 0.0]
    assert by_name["fc2 x20"]["seed"]["widths"] == {"fc1": 16, "fc2": 240}
    ends = [end_of(s)["widths"] for s in found["starts"] if s["same_as"] is None]
    assert found["spread"]["of"] == [s for s in STARTS if s not in ("all x2", "again 1")]
    assert found["spread"]["recommended"] == spread(ends[:-1])
    assert found["spread_by_chance"]["recommended"] == spread([ends[0], ends[-1]])


def test_fresh_losses_are_those_of_the_trainings_on_fresh_seeds(probed):
    """Trainings of the same widths on the same fresh seed end alike, whichever search asked for them."""
    by_network = {}
    for t in trials(probed[0], NAME):
        a = t.user_attrs
        if a["kind"] != "measure" and a["replica"] >= 2:
            by_network.setdefault((a["replica"], *t.params.values()), set()).add(t.value)
    assert all(len(losses) == 1 for losses in by_network.values())
    for s in shown(probed[0])["starts"]:
        widths = end_of(s)["widths"].values()
        losses = [next(iter(by_network[(k, *widths)])) for k in (2, 3)]
        assert s["fresh_loss"]["mean"] == pytest.approx(np.mean(losses))


def test_the_page_says_for_every_start_where_it_leads(probed):
    url, out, _ = probed
    page = out[out.index(f"{NAME}  finished") :]
    assert command("show", NAME, "--storage", url).out.strip() == page.strip()
    assert "within a factor 1.5 of what the plain search found" in page
    assert "all x2: the same proportions as plain, and so the same search" in page
    for s in shown(url)["starts"]:
        assert "-".join(map(str, end_of(s)["widths"].values())) in page
        if s["same_as"] is None and s["start"] != "plain":
            line = next(
                x
                for x in page.splitlines()
                if x.startswith(s["start"]) and re.search("not in 2|round|the start", x)
            )
            after = s["back_after"]
            said = "not in 2 rounds" if after is None else "the start" if after < 0 else f"round {1 + after}"
            assert said in line
            assert interval(s["gain_over_plain"]) in line
    assert NAME in command("list", "--storage", url).out


def test_the_figure_is_one_page_with_a_line_per_start_and_variable(probed):
    _, _, page = probed
    assert page.count("<script src=") == 0
    for name in STARTS:
        lines = page.count(f'"name":"{name}"')
        assert lines == (0 if name == "all x2" else 2)
    assert '"type":"log"' in page


def test_an_interrupted_probe_is_resumed_to_the_same_end(probed, study: Path):
    with clean_process():
        ended = launch(
            str(study),
            here(Quiet(stop_at=21)),  # in the middle of the second search
            changes={},
            question=Question("probe", lambda _, plan: make_probe(plan, **ASKED)),
        )
    assert (ended.name, ended.status) == (NAME, "interrupted")
    assert "interrupted" in command("show").out
    json.loads(command("show", "--json").out)
    assert command("resume", NAME).code == 0
    assert by_start(trials(name=NAME)) == by_start(trials(probed[0], NAME))


def by_start(found):
    return {s: complete([t for t in found if t.user_attrs["arm"] == s]) for s in STARTS}


def test_a_finished_probe_makes_more_rounds(study: Path):
    assert command("probe", study, "--inflate", "fc1=20", "--workers", "0").code == 0
    assert all(len(s["rounds"]) == 1 for s in shown("sqlite:///widthsearch.db")["starts"])
    assert_refused(command("resume", NAME, "--rounds", "1"), "--rounds 1")
    assert command("resume", NAME, "--rounds", "3").code == 0
    assert all(len(s["rounds"]) == 3 for s in shown("sqlite:///widthsearch.db")["starts"])


@pytest.mark.parametrize(
    "options, fragments",
    [
        (("--inflate", "fc9=20"), ("'fc9'", "fc1, fc2")),
        (("--inflate", "fc1"), ("'fc1'", "conv1=20")),
        (("--each", "--factor", "-1"), ("--factor -1", "above 0")),
        ((), ("nothing to probe",)),
        (("--constant", "--plot", "p.png"), ("p.png", ".html")),
    ],
)
def test_wrong_use_is_one_line(study: Path, options, fragments):
    assert_refused(command("probe", study, "--workers", "0", *options), *fragments)
    assert not Path("widthsearch.db").exists()

"""Figures show the summary's numbers, at every moment of a search, and for large ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest
from commands import MODEL, TRIALS, URL, interrupt, write_study
from played import play

from widthsearch.database.connection import Database
from widthsearch.database.records import load
from widthsearch.report.search import summarise
from widthsearch.report.trials import Trial, trials_of
from widthsearch.report.types.search import SearchSummary
from widthsearch.show.search_figures import (
    _spread_out,
    loss_figure,
    prune_ratio_figure,
    seeds_figure,
    widths_figure,
)
from widthsearch.show.style import colour_of

pytestmark = pytest.mark.usefixtures("working_folder")

CHAIN = [8, *(20 + k % 7 for k in range(50)), 3]
LAYERS = ", nn.ReLU(), ".join(f"nn.Linear({a}, {b})" for a, b in zip(CHAIN, CHAIN[1:], strict=False))
DEEP = (MODEL, f"return nn.Sequential({LAYERS})")


class Shown(NamedTuple):
    summary: SearchSummary
    rows: list[Trial]

    def figures(self) -> list[Any]:
        return [
            prune_ratio_figure(*self),
            widths_figure(self.summary),
            loss_figure(*self),
            seeds_figure(*self),
        ]


def shown(study: optuna.Study) -> Shown:
    return Shown(summarise(study, URL), trials_of(study))


def traces(figure: Any) -> dict[str, dict[str, Any]]:
    """Name -> trace, as plain JSON."""
    return {trace.get("name", ""): trace for trace in json.loads(figure.to_json(engine="json"))["data"]}


def plain(values: Any) -> list[Any]:
    return list(values) if not isinstance(values, dict) else pytest.fail("numbers as base64")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Three rounds and the verdict."""
    folder = tmp_path_factory.mktemp("whole")
    url = f"sqlite:///{folder / 'widthsearch.db'}"
    changes = {"rounds": 3, "step_sizes": [0.5, 1], "tolerance": 0.0, "patience": 9, "report_seeds": 5}
    return shown(play(write_study(folder), url, 999, **changes))


def test_the_heat_map_is_the_rounds_prune_ratios(whole: Shown) -> None:
    heat = traces(prune_ratio_figure(*whole))[""]
    rounds = whole.summary["rounds"]
    assert heat["x"] == ["round 1", "round 2", "round 3"]
    for v, (variable, row) in enumerate(zip(("fc1", "fc2"), heat["z"], strict=True)):
        assert row == [r["prune_ratio"][variable] for r in rounds]
        for r, round_ in enumerate(rounds):
            mean, se = round_["prune_ratio"][variable], round_["prune_ratio_se"][variable]
            assert heat["text"][v][r] == f"{mean:.2f} ± {se:.2f}"
            name, replicas = heat["customdata"][v][r]
            own = [float(p) for p in replicas.split(", ")]
            assert (name, len(own)) == (variable, 2)
            assert sum(own) / 2 == pytest.approx(mean, abs=1e-3)


def test_widths_go_from_the_seed_to_the_recommendation(whole: Shown) -> None:
    found, summary = traces(widths_figure(whole.summary)), whole.summary
    networks = [summary["seed"]["widths"], summary["baseline"]["widths"]]
    if summary["started_from"] == "cost-aware":
        networks.append(summary["starting_networks"][1]["widths"])
    networks += [r["proposal"] for r in summary["rounds"] if r["proposal"]] + [summary["candidate"]["widths"]]
    for variable in ("fc1", "fc2"):
        assert plain(found[variable]["y"]) == [widths[variable] for widths in networks]
        places = found[variable]["x"]
        assert places[:2] == ["seed", "uniform"] and places[-1] == "recommended"
        assert ("cost-aware" in places) == (summary["started_from"] == "cost-aware")


def test_loss_against_cost_has_every_candidate_and_ends_at_the_search_cost(whole: Shown) -> None:
    found = traces(loss_figure(*whole))
    scored = [step["val_loss"] for r in whole.summary["rounds"] for step in r["steps"]]
    scored += [start["val_loss"] for start in whole.summary["starting_networks"][1:]]
    assert sorted(plain(found["scored"]["y"])) == pytest.approx(sorted(loss["mean"] for loss in scored))
    errors = sorted(plain(found["scored"]["error_y"]["array"]))
    assert errors == pytest.approx(sorted(loss["se"] or 0.0 for loss in scored))
    best = found["best so far"]
    assert best["x"] == sorted(best["x"])
    assert best["y"] == sorted(best["y"], reverse=True)
    stayed = [loss["mean"] for loss in scored if loss["n"] == 2]  # what left after one seed is not the best
    assert min(best["y"]) == pytest.approx(min(stayed))
    # Its last point is the last score of the search: nothing of the verdict is counted.
    assert best["x"][-1] == pytest.approx(whole.summary["cost"]["in_uniform_trainings"])
    base = found["uniform"]
    own = [
        r.val_loss for r in whole.rows if r.kind == "baseline" and r.replica < 2 and r.val_loss is not None
    ]
    assert plain(base["y"]) == pytest.approx([sum(own) / len(own)])


def test_seeds_are_paired_and_their_means_are_the_summarys(whole: Shown) -> None:
    every = json.loads(seeds_figure(*whole).to_json(engine="json"))["data"]
    summary = whole.summary
    left, right = ([t for t in every if t["xaxis"] == axis] for axis in ("x", "x2"))
    found = {trace["name"]: trace for trace in left}
    mean = found.pop("mean, standard error")
    networks = [summary["baseline"]["val_loss"], summary["candidate"]["val_loss"]]
    assert plain(mean["y"]) == pytest.approx([n["mean"] for n in networks])
    assert plain(mean["error_y"]["array"]) == pytest.approx([n["se"] for n in networks])
    pairs = {}
    for trace in found.values():
        y, text = trace["y"], trace["text"]
        assert y[2::3] == [None] * (len(y) // 3)  # pairs are not joined with each other
        pairs |= dict(zip(text[::3], zip(y[::3], y[1::3], strict=True), strict=True))
    losses = {
        kind: {f"seed {r.replica}": r.val_loss for r in whole.rows if r.kind == kind}
        for kind in ("baseline", "report")
    }
    assert pairs == {k: (losses["baseline"][k], own) for k, own in losses["report"].items()}
    assert len(pairs) == 5
    gains = [a - b for a, b in pairs.values()]
    assert sum(gains) / 5 == pytest.approx(summary["gain"]["mean"])
    # Beside them the same gains, sorted, over their mean and its interval.
    (interval,) = (t for t in right if t["name"] == "mean, 95 % interval")
    points = [p for t in right if t is not interval for p in zip(plain(t["y"]), plain(t["x"]), strict=True)]
    assert [x for _, x in sorted(points)] == pytest.approx(sorted(gains))
    assert plain(interval["x"]) == pytest.approx([summary["gain"]["mean"]])
    half = summary["gain"]["ci95"][1] - summary["gain"]["mean"]
    assert plain(interval["error_x"]["array"]) == pytest.approx([half])


def test_lines_have_their_names_at_their_ends_and_none_covers_another(whole: Shown) -> None:
    figure = widths_figure(whole.summary)
    assert not figure.layout.showlegend
    assert [a.text for a in figure.layout.annotations] == ["fc1", "fc2"]
    ends = _spread_out({"a": 10.0, "b": 10.0, "c": 10.5, "d": 80.0}, 64.0)
    places = sorted(ends.values())
    apart = 64 ** (1 / 18) * (1 - 1e-9)
    assert all(b / a >= apart for a, b in zip(places, places[1:], strict=False))
    assert sorted(ends, key=lambda v: ends[v]) == ["a", "b", "c", "d"]


@pytest.mark.sample(4)
@pytest.mark.parametrize("stop_at", range(TRIALS + 1))
def test_figures_of_a_search_at_every_moment(tmp_path: Path, stop_at: int) -> None:
    study = play(write_study(tmp_path), URL, stop_at)
    heat, widths, loss, seeds = (figure.to_json() for figure in shown(study).figures())
    kinds = {t.user_attrs["kind"] for t in study.trials}
    assert ("nothing measured yet" in heat) == ("measure" not in kinds)
    assert ("nothing scored yet" in loss) == ("nothing scored yet" in seeds) == ("baseline" not in kinds)
    assert "seed" in widths
    assert ("no fresh ones yet" in seeds) == ("report" not in kinds)


def test_running_and_failed_trials_are_no_numbers(tmp_path: Path) -> None:
    interrupt(write_study(tmp_path), 3)
    study = load("tiny", Database.open(URL))
    study.ask()
    now = shown(study)
    assert {row.state for row in now.rows} == {"COMPLETE", "FAIL"}
    for figure in now.figures():
        figure.to_json()


def test_fifty_variables_and_three_hundred_trials(tmp_path: Path) -> None:
    changes = {
        "rounds": 12,
        "replicas": 10,
        "seeds": 15,
        "report_seeds": 40,
        "tolerance": 0.0,
        "patience": 99,
    }
    now = shown(play(write_study(tmp_path, DEEP), URL, 300, **changes))
    assert len(now.rows) == 300
    heat, widths, loss, _ = figures = now.figures()
    assert sum(len(figure.to_json()) for figure in figures) < 1e6
    assert (len(heat.data[0].z), len(widths.data)) == (50, 50)
    assert len({trace.line.color for trace in widths.data}) == 50
    assert len(loss.data[0].x) == 2 + 12  # the starts, and a proposal per round


def test_a_name_is_shown_as_it_is(tmp_path: Path) -> None:
    layers = "nn.Sequential()\n    m.add_module('<b>x</b>&%{x}', nn.Linear(8, 16))\n"
    layers += "    m.add_module('relu', nn.ReLU())\n    m.add_module('out', nn.Linear(16, 3))\n    return m"
    study = play(write_study(tmp_path, (MODEL, f"m = {layers}")), URL, TRIALS)
    for figure in shown(study).figures()[:2]:
        page = json.dumps(json.loads(figure.to_json()))
        assert "<b>" not in page
        assert "&lt;b&gt;x&lt;/b&gt;&amp;%{x}" in page
        assert "%{x}" not in (figure.data[0].hovertemplate or "").replace(", %{x}", "")


def test_colours_of_prune_ratios_run_from_light_to_dark() -> None:
    brightness = [sum(bytes.fromhex(colour_of(k / 20)[1:])) for k in range(21)]
    assert brightness == sorted(brightness, reverse=True)
    assert colour_of(-1) == colour_of(0) != colour_of(1) == colour_of(2)

"""``widthsearch pruners``, ``launch --pruner`` and arms with a pruner: from the study file to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import (
    BUDGET,
    RECIPE,
    Quiet,
    assert_refused,
    clean_process,
    command,
    complete,
    here,
    setting,
    trials,
    write_study,
)

from widthsearch.driver.launch import Question, launch
from widthsearch.driver.questions import make_pruner_plan

pytestmark = pytest.mark.usefixtures("working_folder")

NAME = "tiny-pruners"
PRUNERS = ("l1", "obd")
OPTIONS = ("--pruners", ",".join(PRUNERS), "--levels", "1/2,0.25", "--seeds", "2")
OWN_LOOP = (RECIPE, "train=lambda model, data, report: report(val_loss=1.0),\n    steps=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """Two pruners, two levels, two seeds, without Ray: the URL, what was printed, and the figure."""
    folder = tmp_path_factory.mktemp("whole")
    url, plot = f"sqlite:///{folder / 'whole.db'}", folder / "plot.html"
    result = command(
        *("pruners", write_study(folder), *OPTIONS, "--storage", url, "--workers", "0", "--plot", plot)
    )
    assert result.code == 0, result.err
    return url, result.out, plot.read_text()


def without_clocks(found):
    """What runs found, apart from what they measured on a clock."""
    for _, _, attrs, _ in found.values():
        for row in attrs["levels"]:
            assert -9 < row.pop("time_saved") < 1
    return found


def test_the_table_has_every_pruner_at_every_level_and_says_who_wins(whole):
    _, out, _ = whole
    page = out[out.index(f"{NAME}  finished") :]
    for pruner in PRUNERS:
        rows = [line.split() for line in page.splitlines() if line.split()[:1] == [pruner]]
        assert [row[1] for row in rows] == ["0.5", "0.25"]
    assert "at equal weights" in page
    assert "at equal dense MACs" not in page  # only one of the two saves any


def test_json_has_means_over_seeds_and_show_prints_the_same_page(whole):
    url, out, _ = whole
    assert command("show", NAME, "--storage", url).out.strip() in out
    assert "comparison of pruners" in command("list", "--storage", url).out
    shown = json.loads(command("show", "--json", "--storage", url).out)
    assert (shown["status"], shown["levels"]) == ("finished", [0.5, 0.25])
    l1, obd = shown["pruners"]
    assert (l1["pruner"], obd["pruner"]) == PRUNERS
    for row in l1["levels"]:
        assert 1 - row["level"] <= row["macs_saved"]["mean"] < 1
        assert 0 < row["neurons_removed"]["mean"] < row["weights_removed"]["mean"]
    for row in obd["levels"]:
        assert row["macs_saved"]["mean"] == row["neurons_removed"]["mean"] == 0
        assert row["weights_removed"]["mean"] == pytest.approx(1 - row["level"], abs=0.01)
    for row in (*l1["levels"], *obd["levels"], shown["over_wide"]):
        assert row["val_loss"]["n"] == 2
        assert 0 <= row["val_accuracy"]["mean"] <= 1
    won = shown["winners"]["weights_removed"]
    assert won["mean"][won["pruner"]] >= won["mean"][won["next"]]
    assert shown["winners"]["macs_saved"] is None


def test_the_figure_has_four_panels_with_every_pruner(whole):
    _, _, page = whole
    compact = page.replace(" ", "")
    for pruner in PRUNERS:
        assert compact.count(f'"name":"{pruner}"') == 4
    for title in (
        "weights removed",
        "neurons removed",
        "MACs that a dense machine saves",
        "measured inference time",
    ):
        assert title in page
    assert page.count("<script src=") == 0


@pytest.mark.parametrize("stop_at", [3])
def test_an_interrupted_comparison_of_pruners_is_resumed_to_the_same_end(whole, tiny: Path, stop_at: int):
    with clean_process():
        ended = launch(
            str(tiny),
            here(Quiet(stop_at)),
            changes={"seeds": 2},
            question=Question(
                "pruners",
                lambda study, plan: make_pruner_plan(study, plan, pruners=PRUNERS, levels=["1/4", "1/2"]),
            ),
        )
    assert (ended.name, ended.status) == (NAME, "interrupted")
    json.loads(command("show", "--json").out)
    assert "interrupted" in command("show").out
    assert command("resume", NAME).code == 0
    assert without_clocks(complete(trials(name=NAME))) == without_clocks(complete(trials(whole[0], NAME)))


def test_a_comparison_of_pruners_whose_runs_all_fail_says_so(tmp_path: Path):
    file = write_study(
        tmp_path, (RECIPE, "recipe=Recipe(epochs=1, batch_size=32, lr=1e30)"), setting("retries=0")
    )
    result = command("pruners", file, *OPTIONS, "--workers", "0")
    assert_refused(result, NAME, "cannot go on", "every run failed", "loss is nan")


@pytest.mark.parametrize(
    "options, fragments",
    [
        (("--pruners", "l0,l3"), ("'l0,l3'", "obd-neurons")),
        (("--pruners", "l0,l0"), ("'l0,l0'", "once")),
        (("--levels", "1/2,2"), ("'2'", "1/4")),
        (("--levels", "half"), ("'half'", "1/4")),
        (("--levels", "1/1000"), ("0.001", "two units")),
        (("--plot", "p.png"), ("p.png", ".html")),
    ],
)
def test_wrong_use_is_one_line(tiny: Path, options, fragments):
    assert_refused(command("pruners", tiny, "--workers", "0", *options), *fragments)
    assert not Path("widthsearch.db").exists()


def test_an_own_training_loop_has_gates_alone(tmp_path: Path):
    file = write_study(tmp_path, OWN_LOOP)
    assert_refused(command("pruners", file, "--workers", "0"), "own training loop")
    assert_refused(command("launch", file, "--pruner", "taylor"), "'taylor'", "own training loop")
    arms = ("--arms", "uniform,grow-shrink:l1")
    assert_refused(command("compare", file, "--workers", "0", *arms), "'l1'", "own training loop")
    assert not Path("widthsearch.db").exists()


# In the search -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", ["l1", "taylor"])
def test_a_search_measured_by_another_pruner_ends_with_widths(tiny: Path, pruner: str):
    result = command("launch", tiny, "--pruner", pruner)
    assert result.code == 0, result.err
    shown = json.loads(command("show", "--json").out)
    assert shown["status"] == "finished"
    assert shown["recommended"]["params"] <= shown["budget"]["params"]
    measures = [t for t in trials() if t.user_attrs["kind"] == "measure"]
    assert len(measures) == 2
    for t in measures:
        kept = t.user_attrs["kept"]
        assert t.user_attrs["prune_ratio"] == {v: 1 - kept[v] / w for v, w in t.params.items()}
        assert sum(kept.values()) < sum(t.params.values())
    assert command("resume", "tiny").code == 0  # and the file's own pruner is no change


def test_a_pruner_that_measures_nothing_is_refused(tiny: Path):
    assert_refused(command("launch", tiny, "--pruner", "obd"), "pruner='obd'", "l0, l1, taylor")
    assert_refused(command("compare", tiny, "--arms", "tpe:l1", "--workers", "0"), "'tpe:l1'", "grow-shrink")
    assert_refused(command("compare", tiny, "--arms", "one-shot:obd", "--workers", "0"), "one-shot:obd")


def test_compare_takes_searches_by_other_pruners_as_arms(tmp_path: Path):
    study = write_study(tmp_path, (BUDGET, 'budget=Budget(macs="0.5x", params="0.5x")'))
    arms = ["uniform", "grow-shrink", "grow-shrink:l1", "one-shot:l1", "one-shot:taylor"]
    result = command("compare", study, "--arms", ",".join(arms), "--workers", "0")
    assert result.code == 0, result.err
    (entry,) = json.loads(command("show", "--json").out)["budgets"]
    assert [a["arm"] for a in entry["arms"]] == arms
    kept: dict[str, list[dict[str, int]]] = {}
    for t in trials(name="tiny-compare"):
        if t.user_attrs["kind"] == "measure":
            kept.setdefault(t.user_attrs["arm"], []).append(t.user_attrs["kept"])
    assert kept.keys() == {
        "grow-shrink",
        "grow-shrink:l1",
        "grow-shrink:taylor",
    }  # one-shot:l1 shares its own
    assert all(len(of) == 2 for of in kept.values())

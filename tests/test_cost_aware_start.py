"""A search that starts from cost-aware widths, or ends there: every view says so, and tells them from uniform ones."""

import json
from pathlib import Path

import optuna
import pytest
from commands import RECIPE, assert_refused, command, write_study

from widthsearch import load
from widthsearch.database.records import PLAN

pytestmark = pytest.mark.usefixtures("working_folder")

# A loop whose loss depends on the widths (and a little on the seed) alone.  The cost-aware ones are best.
TRAIN = """
def train(model, data, report):
    (x, y), _ = data
    nn.functional.cross_entropy(model(x), y).backward()
    apart = abs(model.fc1.out_features - 7) + abs(model.fc2.out_features - 11)
    report(val_loss=1 + 0.1 * apart + 0.01 * torch.rand(()).item(), val_accuracy=0.5)


def model():"""
LOOP = (("def model():", TRAIN), (RECIPE, "train=train, steps=1"))
SKEWED = (
    "nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)",
    "nn.Linear(8, 2), nn.Linear(2, 60), nn.Linear(60, 3)",
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, *LOOP, SKEWED)


def test_cost_aware_widths_are_recommended_where_nothing_is_better(study: Path) -> None:
    result = command("launch", study)
    assert result.code == 0, result.err
    found = json.loads(command("show", "--json").out)
    uniform, aware = found["starting_networks"]
    assert found["started_from"] == "cost-aware"
    assert (uniform["start"], aware["start"]) == ("uniform", "cost-aware")
    assert uniform["widths"] == found["baseline"]["widths"] != aware["widths"]
    assert uniform["val_loss"]["mean"] > aware["val_loss"]["mean"]
    assert found["recommended"]["widths"] == aware["widths"] == {"fc1": 7, "fc2": 11}
    assert (found["recommended"]["round"], found["recommended"]["step"]) == (-1, 1)
    assert found["verdict"] == "better" and found["gain"]["n"] == 2
    # The first measure is of an over-wide network with these proportions.
    over_wide = found["rounds"][0]["over_wide"]
    assert over_wide["fc2"] / over_wide["fc1"] == pytest.approx(11 / 7, abs=0.1)
    page = command("show").out
    assert "recommended: cost-aware widths" in page and "round -1" not in page
    starts = [line.split() for line in page.splitlines() if line.split()[:1] in (["start"], ["cost-aware"])]
    assert [row[-1] for row in starts] == ["-".join(map(str, s["widths"].values())) for s in (uniform, aware)]
    assert command("draw", "-o", "a.svg").code == 0
    assert "cost-aware widths" in Path("a.svg").read_text()


def test_all_that_shows_a_search_knows_of_cost_aware_widths(study: Path) -> None:
    assert command("launch", study).code == 0
    result = load("tiny", "sqlite:///widthsearch.db")
    aware = load("tiny").widths
    assert result.widths == aware
    places = result.plot_widths().data[0].x
    assert list(places[:3]) == ["seed", "uniform", "cost-aware"]
    loss = {trace.name: trace for trace in result.plot_loss().data}
    assert len(loss["uniform"].y) == 1
    assert any(text.startswith("cost-aware widths") for text in loss["scored"].text)
    assert sum(trace.name.startswith("better than uniform") for trace in result.plot_seeds().data) == 2
    rows = result.to_frame()
    starts = rows[(rows["network"] == "cost-aware widths") & (rows["kind"] == "score")]
    assert len(starts) == 1 and starts["round"].isna().all()
    assert set(rows[rows["kind"] == "measure"]["round"]) == {1}
    assert set(rows[rows["kind"] == "baseline"]["network"]) == {"uniform widths"}
    assert command("report", "-o", "r.html").code == 0
    assert "cost-aware widths" in Path("r.html").read_text()
    exported = command("export", "-o", "net")
    assert exported.code == 0, exported.err
    assert json.loads(Path("net/widths.json").read_text())["widths"] == aware


def test_more_rounds_go_on_from_cost_aware_widths(study: Path) -> None:
    assert command("launch", study).code == 0
    assert command("resume", "--rounds", "2").code == 0
    found = json.loads(command("show", "--json").out)
    assert len(found["rounds"]) == 2
    assert found["rounds"][1]["over_wide"] == found["rounds"][0]["over_wide"]  # nothing was better since


def test_without_it_the_search_starts_from_the_uniform_network(tmp_path: Path) -> None:
    file = write_study(tmp_path, *LOOP, SKEWED, ("rounds=1", "rounds=1, cost_aware_start=False"))
    assert command("launch", file).code == 0
    found = json.loads(command("show", "--json").out)
    assert [s["start"] for s in found["starting_networks"]] == ["uniform"]
    assert found["started_from"] == "uniform"
    assert "cost-aware" not in command("show").out


def test_a_study_of_another_version_is_refused_and_does_not_hide_the_others(study: Path) -> None:
    assert command("launch", study).code == 0 and command("launch", study, "--name", "other").code == 0
    other = optuna.load_study(study_name="other", storage="sqlite:///widthsearch.db")
    other.set_user_attr(PLAN, {**other.user_attrs[PLAN], "format": 0})
    for verb in ("show", "resume", "report"):
        assert_refused(command(verb, "other"), "'other'", "another version", "format 0")
    listed = command("list")
    assert listed.code == 0 and "another version" in listed.out and "finished" in listed.out

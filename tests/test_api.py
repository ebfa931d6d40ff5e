"""The commands in Python: launch, resume, load, and what their results can do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import BUDGET, Finished, command, interrupt, trained_by, trials, worker, write_study

import widthsearch
from widthsearch import UsageError, launch, load, resume

pytestmark = pytest.mark.usefixtures("working_folder")


def test_a_result_has_the_names_of_json(finished: Finished) -> None:
    shown = json.loads(command("show", "--json", "--storage", finished.url).out)
    result = load("tiny", finished.url)
    assert result.summary.keys() == shown.keys()
    assert {key: getattr(result, key) for key in shown}.keys() <= set(dir(result))
    assert result.recommended["widths"] == shown["recommended"]["widths"] == result.widths
    assert "tiny" in repr(result) and "finished" in repr(result)
    with pytest.raises(AttributeError, match="no 'gains'; it has .*gain"):
        result.gains  # noqa: B018


def test_the_frame_has_a_row_per_training(finished: Finished) -> None:
    frame = load("tiny", finished.url).to_frame()
    assert len(frame) == len(finished.trials)
    assert list(frame["val_loss"]) == [t.value for t in finished.trials]
    assert list(frame["width_fc1"]) == [t.params["fc1"] for t in finished.trials]
    measures = frame[frame["kind"] == "measure"]
    assert measures["prune_ratio_fc1"].between(0, 1).all()
    assert frame[frame["kind"] == "score"]["prune_ratio_fc1"].isna().all()


def test_the_model_has_the_recommended_widths(finished: Finished) -> None:
    result = load("tiny", finished.url)
    net = result.model(str(finished.file))
    assert [net.fc1.out_features, net.fc2.out_features] == list(result.widths.values())
    assert net(torch.zeros(1, 8)).shape == (1, 3)


def test_figures_and_what_a_notebook_shows(finished: Finished) -> None:
    result = load("tiny", finished.url)
    for figure in (result.plot_prune_ratios(), result.plot_widths(), result.plot_loss(), result.plot_seeds()):
        assert figure.data
    assert result.plot_architecture()._repr_svg_().startswith("<svg")
    assert "<table>" in result._repr_html_()
    assert result.to_html().startswith("<!doctype html>")


def test_launch_and_resume_equal_the_commands(tmp_path: Path, finished: Finished) -> None:
    file = write_study(tmp_path)
    done = launch(file, workers=0)
    assert done.status == "finished"
    assert [t.value for t in trials()] == [t.value for t in finished.trials]
    with pytest.raises(UsageError, match="exists already"):
        launch(file, workers=0)
    more = resume(rounds=2, workers=0)
    assert len(more.rounds) == 2


def test_workers_train_what_the_call_changed(tmp_path: Path) -> None:
    """A recipe changed in `launch(...)` reaches the workers of Ray, which load the file anew."""
    file = write_study(tmp_path)
    launch(file, workers=0, epochs=3, budget="params=0.25x")
    actor, slot = worker(file)
    (trained,) = trained_by(actor, slot)["outcomes"]
    assert trained["val_loss"] == next(t.value for t in trials() if t.user_attrs["kind"] == "baseline")


def test_resume_goes_on(tiny: Path, finished: Finished) -> None:
    interrupt(tiny, 3)
    before = load()
    assert before.status == "interrupted"
    with pytest.raises(UsageError, match="recommends no widths"):
        before.widths  # noqa: B018
    assert resume(workers=0).widths == load("tiny", finished.url).widths
    assert before.status == "interrupted"  # as it was when it was loaded
    assert before.refresh().status == "finished"


def test_a_study_object_is_found_in_its_file(tmp_path: Path) -> None:
    from widthsearch.study.file import load_study

    study = load_study(str(write_study(tmp_path, name="by_object"))).study
    assert launch(study, workers=0, name="x", budget="params=0.6x").study == "x"
    from dataclasses import replace

    with pytest.raises(UsageError, match="stands in no file"):
        launch(replace(study), workers=0)


def test_all_public_names_are_there() -> None:
    for name in widthsearch.__all__:
        assert getattr(widthsearch, name) is not None


@pytest.mark.slow
def test_the_walkthrough_runs() -> None:
    """With fewer epochs."""
    studies = Path(__file__).parents[1] / "studies"
    file = shutil.copy(studies / "walkthrough.py", "walkthrough.py")
    study = (studies / "digits_mlp.py").read_text()
    assert study.count("epochs=15") == 1
    Path("digits_mlp.py").write_text(study.replace("epochs=15", "epochs=3"))
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "recommended: {" in done.stdout and "Linear(in_features=64, out_features=" in done.stdout


def test_a_family_in_python(tmp_path: Path) -> None:
    file = write_study(tmp_path, (BUDGET, 'budget=Budget(macs="0.5x", params="0.5x")'))
    found = launch(file, budgets=["1/2", "1/4"], pruner="taylor", workers=0)
    assert [m["study"] for m in found.members] == ["tiny-1-4", "tiny-1-2"]
    assert found.status == "finished" and found.plot().data
    assert load("tiny-1-2").widths == found.members[1]["recommended"]["widths"]
    assert resume("tiny", workers=0).status == "finished"
    with pytest.raises(UsageError, match="--rounds: 'tiny' is a family"):
        resume("tiny", rounds=3, workers=0)
    with pytest.raises(UsageError, match="--budgets 1/2: give one budget"):
        launch(file, name="other", budget="macs=0.5x", budgets=["1/2"], workers=0)


def test_what_is_no_search_has_one_figure(tmp_path: Path) -> None:
    assert command("probe", write_study(tmp_path), "--inflate", "fc1=2", "--workers", "0").code == 0
    result = load("tiny-probe")
    assert result.plot().data
    for name in ("prune_ratios", "widths", "loss", "seeds", "architecture"):
        with pytest.raises(UsageError, match="is a probe; only a search has this figure"):
            getattr(result, f"plot_{name}")()

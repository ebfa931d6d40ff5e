"""Optuna's callbacks are called by the driver; what they do or raise changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from commands import RECIPE, TRIALS, Finished, assert_refused, command, complete, setting, trials, write_study
from optuna.trial import FrozenTrial

from widthsearch import UsageError, launch, resume

pytestmark = pytest.mark.usefixtures("working_folder")


def test_callbacks_get_every_finished_trial_and_do_not_disturb(
    finished: Finished, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[FrozenTrial] = []

    def keep(study: optuna.Study, trial: FrozenTrial) -> None:
        assert study.study_name == "tiny" and study.trials[trial.number].state == trial.state
        told.append(trial)
        trial.user_attrs.clear()  # its own copy

    def fails(study: optuna.Study, trial: FrozenTrial) -> None:
        raise ConnectionError("no tracking server")

    launch(tiny, workers=0, callbacks=[keep, fails])
    assert [t.number for t in told] == list(range(TRIALS))
    assert all(t.state.is_finished() and t.value is not None for t in told)
    said = capsys.readouterr().out
    assert said.count("raised ConnectionError: no tracking server") == TRIALS
    assert complete(trials()) == complete(finished.trials)


def test_callbacks_of_a_study_file_are_called_and_may_change(tmp_path: Path) -> None:
    def note(file: str) -> str:
        return f"callbacks=[lambda study, trial: open({file!r}, 'a').write(trial.state.name + '\\n')]"

    broken = (RECIPE, "recipe=Recipe(epochs=1, batch_size=32, lr=1e30)")  # NaN: a failed training counts too
    file = write_study(tmp_path, broken, setting(f"retries=0, {note('first')}"))
    assert_refused(command("launch", file), "cannot go on")
    assert set(Path("first").read_text().split()) == {"FAIL"}
    file.write_text(file.read_text().replace(note("first"), note("second")))  # no result depends on them
    assert_refused(command("resume", "tiny"), "cannot go on")
    assert Path("second").exists()


def test_callbacks_that_are_none(tiny: Path) -> None:
    wrong: Any = [3]
    for door in (lambda: launch(tiny, workers=0, callbacks=wrong), lambda: resume(callbacks=wrong)):
        with pytest.raises(UsageError, match=r"callbacks=\[3\]: must be a list of functions"):
            door()


@pytest.mark.nightly
def test_mlflow_callback_of_optuna_integration_runs_unchanged(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    integration = pytest.importorskip("optuna_integration")
    mlflow = pytest.importorskip("mlflow")
    address = (Path.cwd() / "mlruns").as_uri()
    launch(tiny, workers=0, callbacks=[integration.MLflowCallback(tracking_uri=address, metric_name="loss")])
    client = mlflow.MlflowClient(address)
    (experiment,) = client.search_experiments(filter_string="name = 'tiny'")
    runs = client.search_runs([experiment.experiment_id])
    values = {t.number: t.value for t in trials()}
    assert len(runs) == TRIALS
    assert {int(run.data.tags["number"]): run.data.metrics["loss"] for run in runs} == values

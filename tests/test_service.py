"""Launch, show, list and resume as a user meets them: interruptions, changed files, failed trainings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from commands import (
    DATA,
    HEADER,
    RECIPE,
    TRIALS,
    URL,
    Finished,
    Quiet,
    assert_refused,
    clean_process,
    command,
    complete,
    custom_loss,
    here,
    interrupt,
    real_command,
    setting,
    start,
    trials,
    write_study,
)
from optuna.trial import TrialState

from widthsearch.database.lock import driver_lock
from widthsearch.driver.launch import launch
from widthsearch.driver.resume import resume

pytestmark = pytest.mark.usefixtures("working_folder")

LR = ("lr=0.1", "lr=0.2")


def test_a_finished_study_is_shown_with_its_widths_gain_and_verdict(finished: Finished) -> None:
    assert finished.result.code == 0, finished.result.err
    out = command("show", "tiny", "--storage", finished.url).out
    shown = json.loads(command("show", "--json", "--storage", finished.url).out)
    for text in (
        "finished",
        "fc1",
        "fc2",
        "prune ratio",
        "95 % interval",
        "uniform",
        shown["decision"]["sentence"],
    ):
        assert text in out
    assert "\x1b[" not in out + finished.result.out  # no terminal, no colours
    assert out in finished.result.out  # launch ends with the same page


def test_json_has_the_agreed_form(finished: Finished) -> None:
    shown = json.loads(command("show", "--json", "--storage", finished.url).out)
    widths = {"fc1", "fc2"}
    assert shown["study"] == "tiny"
    assert shown["status"] == "finished"
    assert shown["storage"] == finished.url
    assert shown["budget"] == {"macs": None, "params": 193, "latency": None}
    assert shown["seed"] == {"widths": {"fc1": 16, "fc2": 12}, "macs": 356, "params": 387}
    for network in (shown["baseline"], shown["recommended"]):
        assert set(network["widths"]) == widths
        assert network["params"] <= 193
        for statistic in ("val_loss", "val_accuracy"):
            assert {"mean", "se", "n"} <= set(network[statistic])
            assert network[statistic]["n"] == 2
    low, high = shown["gain"]["ci95"]
    assert low <= shown["gain"]["mean"] <= high
    difference = shown["baseline"]["val_loss"]["mean"] - shown["candidate"]["val_loss"]["mean"]
    assert shown["gain"]["mean"] == pytest.approx(difference)
    (first,) = shown["rounds"]
    wanted = {"round", "over_wide", "kept", "prune_ratio", "prune_ratio_se", "spread", "balanced", "proposal"}
    assert wanted | {"val_loss"} <= set(first)
    for key in ("over_wide", "kept", "prune_ratio", "prune_ratio_se", "proposal"):
        assert set(first[key]) == widths
    assert shown["cost"]["in_uniform_trainings"] > 4
    assert shown["trials"] == {"COMPLETE": TRIALS}
    assert any(why in shown["stopped_because"] for why in ("round limit", "balanced", "no better score"))


def test_best_trial_is_feasible_and_scored(finished: Finished) -> None:
    study = optuna.load_study(study_name="tiny", storage=finished.url)
    assert study.best_trial.user_attrs["kind"] != "measure"
    for t in study.trials:
        a = t.user_attrs
        assert (max(t.constraints.values()) > 0) == (a["kind"] == "measure")
        assert a["params"] == a["macs"] + sum(t.params.values()) + 3
        samples = 32 if a["kind"] == "measure" else 64  # one step of two: three tenths of an epoch
        assert a["training_macs"] == 3 * a["macs"] * samples
        assert set(t.params) == {"fc1", "fc2"}
        if a["kind"] == "measure":
            assert a["prune_ratio"] == {v: 1 - a["kept"][v] / t.params[v] for v in t.params}


def test_a_budget_above_the_seed_grows_the_network(tiny: Path) -> None:
    assert command("launch", tiny, "--budget", "macs=2x,params=3x").code == 0
    shown = json.loads(command("show", "--json").out)
    assert shown["recommended"]["macs"] > 1.7 * shown["seed"]["macs"]
    assert shown["baseline"]["macs"] <= 2 * shown["seed"]["macs"]


def test_what_there_is_is_listed(finished: Finished) -> None:
    out = command("list", "--storage", finished.url).out
    assert "tiny" in out
    assert "finished" in out


@pytest.mark.parametrize("verb", ["show", "resume"])
def test_unknown_names_and_missing_databases(finished: Finished, verb: str, tmp_path: Path) -> None:
    assert_refused(command(verb, "nope", "--storage", finished.url), "'nope'", "tiny")
    assert_refused(command(verb), "widthsearch.db", "launch")
    assert_refused(command(verb, "--storage", "nonsense"), "'nonsense'", "sqlite:///")
    optuna.create_study(storage="sqlite:///empty.db", study_name="of somebody else")
    assert_refused(command(verb, "--storage", "sqlite:///empty.db"), "no study", "launch")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "'nonsense'"),
        ("sqlite://", "in memory"),
        ("sqlite:////no/such/folder/x.db", "/no/such/folder/x.db"),
        ("postgresql+nodriver://me:secret@127.0.0.1:1/x", "postgresql"),
        ("postgresql://me:secret@127.0.0.1:1/x", "postgresql"),
    ],
)
def test_bad_storage_is_refused_and_no_password_shown(tiny: Path, url: str, says: str) -> None:
    result = command("launch", tiny, "--storage", url)
    assert_refused(result, says)
    assert "secret" not in result.err + result.out


def test_an_existing_name_is_refused_and_resume_named(finished: Finished) -> None:
    before = trials(finished.url)
    result = command("launch", finished.file, "--storage", finished.url)
    assert_refused(result, "'tiny'", "widthsearch resume tiny", "--name")
    assert trials(finished.url) == before


def test_missing_file_no_study_and_several_studies(tmp_path: Path) -> None:
    assert_refused(command("launch", "nope.py"), "'nope.py'")
    Path("empty.py").write_text("x = 1\n")
    assert_refused(command("launch", "empty.py"), "no Study", "study = Study(")
    text = write_study(tmp_path).read_text()
    Path("two.py").write_text(text.replace("study = Study(", "small = Study(") + "\nlarge = small\n")
    assert_refused(command("launch", "two.py"), "small, large", "two.py:small")
    assert_refused(command("launch", "two.py:huge"), "'huge'", "small, large")
    assert command("launch", "two.py:large", "--name", "chosen").code == 0


def test_wrong_options_are_typers_business(tiny: Path) -> None:
    for option in (("--workers", "-1"), ("--rounds", "0"), ("--seeds", "many"), ("--nope", "1")):
        assert command("launch", tiny, *option).code == 2
    assert not Path("widthsearch.db").exists()


def test_nothing_to_search(tmp_path: Path) -> None:
    net = "return Net()"
    file = write_study(tmp_path, (net, "return nn.Sequential(nn.Linear(8, 3))"))
    assert_refused(command("launch", file), "Sequential", "nothing to search", "hidden layer")
    layers = "nn.Linear(8, 16), nn.Softmax(dim=1), nn.Linear(16, 3)"
    file = write_study(tmp_path, (net, f"return nn.Sequential({layers})"), name="frozen")
    assert_refused(command("launch", file), "nothing to search", "softmax")


@pytest.mark.sample(2)
@pytest.mark.parametrize("stop_at", [0, 1, 3, 5, TRIALS - 1])
def test_an_interrupted_study_resumes_to_the_same_end(
    finished: Finished, tmp_path: Path, stop_at: int
) -> None:
    file = write_study(tmp_path)
    interrupt(file, stop_at)
    shown = command("show")
    assert "interrupted" in shown.out
    assert "widthsearch resume tiny" in shown.out
    assert json.loads(command("show", "--json").out)["status"] == "interrupted"
    result = command("resume", "tiny")
    assert result.code == 0, result.err
    assert complete(trials()) == complete(finished.trials)
    again = command("resume", "tiny")
    assert again.code == 0
    assert "finished" in again.out
    assert len(trials()) == TRIALS + 1  # the interrupted one, and nothing twice


def test_a_changed_study_file_is_refused_by_field_unless_forced(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    interrupt(file, 3)
    write_study(tmp_path, LR, ("self.fc1, self.fc2", "self.fc1 , self.fc2"))
    assert_refused(command("resume"), "recipe.lr: 0.1 -> 0.2", "--force")
    write_study(tmp_path, ("torch.relu(self.fc2(", "torch.tanh(self.fc2("), ("epochs=1", "epochs=2"))
    assert_refused(command("resume"), "code of Net")  # compared before anything of it runs
    assert_refused(command("resume", "--study", file), "code of Net", "recipe.epochs: 1 -> 2")
    write_study(tmp_path, ("manual_seed(0)", "manual_seed(1)"))
    assert_refused(command("resume", "--study", file), "code of data", "data.train")
    assert len(trials()) == 4  # nothing was started
    write_study(tmp_path, LR)
    assert command("resume", "--force").code == 0


def test_comments_and_docstrings_are_no_change(finished: Finished, tmp_path: Path) -> None:
    interrupt(write_study(tmp_path), 3)
    write_study(tmp_path, (HEADER, f'# wide\n{HEADER}\n    """A net."""\n'), ("Does a tiny", "Do tiny"))
    assert command("resume").code == 0
    assert complete(trials()) == complete(finished.trials)


def test_other_variables_cannot_be_forced(tmp_path: Path) -> None:
    interrupt(write_study(tmp_path), 3)
    write_study(
        tmp_path,
        ("self.fc1, self.fc2, self.out =", "self.fc1, self.mid, self.out ="),
        ("self.fc2(", "self.mid("),
    )
    assert_refused(command("resume", "--force"), "other width variables")


def test_a_moved_study_file_is_found_again(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    interrupt(file, 3)
    moved = tmp_path / "elsewhere" / "moved.py"
    moved.parent.mkdir()
    file.rename(moved)
    assert_refused(command("resume"), "tiny.py")
    assert command("resume", "--study", moved).code == 0


def test_nan_everywhere_ends_the_search_with_a_clear_message(tmp_path: Path) -> None:
    file = write_study(tmp_path, *custom_loss("return (output * float('nan')).sum()"))
    result = command("launch", file)
    assert_refused(result, "no training at the start came to its end", "training loss is nan")
    failed = [t for t in trials() if t.user_attrs["kind"] == "baseline"]
    assert all(t.state == TrialState.FAIL for t in failed)
    assert len(failed) == 3  # once, and two retries
    assert len({t.user_attrs["seed"] for t in failed}) == 1
    assert len({str(t.params) for t in failed}) == 1
    assert json.loads(command("show", "--json").out)["status"] == "failed"


def test_nan_in_some_runs_does_not_stop_the_search(tmp_path: Path) -> None:
    """Replica 1 of every plain training diverges: it is retried, given up, and left out of the pairs."""
    file = write_study(
        tmp_path,
        *custom_loss(
            """
            from widthsearch.plans.plan import Slot
            if torch.initial_seed() == Slot("score", 0, 2, {}).random_seed(0):
                return output.sum() * float("nan")
            """
        ),
        ("report_seeds=2", "report_seeds=3"),
    )
    assert command("launch", file).code == 0
    failed = [t for t in trials() if t.state == TrialState.FAIL]
    assert {t.user_attrs["replica"] for t in failed} == {2}
    assert len(failed) == 6  # recommendation and baseline, three tries each
    shown = json.loads(command("show", "--json").out)
    assert shown["gain"]["n"] == 2
    assert shown["recommended"]["val_loss"]["n"] == 2


def test_ctrl_c_keeps_everything_and_prints_the_line_to_resume(finished: Finished, tmp_path: Path) -> None:
    slow = custom_loss("import time\ntime.sleep(0.05)")
    file = write_study(tmp_path, *slow)
    process = start("launch", file, "--workers", "0", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    while "trial 3" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "widthsearch resume tiny" in err
    assert "Traceback" not in err
    assert command("resume").code == 0
    values = {key: (params, value) for key, (params, value, *_) in complete(trials()).items()}
    assert values == {key: (params, value) for key, (params, value, *_) in complete(finished.trials).items()}


def test_a_finished_study_says_so_and_can_be_given_more_rounds(finished: Finished, tmp_path: Path) -> None:
    file = write_study(tmp_path)
    assert command("launch", file).code == 0
    before = complete(trials())
    again = command("resume", "tiny")
    assert again.code == 0 and "'tiny' is finished" in again.out and "--rounds" in again.out
    assert_refused(command("resume", "tiny", "--rounds", "1"), "--rounds 1", "1 rounds already")
    assert complete(trials()) == before
    more = command("resume", "tiny", "--rounds", "3")
    assert more.code == 0, more.err
    shown = json.loads(command("show", "--json").out)
    assert len(shown["rounds"]) == 3 and shown["status"] == "finished"
    after = complete(trials())
    assert before.items() <= after.items()  # nothing is run again
    assert {key[:3] for key in after if key[0] == "measure"} == {
        ("measure", r, k) for r in range(3) for k in range(2)
    }


def test_a_study_that_is_given_more_rounds_can_be_interrupted(finished: Finished, tmp_path: Path) -> None:
    file = write_study(tmp_path)
    assert command("launch", file).code == 0
    with clean_process():
        ended = resume("tiny", here(Quiet(stop_at=TRIALS + 2)), rounds=2)
    assert ended.status == "interrupted"
    assert command("resume").code == 0
    assert len(json.loads(command("show", "--json").out)["rounds"]) == 2


def test_checkpoints_go_where_they_are_told_and_away_at_the_end(tmp_path: Path) -> None:
    where = tmp_path / "some" / "where"
    file = write_study(tmp_path)
    with clean_process():
        launch(str(file), here(Quiet(1), checkpoints=str(where)))
    (folder,) = where.iterdir()
    assert trials()[1].user_attrs["checkpoint"] == "score-start-0-1.ckpt"
    assert command("resume").code == 0
    assert not folder.exists()
    for bad in ("s3://key:secret@bucket/x", "nosuch://bucket/x", "/dev/null/x"):
        result = command("launch", file, "--name", "other", "--checkpoints", bad)
        assert_refused(result, "checkpoints")
        assert "secret" not in result.err
    assert [s.study_name for s in optuna.get_all_study_summaries(URL)] == ["tiny"]


def test_a_second_driver_is_refused_at_once_and_the_first_one_named(tiny: Path) -> None:
    interrupt(tiny, 3)
    with driver_lock(URL, "tiny"):
        assert_refused(real_command("resume", "tiny", "--workers", "0"), f"process {os.getpid()}")
    assert command("resume").code == 0


def test_show_and_help_start_without_torch_and_ray(finished: Finished) -> None:
    code = (
        "import sys\nfrom widthsearch.cli import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {HEAVY} & set(sys.modules)\nassert not heavy, heavy"
    )
    heavy = "'torch', 'ray', 'pandas'"
    for args, unwanted in (
        (("--help",), f"{heavy}, 'numpy', 'optuna'"),
        (("show", "--storage", finished.url), heavy),
        (("list", "--storage", finished.url), heavy),
    ):
        own = code.replace("HEAVY", unwanted)
        subprocess.run([sys.executable, "-c", own, *args], check=True, stdout=subprocess.DEVNULL)


def test_missing_fashion_mnist_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_MNIST_DIR", "/no/such/folder")
    study = Path(__file__).parents[1] / "studies" / "fashion_mnist.py"
    result = command("launch", study)
    assert_refused(result, "/no/such/folder", "apt-get install dataset-fashion-mnist", "FASHION_MNIST_DIR")
    assert not Path("widthsearch.db").exists()


def test_datasets_do_as_well_as_tensors(finished: Finished, tmp_path: Path) -> None:
    wrapped = "T = torch.utils.data.TensorDataset\n    return T(x[:64], y[:64]), T(x[64:], y[64:])"
    assert command("launch", write_study(tmp_path, (DATA, wrapped))).code == 0
    found = trials()
    assert {"measure", "baseline"} <= {t.user_attrs["kind"] for t in found}
    assert {tuple(t.params) for t in found} == {tuple(t.params) for t in finished.trials}
    bad = "T = torch.utils.data.TensorDataset\n    return T(x, y + 7), T(x, y)"
    assert_refused(command("launch", write_study(tmp_path, (DATA, bad), name="bad")), "label", "3 classes")


def test_regression_has_a_loss_and_no_accuracy(tmp_path: Path) -> None:
    targets = "return (x[:64], x[:64, :3]), (x[64:], x[64:, :3])"
    file = write_study(tmp_path, (DATA, targets), (RECIPE, f"{RECIPE[:-1]}, loss=nn.functional.mse_loss)"))
    assert command("launch", file).code == 0
    shown = json.loads(command("show", "--json").out)
    assert shown["recommended"]["val_accuracy"] is None
    assert shown["recommended"]["val_loss"]["n"] == 2


def test_minimum_and_multiple_of_hold_for_every_network(tmp_path: Path) -> None:
    file = write_study(tmp_path, setting("multiple_of=4"), ("replicas=2", "replicas=2, minimum={'fc2': 7}"))
    assert command("launch", file).code == 0
    for t in trials():
        assert all(w % 4 == 0 for w in t.params.values())
        assert t.params["fc2"] >= 8

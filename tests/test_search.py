"""Whole searches on real Ray workers, real SQLite, real kills.  All slow."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from commands import assert_refused, command, complete, real_command, start, trials

STUDIES = Path(__file__).parents[1] / "studies"
DIGITS = (STUDIES / "digits_mlp.py", "--replicas", "2", "--seeds", "1")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("working_folder")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """What `digits_mlp` finds undisturbed and without Ray."""
    url = f"sqlite:///{tmp_path_factory.mktemp('digits') / 'one.db'}"
    result = command("launch", *DIGITS, "--storage", url)
    assert result.code == 0, result.err
    found = complete(trials(url, "digits_mlp"))
    assert len(found) >= 2 + 2 * (2 + 1) + 2 * 4  # starts, rounds with their measures, the report
    return found


def test_two_ray_workers_find_it_to_the_last_bit(digits):
    result = real_command("launch", *DIGITS, "--workers", "2")
    assert result.code == 0, result.err
    assert complete(trials(name="digits_mlp")) == digits


def wait_for(process, text):
    """Read the driver's output up to a line that holds ``text``."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the driver ended before {text!r}: {process.stderr.read()}")


def test_a_killed_driver_is_resumed_to_the_same_end(digits):
    """kill -9 at a random moment, resume: every trial as if nothing had happened, none run twice."""
    process = start("launch", *DIGITS, "--workers", "2", PYTHONUNBUFFERED="1")
    last, pause = random.randrange(1, len(digits) - 2), random.uniform(0, 1.5)
    print(f"kill -9 {pause:.2f} s after trial {last}")  # shown if the test fails
    wait_for(process, f"trial {last}:")
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = command("resume", "digits_mlp")
    assert result.code == 0, result.err
    assert complete(trials(name="digits_mlp")) == digits  # (complete() refuses a slot completed twice)
    assert len(trials(name="digits_mlp")) <= len(digits) + 2  # what was running was run again, no more


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_driver_leaves_a_resumable_study(digits, stop):
    process = start("launch", *DIGITS, "--workers", "2", PYTHONUNBUFFERED="1")
    wait_for(process, "trial 3:")
    started = time.monotonic()
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert process.returncode == 130, err
    assert "widthsearch resume digits_mlp" in err
    assert "Traceback" not in err
    assert "interrupted" in command("show", "digits_mlp").out
    result = command("resume", "digits_mlp")
    assert result.code == 0, result.err
    assert complete(trials(name="digits_mlp")) == digits


def test_a_killed_worker_costs_one_retry(digits):
    """The trainings that died with their worker are run again; the driver goes on."""
    process = start("launch", *DIGITS, "--workers", "1", PYTHONUNBUFFERED="1")
    wait_for(process, "trial 2:")
    workers = [
        int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and is_actor_of(p, process.pid)
    ]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    found = trials(name="digits_mlp")
    assert complete(found) == digits
    assert [t.user_attrs["error"] for t in found if t.state.name == "FAIL"] == ["its worker process died"]


def is_actor_of(process: Path, driver: int) -> bool:
    """Whether it is a Ray worker that runs our actor, started (through the raylet) by this driver."""
    try:
        if (
            b"ray::" not in (process / "cmdline").read_bytes()
            or b"TrialActor" not in (process / "cmdline").read_bytes()
        ):
            return False
        pid = int(process.name)
        while pid > 1:
            if pid == driver:
                return True
            pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        pass
    return False


def test_an_unreachable_cluster_is_refused():
    address = "127.0.0.1:1"
    assert_refused(real_command("launch", DIGITS[0], "--address", address), address)


INFLATED = '''
"""One layer of the network blown up: do its gates say so?"""

import sys

sys.path.insert(0, {studies!r})
from mnist1d_conv import data, network  # noqa: E402

from widthsearch import Budget, Recipe, Study  # noqa: E402


def model():
    return network((16, 16, 32, 32 * 20, 64, 64), 64)


study = Study(
    model=model,
    data=data,
    budget=Budget(macs=65_504, params=6_074),  # 1/8 of the network that is not inflated
    recipe=Recipe(epochs=8, lr=0.1),
    rounds=1,
    replicas=2,
    seeds=1,
    report_seeds=2,
    pressure="neurons",
    cost_aware_start=False,
)
'''


def test_a_layer_inflated_20_times_is_pruned_most_and_comes_back():
    """By the rule alone, without another start; that it comes all the way shows test_probe.py, with pretended
    trainings."""
    Path("inflated.py").write_text(INFLATED.format(studies=str(STUDIES)))
    result = command("launch", "inflated.py")
    assert result.code == 0, result.err
    found = json.loads(command("show", "inflated", "--json").out)
    (only,), uniform = found["rounds"], found["baseline"]["widths"]
    assert uniform["conv4"] > 5 * uniform["conv3"]  # it does start far off
    assert max(only["prune_ratio"], key=only["prune_ratio"].get) == "conv4"
    assert only["proposal"]["conv4"] < 0.6 * uniform["conv4"]
    assert found["recommended"]["widths"] == only["proposal"]

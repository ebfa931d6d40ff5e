"""Whole searches of real data, on real Ray workers too.  (Kills are in test_faults.py.)"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import assert_refused, command, complete, real_command, trials

STUDIES = Path(__file__).parents[1] / "studies"
SMALL = ("--replicas", "2", "--seeds", "1", "--final-seeds", "1", "--rounds", "1")
DIGITS = (STUDIES / "digits_mlp.py", *SMALL)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("working_folder")]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """What `digits_mlp` finds undisturbed and without Ray."""
    url = f"sqlite:///{tmp_path_factory.mktemp('digits') / 'one.db'}"
    result = command("launch", *DIGITS, "--storage", url)
    assert result.code == 0, result.err
    found = complete(trials(url, "digits_mlp"))
    assert len(found) >= 2 + (2 + 1) + 2 * 4  # starts, a round with its measures, the report
    return found


def test_two_ray_workers_find_it_to_the_last_bit_and_their_lines_arrive(digits):
    result = real_command("launch", *DIGITS, "--workers", "2", "-v")
    assert result.code == 0, result.err
    found = trials(name="digits_mlp")
    assert complete(found) == digits
    assert re.search(
        r"widthsearch.cluster.node: Ray is there after [\d.]+ s, without its dashboard", result.err
    )
    assert "2 workers with 1 CPUs and 0 GPUs each" in result.err
    assert len(re.findall(r"trial \d+, in its worker: gates: price", result.err)) == 2
    assert "in its worker: study loaded on" in result.err
    assert re.search(r"waiting for \d trainings before the next phase", result.err)
    assert "log" not in found[0].user_attrs


def test_an_unreachable_cluster_is_refused():
    address = "127.0.0.1:1"
    assert_refused(real_command("launch", DIGITS[0], "--address", address), address)


INFLATED = '''
"""One layer of the network blown up: do its gates say so?"""

import sys

import torch
from torch import nn

sys.path.insert(0, {studies!r})
from digits_mlp import data  # noqa: E402

from widthsearch import Budget, Recipe, Study  # noqa: E402


def model():
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32 * 20), nn.ReLU(), nn.Linear(32 * 20, 32), nn.ReLU(), nn.Linear(32, 10)
    )


study = Study(
    model=model,
    data=data,
    budget=Budget(params=12_000, macs="any"),
    recipe=Recipe(epochs=8, batch_size=64, lr=0.1),
    rounds=1,
    replicas=2,
    measure_length=1,
    seeds=1,
    final_seeds=0,
    report_seeds=2,
    step_sizes=[0.6],
    doublings=0,
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
    assert uniform["2"] > 5 * uniform["0"]  # it does start far off
    assert max(only["prune_ratio"], key=only["prune_ratio"].get) == "2"
    assert only["proposal"]["2"] < 0.6 * uniform["2"]
    assert found["candidate"]["widths"] == only["proposal"]

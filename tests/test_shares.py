"""Neurons are not weights; the layers pruned most and least; the modules that a study remembers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import MODEL, URL, Finished, command, interrupt, write_study
from played import play
from torch import nn

from widthsearch.database.connection import Database
from widthsearch.database.records import MODULES, load, modules_of
from widthsearch.report.search import summarise
from widthsearch.report.shares import pruned_line, removed, removed_line
from widthsearch.space import trace

pytestmark = pytest.mark.usefixtures("working_folder")


def chain(layers: int, width: int = 64):
    """``layers`` equal linear layers without biases, the first and the last as wide as the data."""
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
    return trace(model, (torch.randn(2, width),))


def network(space, width: int) -> dict:
    widths = dict.fromkeys(space.widths, width)
    return {"widths": widths, **space.cost.at(widths)}


def test_in_a_chain_of_equal_layers_half_the_neurons_are_three_quarters_of_the_weights():
    """Of the layers between the ends, that is: input and output keep their size."""
    long, short = chain(12), chain(4)
    whole, half = ({k: network(s, w) for k, s in (("long", long), ("short", short))} for w in (64, 32))

    def between(
        of: dict,
    ) -> dict:  # the layers that the longer chain has more: both sides of each are searched
        widths = {v: w for v, w in of["long"]["widths"].items() if v not in of["short"]["widths"]}
        return {"widths": widths, **{r: of["long"][r] - of["short"][r] for r in ("params", "macs")}}

    assert between(whole)["params"] == 8 * 64 * 64
    assert removed(between(whole), between(half)) == {"neurons": 0.5, "weights": 0.75, "macs": 0.75}


@pytest.mark.parametrize("layers", [2, 5, 50])
def test_the_ends_of_the_chain_lose_only_one_side(layers: int):
    space = chain(layers)
    found = removed(network(space, 64), network(space, 32))
    assert found["neurons"] == 0.5
    assert found["weights"] == pytest.approx((2 * 1 / 2 + (layers - 2) * 3 / 4) / layers)


def test_a_wider_network_removes_less_than_nothing_and_no_network_says_nothing():
    space = chain(3)
    assert removed(network(space, 64), network(space, 128))["neurons"] == -1.0
    assert removed(network(space, 64), None) is None


def test_show_states_the_three_ratios_and_the_extremes(finished: Finished):
    shown = json.loads(command("show", "--json", "--storage", finished.url).out)
    page = command("show", "--storage", finished.url).out
    seed, recommended = shown["seed"], shown["recommended"]
    assert shown["removed"] == {
        "neurons": 1 - sum(recommended["widths"].values()) / 28,
        "weights": 1 - recommended["params"] / seed["params"],
        "macs": 1 - recommended["macs"] / seed["macs"],
    }
    assert f"{shown['removed']['weights']:.1%} of the weights" in page
    ratios = shown["rounds"][-1]["prune_ratio"]
    most, least = shown["pruned_most"], shown["pruned_least"]
    assert most["prune_ratio"] == ratios[most["variable"]] == max(ratios.values())
    assert least["prune_ratio"] == ratios[least["variable"]] == min(ratios.values())
    assert most["se"] == shown["rounds"][-1]["prune_ratio_se"][most["variable"]]
    assert f"{most['variable']} ({most['prune_ratio']:.2f} ± {most['se']:.2f}), least:" in page


def test_the_line_is_of_the_latest_measured_round(tmp_path: Path):
    """Played layers take turns: the last prunes most in round 1, the first in round 2."""
    study = play(write_study(tmp_path), URL, 20, rounds=2, tolerance=0.0, patience=9)
    shown = summarise(study, URL)
    assert [r["round"] for r in shown["rounds"]] == [0, 1]
    assert (shown["pruned_most"]["variable"], shown["pruned_least"]["variable"]) == ("fc1", "fc2")
    ratio = shown["rounds"][1]["prune_ratio"]["fc1"]
    assert pruned_line(shown).startswith(f"pruned most in round 2: fc1 ({ratio:.2f} ±")


def test_before_anything_is_measured_nothing_is_claimed(tmp_path: Path):
    interrupt(write_study(tmp_path), 0)
    shown = json.loads(command("show", "--json").out)
    assert shown["removed"] is shown["pruned_most"] is shown["pruned_least"] is None
    assert removed_line(shown) is pruned_line(shown) is None
    assert "removed" not in command("show").out


def test_one_variable_has_no_extremes(tmp_path: Path):
    edit = (MODEL, "return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))")
    study = play(write_study(tmp_path, edit), URL, 4)
    assert pruned_line(summarise(study, URL)) is None


def test_a_study_remembers_which_modules_make_a_variable_and_an_old_one_does_not(tmp_path: Path):
    edit = (MODEL, "return Tied()")
    tied = "class Tied(Net):\n    def forward(self, x):\n"
    tied += (
        "        h = torch.relu(self.fc1(x)); return self.out(torch.relu(self.fc2(h)) + h)\n\n\ndef model():"
    )
    file = write_study(tmp_path, edit, ("def model():", tied), ("nn.Linear(16, 12)", "nn.Linear(16, 16)"),
                       ("nn.Linear(12, 3)", "nn.Linear(16, 3)"))  # fmt: skip
    interrupt(file, 0)
    study = load("tiny", Database.open(URL))
    assert modules_of(study) == [("fc1", "fc1"), ("fc2", "fc1")]
    study._storage.set_study_user_attr(study._study_id, MODULES, [])
    assert modules_of(study) == []

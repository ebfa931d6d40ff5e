"""`widthsearch widths`, and the patterns that choose, fix and bound width variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import (
    BUDGET,
    HEADER,
    MODEL,
    RECIPE,
    Edit,
    assert_refused,
    command,
    real_command,
    setting,
    trials,
    write_study,
)
from optuna.trial import TrialState

from widthsearch.driver.prepare import Prepared, prepare
from widthsearch.errors import UsageError
from widthsearch.study.file import load_study
from widthsearch.study.patterns import fixed_by, numbers_of

pytestmark = pytest.mark.usefixtures("working_folder")

MODELS = """
import torch
from torch import nn


def mlp(hidden=16, *, norm=False):
    between = nn.BatchNorm1d(hidden) if norm else nn.ReLU()
    return nn.Sequential(nn.Linear(8, hidden), between, nn.Linear(hidden, 3))


class Two(nn.Module):
    def __init__(self, d=6):
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(2, d), nn.Linear(4, d), nn.Linear(d, 5)

    def forward(self, tokens, x):
        return self.out(self.embed(tokens).mean(1) + self.inner(x))


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        return self.out(self.c(self.b(self.a(x).softmax(1)).softmax(1)))


def raises():
    raise OSError("no weights\\nat all")


def text():
    return "a network"


network = mlp(5)
number = 5
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


def described(*args: str | Path) -> Any:
    """What `widthsearch widths ARGS --json` prints."""
    result = command("widths", *args, "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def widths_of(shown: Any) -> dict[str, int]:
    return {v["name"]: v["width"] for v in shown["variables"]}


def frozen_of(shown: Any) -> dict[str, tuple[int, str]]:
    return {f["name"]: (f["width"], f["reason"]) for f in shown["frozen"]}


# Of a study ----------------------------------------------------------------------------------------------


def test_json_has_every_variable_and_what_it_costs(tiny: Path) -> None:
    shown = described(tiny)
    macs = (8 * 16, 16 * 12, 12 * 3)
    assert shown["macs"] == sum(macs) == 356
    assert shown["params"] == 356 + 16 + 12 + 3
    assert shown["coverage"] == 1
    assert shown["frozen"] == []
    shares = ((macs[0] + macs[1]) / 356, (macs[1] + macs[2]) / 356)
    agreed = ("name", "width", "modules", "min", "multiple_of")
    rows = [tuple(v[key] for key in agreed) for v in shown["variables"]]
    assert rows == [("fc1", 16, ["fc1"], 1, 1), ("fc2", 12, ["fc2"], 1, 1)]
    assert [v["share_of_macs"] for v in shown["variables"]] == pytest.approx(shares)


def test_it_trains_nothing_and_writes_nothing(tmp_path: Path) -> None:
    loss = "def loss(output, target):\n    raise AssertionError('a training')\n\n\n"
    file = write_study(
        tmp_path, ("def model():", f"{loss}def model():"), (RECIPE, f"{RECIPE[:-1]}, loss=loss)")
    )
    before = set(tmp_path.iterdir())
    assert described(file)["macs"] == 356
    assert command("widths", file).code == 0
    assert {p for p in tmp_path.iterdir() if p.name != "__pycache__"} == before


def test_the_table_has_every_variable_with_width_and_share(tiny: Path) -> None:
    result = command("widths", tiny)
    assert (result.code, result.err) == (0, "")
    assert "Net: 2 width variables, 356 MACs, 387 parameters; 100.0% of the MACs" in result.out
    rows = [line.split() for line in result.out.splitlines()]
    assert ["fc1", "16", "10", "7", "89.9%"] in [row[:5] for row in rows]
    assert ["fc2", "12", "7", "11", "64.0%"] in [row[:5] for row in rows]
    assert "cost-aware under 193 parameters: 166 MACs, 187 parameters" in result.out
    assert "multiple of" not in result.out  # nothing is bounded


def test_uniform_and_cost_aware_widths_are_those_of_the_search(tiny: Path) -> None:
    plan = prepared(tiny).plan
    shown = described(tiny)
    assert shown["budget"] == plan.budget == {"params": 193}
    for key, widths in (("uniform", plan.baseline), ("cost_aware", plan.cost_aware)):
        assert shown[key] == {"widths": widths, **plan.cost.at(widths)}
    more = described(tiny, "--budget", "macs=2x,params=2x")
    assert more["budget"] == {"macs": 712, "params": 774}
    assert 700 < more["cost_aware"]["macs"] <= 712 or 760 < more["cost_aware"]["params"] <= 774


def test_a_budget_that_is_too_small_is_said_beside_the_rest(tiny: Path) -> None:
    shown = described(tiny, "--budget", "params=10")
    assert widths_of(shown) == {"fc1": 16, "fc2": 12} and shown["budget"] is None
    assert (
        "params=10" in shown["budget_error"]
        and shown["budget_error"] in command("widths", tiny, "--budget", "params=10").out
    )


def test_a_latency_budget_is_not_measured_for_it(tmp_path: Path) -> None:
    shown = described(write_study(tmp_path, (BUDGET, "budget=Budget(latency='0.5x')")))
    assert shown["budget"] is shown["uniform"] is shown["cost_aware"] is None
    assert "latency='0.5x'" in shown["budget_error"]


def test_the_table_shows_bounds_where_there_are_any(tmp_path: Path) -> None:
    file = write_study(tmp_path, setting("minimum={'fc1': 4},\n    multiple_of=2"))
    rows = [line.split() for line in command("widths", file).out.splitlines()]
    assert ["fc1", "16", "10", "6", "4", "2", "89.9%"] in [row[:7] for row in rows]
    assert ["fc2", "12", "6", "12", "1", "2", "64.0%"] in [row[:7] for row in rows]


def test_what_launch_refuses_in_a_study_is_refused_here(tmp_path: Path) -> None:
    assert_refused(command("widths", "nope.py"), "'nope.py'")
    assert_refused(
        command("widths", write_study(tmp_path, (MODEL, "raise OSError('no weights')"))),
        "model() raised OSError: no weights",
    )
    assert_refused(
        command("widths", write_study(tmp_path, ("nn.Linear(8, 16)", "nn.Linear(9, 16)"))), "Net", "2x8"
    )
    assert_refused(command("widths", write_study(tmp_path, (HEADER, f"1 / 0\n\n\n{HEADER}"))), "line 10")


# Of a network without a study ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "width"),
    [
        ("models.py:mlp", 16),
        ("models.py:mlp()", 16),
        ("models.py:mlp(7)", 7),
        ("models.py:mlp(hidden=9, norm=True)", 9),
        ("models.py:network", 5),
        ("models:mlp", 16),
    ],
)
def test_a_function_class_or_network_of_a_file_or_module(models: Path, reference: str, width: int) -> None:
    shown = described("--model", reference, "--input", "2,8")
    assert widths_of(shown) == {"0": width}
    assert shown["macs"] == 8 * width + width * 3


def test_a_class_of_an_installed_package() -> None:
    reference = "torch.nn:TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.0, batch_first=True)"
    assert widths_of(described("--model", reference, "--input", "2,5,8"))["linear1"] == 12


def test_a_network_under_a_budget(models: Path) -> None:
    shown = described("--model", "models.py:mlp(40)", "--input", "2,8", "--budget", "macs=110,params=any")
    assert shown["uniform"] == shown["cost_aware"] == {"widths": {"0": 10}, "macs": 110, "params": 123}
    assert described("--model", "models.py:mlp(40)", "--input", "2,8")["budget"] is None


def test_an_absolute_path_and_a_batch_of_one(models: Path) -> None:
    """BatchNorm refuses a single sample in training mode; MACs are those of one sample all the same."""
    shown = described("--model", f"{models}:mlp(4, norm=True)", "--input", "1,8")
    assert shown["macs"] == 8 * 4 + 4 * 3


def test_two_inputs_one_of_them_token_numbers(models: Path) -> None:
    shown = described("--model", "models.py:Two(d=7)", "--input", "2,9:int", "--input", "2,4")
    assert [(v["name"], v["width"], v["modules"]) for v in shown["variables"]] == [
        ("embed", 7, ["embed", "inner"])
    ]
    table = command("widths", "--model", "models.py:Two", "--input", "1,9:int", "--input", "1,4").out
    assert "units also made by" in table
    assert any(line.split()[:2] == ["embed", "6"] and "inner" in line for line in table.splitlines())


def test_frozen_ones_are_shown_with_their_reason(models: Path) -> None:
    shown = described("--model", "models.py:Frozen", "--input", "2,8")
    assert widths_of(shown) == {"c": 8}
    reason = "softmax in the model's own forward: mixes or reorders these units"
    assert frozen_of(shown) == {"a": (8, reason), "b": (8, reason)}
    assert shown["coverage"] == pytest.approx(0.5)  # c and out of four equal layers
    table = command("widths", "--model", "models.py:Frozen", "--input", "2,8").out
    assert f"not searched: a (8), b (8): {reason}" in table.splitlines()


MODEL_OF, INPUT = ("--model", "models.py:mlp"), ("--input", "2,8")
WRONG: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nothing": ((), ("--model",)),
    "an input alone": (INPUT, ("--model",)),
    "both": (("models.py", *MODEL_OF, *INPUT), ("--model",)),
    "no input": (MODEL_OF, ("--input",)),
    "input beside a study": (("models.py", *INPUT), ("--input",)),
    "no such file": (("--model", "nope.py:mlp", *INPUT), ("'nope.py:mlp'",)),
    "no such module": (("--model", "nope.nets:mlp", *INPUT), ("'nope.nets:mlp'", "No module named")),
    "no such function": (("--model", "models.py:cnn", *INPUT), ("'models.py:cnn'", "'cnn'")),
    "no such attribute": (("--model", "torch.nn:Nope", *INPUT), ("'torch.nn:Nope'", "'Nope'")),
    "no function": (("--model", "models.py", *INPUT), ("'models.py'", "module:function")),
    "empty function": (("--model", "models.py:", *INPUT), ("'models.py:'", "module:function")),
    "half a call": (("--model", "models.py:mlp(", *INPUT), ("'models.py:mlp('", "option=1")),
    "a call with names": (("--model", "models.py:mlp(x)", *INPUT), ("'models.py:mlp(x)'", "option=1")),
    "wrong arguments": (("--model", "models.py:mlp(deep=1)", *INPUT), ("mlp(deep=1)", "TypeError", "'deep'")),
    "a function that raises": (
        ("--model", "models.py:raises", *INPUT),
        ("'models.py:raises'", "raises() raised OSError: no weights"),
    ),
    "no network": (("--model", "models.py:text", *INPUT), ("'a network'", "torch.nn.Module")),
    "a number": (("--model", "models.py:number", *INPUT), ("'models.py:number'", "neither")),
    **{
        f"input {text!r}": ((*MODEL_OF, "--input", text), (f"--input {text!r}", "1,3,224,224"))
        for text in ("3,x", "", "3,", "2,0", "2,-8", "2x8", "2,8:long", "2.5,8")
    },
    "input that does not fit": ((*MODEL_OF, "--input", "2,9"), ("Sequential", "2x9")),
    "no budget": ((*MODEL_OF, *INPUT, "--budget", "macs"), ("'macs'", "macs=0.25x")),
    "a latency": ((*MODEL_OF, *INPUT, "--budget", "latency=1ms"), ("latency='1ms'", "macs, params")),
    "a budget too small": ((*MODEL_OF, *INPUT, "--budget", "macs=10"), ("macs=10", "macs=11")),
    "too many inputs": ((*MODEL_OF, *INPUT, *INPUT), ("Sequential", "argument")),
    "floats for tokens": (
        ("--model", "models.py:Two", "--input", "2,9", "--input", "2,4"),
        ("Two", "RuntimeError"),
    ),
}


@pytest.mark.parametrize(("args", "says"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use_is_one_line(models: Path, args: tuple[str, ...], says: tuple[str, ...]) -> None:
    result = command("widths", *args)
    assert_refused(result, *says)
    assert result.out == ""


def test_the_real_command_prints_one_json_object(models: Path) -> None:
    result = real_command("widths", *MODEL_OF, *INPUT, "--json")
    assert (result.code, result.err) == (0, "")
    assert widths_of(json.loads(result.out)) == {"0": 16}


# Patterns in a study -------------------------------------------------------------------------------------

RESIDUAL: tuple[Edit, ...] = (  # mid adds to what fc1 makes, so that both are one variable, fc1
    ("nn.Linear(12, 3)", "nn.Linear(12, 3)\n        self.mid = nn.Linear(16, 16)"),
    (
        "return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))",
        "x = self.fc1(x)\n        return self.out(torch.relu(self.fc2(x + self.mid(x))))",
    ),
)


def prepared(file: Path) -> Prepared:
    return prepare(load_study(str(file)))


def test_weights_that_are_not_trained_are_said(tmp_path: Path) -> None:
    frozen = (MODEL, "net = Net()\n    net.fc1.requires_grad_(False)\n    return net")
    (note,) = prepared(write_study(tmp_path, frozen)).notes
    assert "not trained" in note and "fc1.weight, fc1.bias (requires_grad=False)" in note
    assert not prepared(write_study(tmp_path, frozen, setting("init=lambda net: None"))).notes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fix=['fc1']", "fixed by the study (fix='fc1')"),
        ("fix=['*1']", "fixed by the study (fix='*1')"),
        ("search=['fc2']", "fixed by the study (not in search)"),
        ("search=['*'],\n    fix=('fc1',)", "fixed by the study (fix='fc1')"),
    ],
)
def test_a_fixed_width_is_frozen_and_a_constant_of_the_cost(tmp_path: Path, text: str, reason: str) -> None:
    file = write_study(tmp_path, setting(text))
    shown = described(file)
    assert widths_of(shown) == {"fc2": 12}
    assert frozen_of(shown) == {"fc1": (16, reason)}
    assert (shown["macs"], shown["params"]) == (356, 387)
    assert shown["coverage"] == pytest.approx((16 * 12 + 12 * 3) / 356)
    ready = prepared(file)
    assert ready.plan.widths == {"fc2": 12}
    assert ready.frozen == [{"name": "fc1", "width": 16, "reason": reason}]
    cost = ready.plan.cost.at({"fc2": 5})
    assert cost == {"macs": 8 * 16 + 16 * 5 + 5 * 3, "params": 9 * 16 + 17 * 5 + 6 * 3}
    assert f"not searched: fc1 (16): {reason}" in command("widths", file).out


def test_bounds_by_pattern_reach_json_and_plan(tmp_path: Path) -> None:
    file = write_study(tmp_path, setting("minimum={'*': 2, 'fc2': 5},\n    multiple_of={'fc?': 4, 'fc2': 3}"))
    shown = described(file)
    assert [(v["name"], v["min"], v["multiple_of"]) for v in shown["variables"]] == [
        ("fc1", 2, 4),
        ("fc2", 5, 3),
    ]
    plan = prepared(file).plan
    assert (plan.minimum, plan.multiple_of) == ({"fc1": 2, "fc2": 5}, {"fc1": 4, "fc2": 3})


def test_a_tied_width_is_fixed_by_any_of_its_modules(tmp_path: Path) -> None:
    shown = described(write_study(tmp_path, *RESIDUAL))
    assert [(v["name"], v["modules"]) for v in shown["variables"]] == [
        ("fc1", ["fc1", "mid"]),
        ("fc2", ["fc2"]),
    ]
    shown = described(write_study(tmp_path, *RESIDUAL, setting("fix=['mid']")))
    assert frozen_of(shown) == {"fc1": (16, "fixed by the study (fix='mid')")}
    for search in ("['fc1']", "['fc1', 'mid']", "['fc1', 'fc2']"):
        shown = described(write_study(tmp_path, *RESIDUAL, setting(f"search={search}")))
        assert "fc1" in widths_of(shown)
        assert ("fc2" in widths_of(shown)) == ("fc2" in search)


BAD_PATTERNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fix matches nothing": ("fix=['fc9.*']", ("fix", "'fc9.*'", "fc1, fc2")),
    "search matches nothing": ("search=['fc2', 'nope']", ("search", "'nope'", "fc1, fc2")),
    "minimum matches nothing": ("minimum={'nope*': 4}", ("minimum", "'nope*'", "fc1, fc2")),
    "multiple_of matches nothing": ("multiple_of={'Fc1': 4}", ("multiple_of", "'Fc1'", "fc1, fc2")),
    "a part of a tied width": ("search=['mid']", ("'mid'", "'fc1'", "also made by fc1")),
    "a part of a tied width, by a pattern": ("search=['m*', 'fc2']", ("'m*'", "'fc1'", "its name")),
    "fix is a text": ("fix='fc1'", ("Study(fix='fc1')", "list")),
    "search is a text": ("search='fc1'", ("Study(search='fc1')", "list")),
    "fix has a number": ("fix=[1]", ("Study(fix=[1])", "list")),
    "a minimum of 0 by pattern": ("minimum={'fc*': 0}", ("minimum", "0 for 'fc*'", "whole number")),
    "a multiple that is true": ("multiple_of={'*': True}", ("multiple_of", "True for '*'", "whole number")),
}


@pytest.mark.parametrize("verb", ["widths", "launch"])
@pytest.mark.parametrize(("text", "says"), BAD_PATTERNS.values(), ids=BAD_PATTERNS.keys())
def test_bad_patterns_are_one_line(tmp_path: Path, verb: str, text: str, says: tuple[str, ...]) -> None:
    assert_refused(command(verb, write_study(tmp_path, *RESIDUAL, setting(text))), *says)
    assert not Path("widthsearch.db").exists()


@pytest.mark.parametrize("text", ["fix=['*']", "search=[]"])
def test_a_study_that_fixes_everything_has_nothing_to_search(tmp_path: Path, text: str) -> None:
    file = write_study(tmp_path, setting(text))
    assert_refused(command("launch", file), "nothing to search", "fc1: fixed by the study")
    shown = described(file)
    assert (shown["variables"], shown["coverage"]) == ([], 0)
    assert frozen_of(shown).keys() == {"fc1", "fc2"}
    assert "0 width variables" in command("widths", file).out


LOOP = """
def train(model, data, report):
    with open("widths.txt", "a") as file:
        print(model.training, model.fc1.out_features, model.fc2.out_features, file=file)
    (x, y), _ = data
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    report(val_loss=loss.detach())


def model():"""


def test_a_search_leaves_fixed_widths_alone(tmp_path: Path) -> None:
    file = write_study(
        tmp_path,
        ("def model():", LOOP.lstrip()),
        (RECIPE, "train=train,\n    steps=1"),
        setting("fix=['fc1']"),
    )
    assert command("launch", file).code == 0
    seen = [line.split() for line in Path("widths.txt").read_text().splitlines()]
    assert {width for _, width, _ in seen} == {"16"}
    assert len({width for *_, width in seen}) > 1  # the other one was searched
    for trial in trials():
        assert trial.state == TrialState.COMPLETE
        assert trial.params.keys() == {"fc2"}
        fc2 = trial.params["fc2"]
        assert trial.user_attrs["macs"] == 8 * 16 + 16 * fc2 + fc2 * 3
    shown = json.loads(command("show", "--json").out)
    assert shown["recommended"]["widths"].keys() == {"fc2"}
    assert "fixed by the study (fix='fc1')" in command("show").out


def test_every_trial_respects_the_bounds_by_pattern(tmp_path: Path) -> None:
    bounds = "minimum={'*': 2, 'fc2': 5},\n    multiple_of={'*': 3, 'fc1': 4}"
    file = write_study(tmp_path, (BUDGET, 'budget=Budget(params="0.6x")'), setting(bounds))
    assert command("launch", file).code == 0
    for trial in trials():
        assert trial.state == TrialState.COMPLETE
        assert trial.params["fc1"] % 4 == 0
        assert trial.params["fc1"] >= 4
        assert trial.params["fc2"] % 3 == 0
        assert trial.params["fc2"] >= 6


# The functions themselves --------------------------------------------------------------------------------

MODULES = {
    "stem": ["stem", "layer1.0.conv2", "layer1.1.conv2"],
    "layer1.0.conv1": ["layer1.0.conv1"],
    "w": [],
}


def test_nothing_said_fixes_nothing() -> None:
    assert fixed_by(None, (), MODULES) == {}
    assert fixed_by(["*"], (), MODULES) == {}
    assert numbers_of("minimum", 3, MODULES) == dict.fromkeys(MODULES, 3)
    assert numbers_of("minimum", {}, MODULES) == dict.fromkeys(MODULES, 1)


def test_search_takes_whole_variables_only() -> None:
    assert fixed_by(["layer1.*"], (), MODULES).keys() == {"stem", "w"}
    assert fixed_by(["layer1.*", "stem"], (), MODULES).keys() == {"w"}
    assert fixed_by(["w", "stem"], (), MODULES).keys() == {"layer1.0.conv1"}
    with pytest.raises(
        UsageError, match=r"'\*\.conv2' is a part of 'stem', whose units are also made by stem"
    ):
        fixed_by(["*.conv2"], (), MODULES)


def test_fix_is_stronger_than_search_and_its_reason_is_the_last_pattern() -> None:
    fixed = fixed_by(["*"], ["layer1.*", "layer1.0.*"], MODULES)
    assert fixed == dict.fromkeys(["stem", "layer1.0.conv1"], "fixed by the study (fix='layer1.0.*')")


def test_the_last_matching_pattern_counts() -> None:
    assert numbers_of("minimum", {"stem": 8, "*": 2, "*.conv1": 4}, MODULES) == {
        "stem": 2,
        "layer1.0.conv1": 4,
        "w": 2,
    }


def test_a_long_list_of_variables_is_cut_short() -> None:
    modules = {f"fc{i}": [f"fc{i}"] for i in range(40)}
    with pytest.raises(UsageError, match=r"no width variable 'x'; there are fc0, .*, fc11 and 28 more$"):
        numbers_of("minimum", {"x": 2}, modules)

"""Wrong input is said before any training: in one line, with what is wrong and what to write instead."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from commands import (
    BUDGET,
    DATA,
    MODEL,
    RECIPE,
    STUDY,
    Edit,
    assert_refused,
    command,
    interrupt,
    setting,
    trained_by,
    worker,
    write_study,
)
from torch import Tensor, nn

from widthsearch import Budget, Recipe
from widthsearch.cluster.environment import unpacked
from widthsearch.driver.prepare import prepare
from widthsearch.report.shares import removed, removed_line, side_cost_lines, side_costs
from widthsearch.space import trace
from widthsearch.study.file import load_study, python_files
from widthsearch.training.losses import cross_entropy
from widthsearch.training.recipe_loop import evaluate

pytestmark = pytest.mark.usefixtures("working_folder")

OUTPUT = "return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x)))))"
LOSS = "Recipe(loss=lambda output, target: "


def returns(code: str) -> Edit:
    """The model returns something else, made of its logits ``o`` and its input ``x``."""
    return (OUTPUT, f"o = {OUTPUT[7:]}; return {code}")


def targets(code: str) -> Edit:
    """Other targets."""
    return (DATA, f"y = {code}; {DATA}")


def samples(code: str) -> Edit:
    """A dataset with these samples."""
    return (DATA, f"many = [{code} for i in range(96)]; return Own(many), Own(many)")


def loss(code: str) -> Edit:
    return (RECIPE, f"{RECIPE[:-1]}, loss=lambda output, target: {code})")


def budget(code: str) -> Edit:
    return (BUDGET, f"budget=Budget({code})")


STREAM = (
    "def model():",
    "class Stream(torch.utils.data.IterableDataset):\n    def __iter__(self): return iter([])\n\n\ndef model():",
)
OWN = (
    "def model():",
    "class Own(torch.utils.data.Dataset):\n    def __init__(self, of): self.of = of\n"
    "    def __len__(self): return len(self.of)\n    def __getitem__(self, i): return self.of[i]\n\n\n"
    "def model():",
)
MODEL_OUTPUT = (
    "class Net(nn.Module):",
    "import dataclasses\n@dataclasses.dataclass\nclass Output:\n    loss: object\n    logits: torch.Tensor\n\n\n"
    "class Net(nn.Module):",
)
ONE = ("nn.Linear(12, 3)", "nn.Linear(12, 1)")
DENSE = (OUTPUT, f"o = {OUTPUT[7:]}; return o[:, :, None].expand(-1, -1, 5)")

REFUSED: dict[str, tuple[tuple[Edit, ...], tuple[str, ...]]] = {
    # What a model returns
    "a tuple": ((returns("(o, x)"),), ("a tuple (0: 4x3, 1: 4x8)", f"{LOSS}F.cross_entropy(output[0], target))")),
    "a list": ((returns("[o]"),), ("a list", f"{LOSS}F.cross_entropy(output[0], target))")),
    "a dict": ((returns("{'aux': 1.0, 'logits': o}"),), ("a dict", "output['logits']")),
    "a dataclass": ((returns("Output(None, o)"), MODEL_OUTPUT), ("an Output", "output.logits")),
    "a tuple in train mode": ((returns("(o, x) if self.training else o"),), ("a tuple", "output[0]")),
    "a tuple in eval mode": ((returns("o if self.training else (o, x)"),), ("a tuple", "output[0]")),
    # What the targets are
    "dict targets": ((OWN, samples("(x[i], {'w': torch.ones(1), 'label': y[i]})")), ("train are a dict", "target['w']")),
    "tuple targets": ((OWN, samples("(x[i], (y[i], y[i]))")), ("are a list", "target[0]")),
    "float targets": ((targets("y.float()"),), ("train has float targets of shape 4", "y.long()", "mse_loss")),
    "float targets (N, 1)": ((targets("y.float()[:, None]"),), ("float targets of shape 4x1", "mse_loss")),
    "one output": ((targets("y.float()[:, None]"), ONE), ("one output per sample", "always 0", "mse_loss")),
    "one output, labels": ((targets("y * 0"), ONE), ("one output per sample", "binary_cross_entropy")),
    "one flat output": ((targets("y.float()"), ONE, returns("o[:, 0]")), ("one output per sample", "mse_loss")),
    "several labels at once": ((targets("(torch.rand(96, 3) > .5).float()"),), ("no class probabilities", "binary_")),
    "one-hot integers": ((targets("nn.functional.one_hot(y, 3)"),), ("one-hot targets of shape 4x3", "y.argmax(1)")),
    "labels (N, 1)": ((targets("y[:, None]"),), ("targets of shape 4x1", "shape 4:", "y.squeeze(1)")),
    "labels of a dense output": ((targets("y[:, None].expand(-1, 4)"), DENSE), ("4x4", "4x3x5", "shape 4x5")),
    "dense label too high": ((targets("y[:, None].expand(-1, 5) + 1"), DENSE), ("label 3", "0 to 2")),
    "booleans": ((targets("y > 0"),), ("torch.bool", "y.long()")),
    "int32": ((targets("y.int()"),), ("torch.int32", "y.long()")),
    "nothing but -100": ((targets("y * 0 - 100"),), ("train", "no label but -100")),
    "-1": ((targets("y - 1"),), ("label -1", "or -100")),
    # Losses that compare each output with all targets
    "mse (N, 1), (N,)": ((targets("y.float()"), ONE, loss("nn.functional.mse_loss(output, target)")), ("4x1", "shape 4 of train", "unsqueeze")),
    "l1 (N,), (N, 1)": ((targets("y.float()[:, None]"), ONE, returns("o[:, 0]"), loss("nn.functional.l1_loss(output, target)")), ("shape 4 ", "4x1")),
    "own (N, 1), (N,)": ((targets("x[:, 0]"), ONE, loss("((output - target) ** 2).mean()")), ("4x1", "shape 4 of train")),
    "own (N,), (N, 1)": ((targets("x[:, :1]"), ONE, returns("o[:, 0]"), loss("(output - target).abs().mean()")), ("4x1",)),
    "mse (N, 3), (N, 1)": ((targets("x[:, :1]"), loss("nn.functional.mse_loss(output, target)")), ("4x3", "4x1")),
    "metric": (((RECIPE, f"{RECIPE[:-1]}, metric=lambda output, target: output)"),), ("metric", "one number")),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused(edits: tuple[Edit, ...], says: tuple[str, ...], tmp_path: Path) -> None:
    assert_refused(command("launch", write_study(tmp_path, *edits)), *says)
    assert not Path("widthsearch.db").exists()


ACCEPTED: dict[str, tuple[Edit, ...]] = {
    "-100": (targets("torch.where(x[:, 0] > 1, -100, y)"),),
    "dense -100": (targets("torch.where(x[:, :5] > 1, -100, y[:, None])"), DENSE),
    "a whole batch of -100": (targets("torch.where(torch.arange(96) < 63, -100, y)"),),
    "probabilities": (targets("nn.functional.one_hot(y, 3).float() * .8 + .2 / 3"),),
    "dense probabilities": (targets("nn.functional.one_hot(y, 3).float()[:, :, None].expand(-1, -1, 5)"), DENSE),
    "uint8": (targets("y.byte()"),),
    "own loss of a tuple": (returns("(o, x)"), loss("nn.functional.cross_entropy(output[0], target)")),
    "own loss that squeezes": (targets("x[:, 0]"), ONE, loss("((output[:, 0] - target) ** 2).mean()")),
    "own loss without targets": (targets("x[:, 0]"), ONE, loss("(output ** 2).mean() + 0 * target.sum()")),
}  # fmt: skip


@pytest.mark.sample(4)
@pytest.mark.parametrize("edits", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_it_is_accepted(edits: tuple[Edit, ...], tmp_path: Path) -> None:
    result = command("launch", write_study(tmp_path, *edits))
    assert result.code == 0, result.err


class Answers(nn.Module):
    """Says what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_loss_that_fails_with_gradients_alone_is_left_to_the_trainings(tmp_path: Path) -> None:
    """A full GPU, say: they are tried again."""
    full = """def full(output, target):
    if torch.is_grad_enabled():
        raise RuntimeError("CUDA out of memory")
    return (output - target[:, None]).square().mean()


def model():"""
    loss = (RECIPE, "recipe=Recipe(epochs=1, batch_size=32, lr=0.1, loss=full)")
    assert prepare(load_study(str(write_study(tmp_path, ("def model():", full), loss)))).plan.widths


@pytest.mark.parametrize("dense", [(), (4, 4)])
def test_ignored_labels_count_neither_in_the_loss_nor_in_the_accuracy(dense: tuple[int, ...]) -> None:
    y = torch.randint(0, 3, (70, *dense), generator=torch.Generator().manual_seed(1))
    logits = torch.randn(70, 3, *dense, generator=torch.Generator().manual_seed(2))
    logits.scatter_(1, y.unsqueeze(1), 9.0)
    y[:40:2] = -100
    y[64:] = -100  # a whole batch
    found = evaluate(Answers(), (logits, y), Recipe(batch_size=4))
    assert found.accuracy == 1.0
    assert math.isclose(found.loss, float(F.cross_entropy(logits, y)), rel_tol=1e-5)


def test_the_default_loss_is_that_of_torch_to_the_last_bit() -> None:
    for seed in range(50):
        numbers = torch.Generator().manual_seed(seed)
        output = torch.randn(33, 7, *((3,) if seed % 2 else ()), generator=numbers, requires_grad=True)
        y = torch.randint(0, 7, (33, *output.shape[2:]), generator=numbers)
        y[:seed] = -100 if seed < 30 else 0
        for smoothing in (0.0, 0.1):
            torchs, ours = (
                F.cross_entropy(output, y, label_smoothing=smoothing),
                cross_entropy(output, y, smoothing),
            )
            assert torch.equal(torchs, ours)
            (wanted,), (given,) = torch.autograd.grad(torchs, output), torch.autograd.grad(ours, output)
            assert torch.equal(wanted, given)


# Fields, data and modules that are none -------------------------------------------------------------------

KINDS: dict[str, tuple[tuple[Edit, ...], tuple[str, ...]]] = {
    "a model, not its class": ((("model=model", "model=Net()"),), ("Study(model=Net(", "model=Net, not model=Net()")),
    "the data, not their function": ((("data=data", "data=data()"),), ("Study(data=", "must be a function")),
    "a share as a number": ((budget("macs=0.25"),), ("macs=0.25", "did you mean '0.25x'?")),
    "a share as text": ((budget("params='.5'"),), ("params='.5'", "did you mean '.5x'?")),
    "a fraction": ((budget("macs='1/4'"),), ("macs='1/4'", "did you mean '1/4x'?")),
    "a time as a share": ((budget("latency=0.5"),), ("latency=0.5", "'0.5x'")),
    "Study(epoch)": ((setting("epoch=3"),), ("Study(epoch=...): no such field", "did you mean Recipe(epochs=...)?")),
    "Study(epochs)": ((setting("epochs=3"),), ("Study(epochs=...): no such field; it belongs to Recipe(epochs=...)",)),
    "Study(macs)": ((setting("macs='1x'"),), ("Study(macs=...)", "Budget(macs=...)")),
    "Study(replica)": ((setting("replica=1"),), ("Study(replica=...)", "did you mean replicas?")),
    "Study(zzz)": ((setting("zzz=1"),), ("Study(zzz=...)", "there are rounds, replicas")),
    "Recipe(rounds)": (((RECIPE, f"{RECIPE[:-1]}, rounds=2)"),), ("Recipe(rounds=...)", "Study(rounds=...)")),
    "Recipe(batchsize)": (((RECIPE, f"{RECIPE[:-1]}, batchsize=2)"),), ("Recipe(batchsize=", "mean batch_size?")),
    "Budget(flops)": ((budget("flops='0.5x'"),), ("Budget(flops=...): no such field", "macs, params")),
    "Budget(param)": ((budget("param='0.5x'"),), ("Budget(param=...)", "did you mean params?")),
    "no budget": (((f"    {BUDGET},\n", ""),), ("Study(...) without budget", "budget=...")),
    "x and y": (((DATA, "return x, y"),), ("tuple of 2 (Tensor, Tensor)", "(train, validation[, test]), e.g. ((x[:8")),
    "four tensors": (((DATA, "return x, y, x, y"),), ("tuple of 4 (Tensor", "(train, validation[, test])")),
    "x, y and a split": (((DATA, "return x, y, (x, y)"),), ("tuple of 3 (Tensor, Tensor, tuple)", "pair inputs")),
    "NumPy's x and y": (((DATA, "return x.numpy(), y.numpy()"),), ("(ndarray, ndarray)", "e.g. ((x[:8")),
    "a loader": (((DATA, "return torch.utils.data.DataLoader([(x, y)])"),), ("returned DataLoader", "must return")),
    "loaders": (((DATA, "a = torch.utils.data.DataLoader(list(zip(x, y))); return a, a"),), ("train is a DataLoader", "loader.dataset")),
    "a stream": (((DATA, "return Stream(), Stream()"), STREAM), ("train is Stream", "Recipe(steps_per_epoch=100)", "__getitem__ and __len__")),
    "warm-up twice": (
        ((RECIPE, f"{RECIPE[:-1]}, warmup=0.1)"),),
        ("Recipe(warmup=0.1, schedule='one-cycle')", "take schedule='cosine'"),
    ),
    "a collate_fn of one": (
        ((RECIPE, f"{RECIPE[:-1]}, collate_fn=len)"), OWN, samples("(x[i], y[i])")),
        ("Recipe(collate_fn=...): of train it made int", "pair (x, y)"),
    ),
    "a generator": (((DATA, "return (s for s in zip(x, y)), (x, y)"),), ("train is generator", "__getitem__")),
    "three tensors": (((DATA, "return (x, y, y), (x, y)"),), ("train is tuple of 3", "pair of tensors (x, y)")),
    "samples of three": ((OWN, samples("(x[i], y[i], 1.0)")), ("train are tuple of 3", "(x, (y, weight))")),
    "samples in dicts": ((OWN, samples("{'x': x[i], 'y': y[i]}")), ("train are dict", "pairs (x, y)")),
    "samples of inputs alone": ((OWN, samples("x[i]")), ("train are Tensor", "pairs (x, y)")),
    "a lazy layer": ((("nn.Linear(8, 16)", "nn.LazyLinear(16)"),), ("fc1 is LazyLinear", "first call", "model()")),
    "a lazy norm": (((MODEL, "return nn.Sequential(Net(), nn.LazyBatchNorm1d())"),), ("1 is LazyBatchNorm1d",)),
    "scripted": (((MODEL, "return torch.jit.script(Net())"),), ("the model is", "torch.jit", "plain module")),
    "scripted inside": (((MODEL, "return nn.Sequential(torch.jit.script(Net()))"),), ("Sequential: 0 is", "torch.jit")),
    "traced": (((MODEL, "return torch.jit.trace(Net(), torch.zeros(2, 8))"),), ("torch.jit", "plain module")),
    "compiled": (((MODEL, "return torch.compile(Net())"),), ("torch.compile", "plain module")),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "says"), KINDS.values(), ids=KINDS.keys())
def test_what_it_is_not_is_refused(edits: tuple[Edit, ...], says: tuple[str, ...], tmp_path: Path) -> None:
    assert_refused(command("launch", write_study(tmp_path, *edits)), *says)


def test_a_share_on_the_command_line(tiny: Path) -> None:
    assert_refused(command("launch", tiny, "--budget", "macs=0.25"), "did you mean '0.25x'?")


# Study files that know where they are ---------------------------------------------------------------------

ARGUMENTS: Edit = (
    "def model():",
    "import argparse\n_parser = argparse.ArgumentParser()\n_parser.add_argument('--width', type=int, default=16)\n"
    "_given = _parser.parse_args()\n\n\ndef model():",
)


def package(folder: Path, relative: str = ".net") -> Path:
    """The tiny study in a package, its network in another file."""
    (folder / "__init__.py").write_text("")
    head, net = STUDY.split("class Net")
    net, rest = net.split("\n\n\ndef model")
    (folder / "net.py").write_text(f"from torch import nn\nimport torch\n\n\nclass Net{net}\n")
    where = folder / "inner" if relative.startswith("..") else folder
    where.mkdir(exist_ok=True)
    (where / "__init__.py").write_text("")
    (where / "tiny.py").write_text(f"{head}from {relative} import Net\n\n\ndef model{rest}")
    return where / "tiny.py"


def test_a_file_that_parses_arguments_is_alone_on_the_command_line(tmp_path: Path) -> None:
    before = list(sys.argv)
    result = command("widths", write_study(tmp_path, ARGUMENTS), "--json")
    assert result.code == 0, result.err
    assert sys.argv == before


def test_so_are_its_functions(tmp_path: Path) -> None:
    parse = "    import argparse\n\n    argparse.ArgumentParser().parse_args()\n"
    before = list(sys.argv)
    edits = [(f"def {name}():\n", f"def {name}():\n{parse}") for name in ("model", "data")]
    result = command("widths", write_study(tmp_path, *edits), "--json")
    assert result.code == 0, result.err
    assert sys.argv == before


@pytest.mark.parametrize("relative", [".net", "..net"])
def test_a_file_in_a_package_imports_relative_to_it(relative: str, tmp_path: Path) -> None:
    (folder := tmp_path / f"mine{relative.count('.')}").mkdir()
    result = command("widths", package(folder, relative), "--json")
    assert result.code == 0, result.err


def test_a_file_in_a_folder_with_the_name_of_another_package_says_so(tmp_path: Path) -> None:
    (folder := tmp_path / "json").mkdir()
    assert_refused(command("widths", package(folder)), "'json'", "rename")


@pytest.mark.sample(1)
@pytest.mark.parametrize("relative", [".net", "..net"])
def test_workers_get_the_package_too(relative: str, tmp_path: Path) -> None:
    (folder := tmp_path / f"sent{relative.count('.')}").mkdir()
    file = package(folder, relative)
    files = python_files(file)
    assert next(iter(files)) == file.relative_to(tmp_path).as_posix()
    assert unpacked(str(file), files) == str(file)
    shutil.rmtree(folder)
    copy = Path(unpacked(str(file), files))
    assert copy.name == "tiny.py" and copy.is_relative_to(tempfile.gettempdir())
    script = f"from widthsearch.study.file import load_study; load_study({str(copy)!r}).study.model()"
    subprocess.run([sys.executable, "-c", script], check=True)
    shutil.rmtree(copy.parents[len(file.relative_to(tmp_path).parts) - 1])


def test_workers_load_such_files(tmp_path: Path) -> None:
    (folder := tmp_path / "remote").mkdir()
    file = package(folder)
    file.write_text(file.read_text().replace(*ARGUMENTS))
    interrupt(file, 0)
    assert "val_loss" in trained_by(*worker(file))["outcomes"][0]


# Memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "largest"), [(1, 8), (4, 32), (128, 1024), (512, 1024), (1500, 1500)])
def test_an_evaluation_takes_a_few_batches_at_once(batch_size: int, largest: int) -> None:
    seen = []
    net = Answers()
    net.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    evaluate(net, (torch.zeros(2000, 3), torch.zeros(2000, dtype=torch.int64)), Recipe(batch_size=batch_size))
    assert max(seen) == largest and sum(seen) == 2000


# Modules that no example runs -----------------------------------------------------------------------------

HEADS = """
import torch
import torch.nn.functional as F
from torch import nn
from widthsearch import Budget, Study


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.heads = nn.ModuleDict({"a": nn.Linear(24, 3), "b": nn.Sequential(nn.Linear(24, 7), nn.Linear(7, 5))})

    def forward(self, x, task="a"):
        return self.heads[task](self.trunk(x))


def data():
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    split = (x, x[:, :3].argmax(1), x[:, 3:8].argmax(1))
    return split, split


def train(net, data, report):
    x, ya, yb = data[0]
    opt = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(8):
        opt.zero_grad()
        (F.cross_entropy(net(x, task="a"), ya) + F.cross_entropy(net(x, task="b"), yb)).backward()
        opt.step()
    net.eval()
    with torch.no_grad():
        report(val_loss=F.cross_entropy(net(x), ya) + F.cross_entropy(net(x, task="b"), yb))


x = torch.randn(2, 10)
study = Study(model=Net, data=data, train=train, steps=8, EXAMPLE, budget=Budget(macs="0.5x"),
              rounds=1, replicas=1, seeds=1, final_seeds=0, report_seeds=2, step_sizes=[0.6], doublings=0)
"""
BOTH = "examples=[x, {'x': x, 'task': 'b'}]"


def heads(example: str) -> Path:
    Path("heads.py").write_text(HEADS.replace("EXAMPLE", example))
    return Path("heads.py")


def test_what_no_example_runs_is_said_and_what_it_may_read_keeps_its_width() -> None:
    file = heads("example=x")
    found = json.loads(command("widths", file, "--json").out)
    assert found["not_run"] == ["heads.b"]
    assert [v["name"] for v in found["variables"]] == ["trunk.0"]
    assert [(f["name"], f["width"]) for f in found["frozen"]] == [("trunk.2", 24)]
    assert "heads.b has the size 24 too" in found["frozen"][0]["reason"]
    said = "not run by any example: heads.b (one that runs it: Study(examples=[...]))"
    for verb in ("widths", "launch"):
        result = command(verb, file)
        assert result.code == 0, result.err
        assert said in " ".join((result.out + result.err).split())


def test_several_examples_run_every_module() -> None:
    file = heads(BOTH)
    found = json.loads(command("widths", file, "--json").out)
    assert found["not_run"] == found["frozen"] == []
    assert [v["name"] for v in found["variables"]] == ["trunk.0", "trunk.2", "heads.b.0"]
    assert found["macs"] == 10 * 32 + 32 * 24 + round((24 * 3 + 24 * 7 + 7 * 5) / 2)  # the mean
    result = command("launch", file)
    assert result.code == 0, result.err


def test_examples_that_are_none() -> None:
    for given, said in {
        "examples=x": "Study(examples=",
        "examples=[]": "must be a list",
        "example=x, examples=[x]": "give one",
        "examples=[x, {'x': x, 'task': 'c'}]": "KeyError",
    }.items():
        assert_refused(command("widths", heads(given)), said)


class Late(nn.Module):
    """Reads its units once more, flattened, after a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last, self.more = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8 * 36, 5)
        self.norm, self.scale = nn.BatchNorm2d(8), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor, late: bool = False) -> Tensor:
        x = self.conv(x)
        return self.more(self.norm(x).flatten(1)) if late else self.last(x.mean((2, 3)))


class Experts(nn.Module):
    """Each expert has hidden units of its own; those of one that is not run are no reason to keep the others'."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(5, 12), nn.Linear(12, 3)
        hidden = lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12))  # noqa: E731
        self.experts = nn.ModuleList(hidden() for _ in range(3))

    def forward(self, x: Tensor, chosen: int = 0) -> Tensor:
        return self.out(self.experts[chosen](self.embed(x)))


def test_an_idle_expert_keeps_only_what_it_can_get_at() -> None:
    space = trace(Experts(), torch.randn(2, 5), more=[(torch.randn(2, 5), 1)])
    assert space.idle == ("experts.2",) and space.widths == {"experts.0.0": 16, "experts.1.0": 16}
    assert [(f.name, f.width) for f in space.frozen] == [("embed", 12), ("experts.0.2", 12)]
    assert space.resize({"experts.0.0": 7, "experts.1.0": 9})(torch.randn(2, 5), 2).shape == (2, 3)


def test_flattened_units_single_parameters_and_widths_that_differ_between_examples() -> None:
    x = torch.randn(2, 3, 8, 8)
    space = trace(Late(), x)
    assert set(space.idle) == {"norm", "scale", "more"} and not space.widths
    space = trace(Late(), x, more=[(x, True)])
    assert space.idle == ("scale",) and space.widths == {"conv": 8}
    resized = space.resize({"conv": 5})
    assert resized(x).shape == resized(x, True).shape == (2, 5)
    at = space.at({"conv": 6})
    assert at.widths == {"conv": 6} and at.idle == ("scale",)


def test_a_budget_must_limit_every_variable() -> None:
    file = heads("example=x")
    file.write_text(
        file.read_text()
        .replace("self.trunk(x))", "(self.trunk(x)))")
        .replace(
            "return self.heads", "if self.training: self.heads['b'](self.trunk(x))\n        return self.heads"
        )
    )
    assert_refused(
        command("launch", file, "--budget", "macs=0.5x,params=any"), "heads.b.0", "macs and params"
    )


# What a budget does not limit -----------------------------------------------------------------------------

SEED = {"macs": 1000, "params": 401, "latency": 0.01}


@pytest.mark.parametrize(
    ("text", "limits"),
    {
        "macs=0.25x": {"macs": 250, "params": 100},
        "params=1/4x": {"macs": 250, "params": 100},
        "macs=500": {"macs": 500, "params": 200},
        "params=802": {"macs": 2000, "params": 802},
        "macs=1": {"macs": 1, "params": 1},
        "macs=0.25x,params=any": {"macs": 250},
        "params=100,macs=any": {"params": 100},
        "macs=0.25x,params=2x": {"macs": 250, "params": 802},
        "latency=0.5x": {"latency": 0.005},
        "latency=0.5x,macs=0.25x": {"macs": 250, "params": 100, "latency": 0.005},
    }.items(),
)
def test_one_of_macs_and_parameters_limits_the_other(text: str, limits: dict[str, float]) -> None:
    found = Budget.parse(text).absolute(SEED)
    assert found == limits and list(found) == [r for r in SEED if r in found]


@pytest.mark.parametrize("text", ["macs=any", "macs=any,params=any"])
def test_a_budget_without_any_limit(text: str, tiny: Path) -> None:
    assert_refused(command("launch", tiny, "--budget", text), "budget is empty")


WIDE_END: tuple[Edit, ...] = (  # its last hidden layer costs many weights and few MACs
    (OUTPUT, "return self.out(torch.relu(self.fc2(torch.relu(self.fc1(x.view(-1, 8, 1).expand(-1, 8, 16).transpose(1, 2))).mean(1))))"),
    ("nn.Linear(12, 3)", "nn.Linear(12, 5)"),
)  # fmt: skip


def test_side_costs_are_named(tmp_path: Path) -> None:
    file = write_study(tmp_path, *WIDE_END)
    shown = json.loads(command("widths", file, "--budget", "macs=0.5x,params=any", "--json").out)
    ratio = shown["cost_aware"]["params"] / shown["uniform"]["params"]
    assert ratio > 1.1
    said = f"side cost: the cost-aware widths have {ratio:.1f} times the parameters of the uniform network"
    for verb in ("widths", "launch"):
        result = command(verb, file, "--budget", "macs=0.5x,params=any")
        assert said in " ".join((result.out + result.err).split())
    summary = json.loads(command("show", "--json").out)
    if summary["recommended"]["params"] > 1.1 * summary["baseline"]["params"]:
        assert [c["resource"] for c in summary["side_costs"]] == ["params"]
        assert "side cost: the recommended network has" in command("show").out
    assert "side cost" not in command("widths", file, "--budget", "macs=0.5x").out


def test_side_costs_and_what_is_added() -> None:
    uniform: Any = {"widths": {"a": 10}, "macs": 1000, "params": 100}
    network: Any = {"widths": {"a": 40}, "macs": 990, "params": 662}
    (cost,) = side_costs({"macs": 1000}, uniform, network)
    assert side_cost_lines([cost], "it has") == [
        "side cost: it has 6.6 times the parameters of the uniform network (662 against 100), "
        "which the budget does not limit"
    ]
    assert side_costs({"macs": 1, "params": 1}, uniform, network) == side_costs({}, uniform, None) == []
    assert side_costs({"macs": 1}, uniform, {**uniform, "params": 110}) == []
    line = removed_line({"removed": removed(uniform, network)})  # type: ignore[typeddict-item]
    assert line == (
        "removed of the seed network: 1.0% of the MACs; "
        "added to the seed network: 300.0% of the neurons, 562.0% of the weights"
    )

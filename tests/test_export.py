"""``widthsearch export``, from a launched study to files that are used without it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from commands import (
    DATA,
    HEADER,
    RECIPE,
    Finished,
    Result,
    assert_refused,
    clean_process,
    command,
    interrupt,
    snapshot,
    start,
    write_study,
)
from networks import NETWORKS, vectors
from test_attention import SEQUENCE, SelfAttention
from torch import Tensor, nn

from widthsearch import UsageError, resize
from widthsearch.export.export import FILES, export
from widthsearch.export.onnx_file import NotExportedError, write_onnx
from widthsearch.study.file import load_study
from widthsearch.study.study import Study
from widthsearch.training.recipe_loop import RecipeLoop

pytestmark = pytest.mark.usefixtures("working_folder")
WITHOUT_WEIGHTS = ("widths.json", "widths.md", "example.pt", "README.txt")
ONNX = ("onnx", "onnxscript", "onnxruntime")

CONV = '''class Net(nn.Module):
    """A convolution with BatchNorm, grouped ones, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 12, 3), nn.BatchNorm1d(12)
        self.deep, self.scale = nn.Conv1d(12, 12, 3, groups=12), nn.Parameter(torch.ones(12, 1))
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x[:, None]))) * self.scale
        return self.out(torch.relu(self.deep(x)).mean(2))


class Unused(nn.Module):'''


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished study of a convolutional network, with a test split."""
    folder = tmp_path_factory.mktemp("conv")
    test = f"{DATA}, (x[64:], y[64:])"
    file = write_study(folder, (HEADER, CONV), (DATA, test), (RECIPE, RECIPE.replace("epochs=1", "epochs=3")))
    url = f"sqlite:///{folder / 'widthsearch.db'}"
    result = command("launch", file, "--storage", url)
    assert result.code == 0, result.err
    return Finished(file, url, result, [])


@pytest.fixture(scope="module")
def exported(conv: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("exported") / "deep" / "net"
    result = command("export", "--storage", conv.url, "--study", conv.file, "-o", folder)
    assert result.code == 0, result.err
    return folder, result


def summary(study: Finished) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command("show", "--storage", study.url, "--json").out)
    return found


def study_of(found: Finished) -> Study:
    with clean_process():
        return load_study(str(found.file)).study


def best_value(study: Finished) -> float:
    """The lowest validation loss of the recommended widths on fresh seeds."""
    widths = summary(study)["recommended"]["widths"]
    trials = optuna.load_study(study_name="tiny", storage=study.url).get_trials()
    fresh = [t for t in trials if t.params == widths and t.user_attrs["replica"] >= 2]
    assert len(fresh) == 2
    return min(float(t.value or 0) for t in fresh)


def test_widths_json_says_what_show_says(conv: Finished, exported: tuple[Path, Result]) -> None:
    found, shown = json.loads((exported[0] / "widths.json").read_text()), summary(conv)
    for key in ("study", "status", "verdict", "gain", "budget", "seed"):
        assert found[key] == shown[key]
    for key in ("round", "widths", "macs", "params", "val_loss", "test_loss"):
        assert found[key] == shown["recommended"][key]


def test_the_weights_reproduce_the_recorded_loss(conv: Finished, exported: tuple[Path, Result]) -> None:
    folder, result = exported
    saved = torch.load(folder / "model.pt", weights_only=True)
    study = study_of(conv)
    net = resize(study.model(), str(folder / "widths.json"), torch.zeros(2, 8))
    net.load_state_dict(saved["state_dict"], strict=True)
    loss = RecipeLoop(study.recipe, study.data()).evaluate(net, "validation").loss
    assert loss == saved["val_loss"] == saved["trial_val_loss"] == best_value(conv)
    assert saved["recipe"]["epochs"] == 3 and saved["recipe"]["optimizer"] == "sgd"
    assert "to the last bit" in result.out


def test_every_row_of_the_table_is_true(conv: Finished, exported: tuple[Path, Result]) -> None:
    text = (exported[0] / "widths.md").read_text()
    rows = re.findall(r"^\| `(.*?)` \| (\w+) \| `(\w+)` \| (.+) \| (.+) \|$", text, flags=re.MULTILINE)
    rows += [
        ("", *r)
        for r in re.findall(r"^\| \(the network\) \| (\w+) \| `(\w+)` \| (.+) \| (.+) \|$", text, re.M)
    ]
    study = study_of(conv)
    old = study.model()
    new = resize(old, exported[0] / "widths.json", torch.zeros(2, 8))
    assert {f"{module}.{name}".strip(".") for module, _, name, *_ in rows} == {
        *("conv.out_channels", "norm.num_features", "scale", "out.in_features"),
        *("deep.in_channels", "deep.out_channels", "deep.groups"),
    }
    for module, kind, name, *values in rows:
        for net, value in zip((old, new), values, strict=True):
            there = getattr(net.get_submodule(module), name)
            assert type(net.get_submodule(module)).__name__ == kind
            assert (tuple(there.shape) if isinstance(there, Tensor) else there) == ast.literal_eval(value)


def lines_of(folder: Path) -> str:
    """The program in README.txt."""
    text = (folder / "README.txt").read_text()
    return textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ")))


def run_lines(folder: Path, *more: str) -> str:
    """What they print in a fresh process, run in the folder."""
    code = "\n".join([lines_of(folder), *more])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_lines_of_the_readme_rebuild_the_network(conv: Finished, exported: tuple[Path, Result]) -> None:
    folder, _ = exported
    assert len([line for line in lines_of(folder).splitlines() if " = " in line or "load_state" in line]) == 3
    output = run_lines(folder, "print(model.eval()(torch.ones(2, 8)).tolist())")
    net = resize(study_of(conv).model(), folder / "widths.json", torch.zeros(2, 8)).eval()
    net.load_state_dict(torch.load(folder / "model.pt", weights_only=True)["state_dict"])
    with torch.no_grad():
        assert ast.literal_eval(output) == net(torch.ones(2, 8)).tolist()


def test_the_example_is_the_first_samples_and_nothing_more(
    conv: Finished, exported: tuple[Path, Result]
) -> None:
    example = torch.load(exported[0] / "example.pt", weights_only=True)
    x = study_of(conv).data()[0][0]
    assert torch.equal(example, x[:2]) and len(example.untyped_storage()) == 2 * 8 * 4


def test_onnx_does_what_torch_does(conv: Finished, exported: tuple[Path, Result]) -> None:
    for package in ONNX:
        pytest.importorskip(package)
    import onnxruntime

    folder, result = exported
    assert "any batch size; onnxruntime and torch differ by" in result.out
    assert set(FILES) - {"model.onnx.data"} == {p.name for p in folder.iterdir()}
    net = resize(study_of(conv).model(), folder / "widths.json", torch.zeros(2, 8)).eval()
    net.load_state_dict(torch.load(folder / "model.pt", weights_only=True)["state_dict"])
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 2, 7):
        x = torch.randn(size, 8, generator=torch.Generator().manual_seed(size))
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.as_tensor(found), net(x), atol=1e-5)


def test_exporting_changes_nothing_in_the_database_and_leaves_no_trace(
    conv: Finished, tmp_path: Path
) -> None:
    before, beside = snapshot(conv.url), sorted(conv.file.parent.rglob("*"))
    threads = torch.get_num_threads()
    done = export("tiny", conv.url, tmp_path / "net", file=str(conv.file))
    assert snapshot(conv.url) == before and torch.get_num_threads() == threads
    assert [p.name for p in tmp_path.iterdir()] == ["net"]  # nothing aside
    assert [p for p in sorted(conv.file.parent.rglob("*")) if "__pycache__" not in p.parts] == beside
    assert set(done.files) == {p.name for p in done.folder.iterdir()}


def test_without_weights_nothing_is_trained(conv: Finished) -> None:
    result = command("export", "--storage", conv.url, "--study", conv.file, "-o", "net", "--no-weights")
    assert result.code == 0 and "training" not in result.out
    assert {p.name for p in Path("net").iterdir()} == {*WITHOUT_WEIGHTS}
    widths = json.loads(Path("net/widths.json").read_text())["widths"]
    printed = run_lines(Path("net"), "print(model.conv.out_channels)")
    assert int(printed) == widths["conv"]


def test_without_onnx_the_rest_is_written(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = command("export", "--storage", finished.url, "--study", finished.file, "-o", "net")
    assert result.code == 0
    assert "left out: onnx is missing: pip install 'widthsearch[onnx]'" in result.out
    assert {p.name for p in Path("net").iterdir()} == {"model.pt", *WITHOUT_WEIGHTS}


# Refusals ------------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_refused_and_kept(finished: Finished) -> None:
    Path("net").mkdir()
    Path("net/mine.txt").write_text("precious")
    Path("net/model.onnx").write_text("of an earlier export")
    assert_refused(
        command("export", "--storage", finished.url, "--study", finished.file, "-o", "net"),
        "'net'",
        "not empty",
        "--force",
    )
    assert Path("net/model.onnx").exists()
    result = command(
        "export", "--storage", finished.url, "--study", finished.file, "-o", "net", "--no-weights", "--force"
    )
    assert result.code == 0, result.err
    assert {p.name for p in Path("net").iterdir()} == {"mine.txt", *WITHOUT_WEIGHTS}
    assert {p.name for p in Path.cwd().iterdir()} == {"net"}


@pytest.mark.parametrize("folder", ["taken", "taken/net", "x" * 300, "\0"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_trained(
    finished: Finished, folder: str
) -> None:
    Path("taken").write_text("a file")
    with pytest.raises(UsageError, match="taken|xxx|cannot be used"):
        export(None, finished.url, folder, file=str(finished.file), say=lambda text: pytest.fail(text))
    assert [p.name for p in Path.cwd().iterdir()] == ["taken"]


def test_no_recommendation_yet(tiny: Path) -> None:
    interrupt(tiny, stop_at=1)
    assert_refused(
        command("export", "-o", "net"),
        "'tiny' (interrupted)",
        "no recommendation yet",
        "widthsearch resume tiny",
    )
    assert not Path("net").exists()


def test_what_an_unfinished_search_recommends_is_called_that(tiny: Path) -> None:
    interrupt(tiny, stop_at=8)
    if summary(Finished(tiny, "sqlite:///widthsearch.db", None, []))["recommended"] is None:  # type: ignore[arg-type]
        pytest.fail("the search has not scored anything by then")
    assert command("export", "-o", "net").code == 0
    assert "what it recommends may still change" in Path("net/README.txt").read_text()
    assert command("resume").code == 0  # its checkpoints were left alone


def test_a_comparison_is_refused(tiny: Path) -> None:
    assert command("compare", tiny, "--arms", "uniform", "--workers", "0").code == 0
    assert_refused(command("export", "-o", "net"), "'tiny-compare'", "comparison")


def test_a_changed_study_file(tiny: Path) -> None:
    assert command("launch", tiny).code == 0
    tiny.write_text(tiny.read_text().replace("lr=0.1", "lr=0.2"))
    assert_refused(command("export", "-o", "net"), "recipe.lr: 0.1 -> 0.2", "--force")
    result = command("export", "-o", "net", "--force")
    assert result.code == 0 and "trial" in result.out and "to the last bit" not in result.out
    saved = torch.load("net/model.pt", weights_only=True)
    assert saved["val_loss"] != saved["trial_val_loss"] and saved["recipe"]["lr"] == 0.2
    tiny.write_text(tiny.read_text().replace("self.fc2", "self.middle"))
    assert_refused(command("export", "-o", "other", "--force"), "other width variables")
    tiny.rename("moved.py")
    assert_refused(command("export", "-o", "other"), "is gone", "--study")


def test_no_such_study(finished: Finished) -> None:
    assert_refused(command("export", "nope", "--storage", finished.url, "-o", "net"), "'nope'", "tiny")


# Loops of one's own, interruptions -----------------------------------------------------------------------

LOOP = """def train(model, data, report):
    (x, y), (vx, vy) = data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    report(val_loss=nn.functional.cross_entropy(model(vx), vy).detach() NOISE)


def model():"""


@pytest.mark.parametrize("noise", ["", " + torch.tensor(__import__('time').time_ns() % 1000) / 1e6"])
def test_a_training_loop_of_ones_own(tmp_path: Path, noise: str) -> None:
    """Reproduced where it can be; where it cannot be, that is said, and the loss that was reached is written."""
    edits = (("def model():", LOOP.replace(" NOISE", noise)), (RECIPE, "train=train, steps=4"))
    assert command("launch", write_study(tmp_path, *edits)).code == 0
    result = command("export", "-o", "net")
    assert result.code == 0, result.err
    saved = torch.load("net/model.pt", weights_only=True)
    assert ("to the last bit" in result.out) == (saved["val_loss"] == saved["trial_val_loss"]) == (not noise)
    assert saved["recipe"] == {"train": "train", "evaluate": None, "steps": 4}


def test_a_training_that_fails_says_so(tmp_path: Path) -> None:
    """It worked in the search, and does not here (other hardware, say)."""
    body = (
        "def model():",
        "import pathlib\n\n\ndef loss(o, t):\n    assert not pathlib.Path('stop').exists(), 'no'\n"
        "    return nn.functional.cross_entropy(o, t)\n\n\ndef model():",
    )
    assert command("launch", write_study(tmp_path, body, (RECIPE, f"{RECIPE[:-1]}, loss=loss)"))).code == 0
    Path("stop").touch()
    assert_refused(command("export", "-o", "net"), "training it again failed", "no", "--no-weights")
    assert not Path("net").exists()


@pytest.mark.nightly
@pytest.mark.slow
def test_interrupted_it_leaves_nothing_half_written_and_goes_on(tmp_path: Path) -> None:
    slow = (
        "def model():",
        "import time\n\n\ndef loss(o, t):\n    time.sleep(0.02)\n"
        "    return nn.functional.cross_entropy(o, t)\n\n\ndef model():",
    )
    recipe = (RECIPE, f"{RECIPE[:-1].replace('epochs=1', 'epochs=40')}, loss=loss)")
    file = write_study(
        tmp_path, slow, recipe, ("replicas=2", "replicas=1"), ("seeds=2,\n    final", "seeds=1,\n    final")
    )
    assert command("launch", file).code == 0
    process = start("export", "-o", "net")
    lines: Iterator[str] = iter(process.stdout or ())
    assert "training the network of trial" in next(lines)
    checkpoints = tmp_path / "widthsearch.db.checkpoints"
    while not [*checkpoints.rglob("*.ckpt")]:
        assert process.poll() is None
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "nothing was written" in err
    assert not Path("net").exists() and not [*tmp_path.glob(".*.tmp")]
    assert [*checkpoints.rglob("*.ckpt")]
    result = command("export", "-o", "net")
    assert result.code == 0 and "to the last bit" in result.out
    assert not checkpoints.exists()


# resize and ONNX by themselves ---------------------------------------------------------------------------


def test_resize_is_a_fresh_copy() -> None:
    network = NETWORKS["mlp"]
    model = network.factory()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(1)
    first = resize(model, {"0": 7}, network.example)
    torch.manual_seed(1)
    second = resize(model, {"0": 7, "3": 12}, network.example)  # a variable that is not named keeps its width
    assert [m.out_features for m in first if isinstance(m, nn.Linear)] == [7, 12, 5]
    for (name, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not torch.equal(resize(model, {}, network.example)[0].weight, model[0].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    ("widths", "words"),
    [
        ({"9": 3}, ["Sequential", "'9'", "0, 3"]),
        ({"0": 0}, ["0", "at least 1", "not 0"]),
        ({"0": 2.5}, ["2.5"]),
        ({"0": "many"}, ["'many'"]),
        ("nowhere.json", ["nowhere.json", "widths.json"]),
        (["0", 3], ["dictionary"]),
        ("list.json", ["list.json", "[1, 2]"]),
        ("text.json", ["text.json", "JSONDecodeError"]),
    ],
)
def test_resize_refuses_in_one_line(widths: Any, words: list[str]) -> None:
    Path("list.json").write_text('{"widths": [1, 2]}')
    Path("text.json").write_text("widths")
    network = NETWORKS["mlp"]
    with pytest.raises(UsageError) as error:
        resize(network.factory(), widths, network.example)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_resize_keeps_the_number_of_heads_where_the_study_does() -> None:
    model = SelfAttention("fused", heads=4)
    assert resize(model, {"q": 5}, SEQUENCE, keep_heads=True).q.out_features == 4 * 5  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="no width variable 'v'"):
        resize(model, {"v": 5}, SEQUENCE)  # one head is one unit, of queries, keys and values at once


def test_resize_refuses_what_is_no_network_and_what_does_not_run() -> None:
    network = NETWORKS["mlp"]
    with pytest.raises(UsageError, match="torch.nn.Module"):
        resize(network.factory, {}, network.example)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does not run on the example"):
        resize(network.factory(), {}, torch.zeros(2, 3))


@pytest.mark.parametrize("name", ["resnet", "tokens", "unet"])
def test_networks_that_export(name: str, tmp_path: Path) -> None:
    for package in ONNX:
        pytest.importorskip(package)
    torch.manual_seed(0)
    found = write_onnx(NETWORKS[name].factory().eval(), NETWORKS[name].example, tmp_path / "net.onnx")
    assert found.any_batch and found.difference < 1e-4


def test_networks_that_do_not_export_or_only_in_part(tmp_path: Path) -> None:
    for package in ONNX:
        pytest.importorskip(package)

    class OfTwo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return self.fc(x).reshape(2, 3)  # of two samples, and no more

    file = tmp_path / "net.onnx"
    found = write_onnx(OfTwo().eval(), vectors(4), file)
    assert not found.any_batch and found.difference < 1e-5
    two = NETWORKS["two_inputs"]  # its forward pass reads a value
    with pytest.raises(NotExportedError) as error:
        write_onnx(two.factory().eval(), two.example, file)
    assert "\n" not in str(error.value)
    named = {"x": two.example[0], "y": two.example[1]}

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(6, 3)

        def forward(self, y: Tensor, x: Tensor) -> dict[str, Tensor]:
            return {"sum": self.left(x) + self.right(y)}

    assert write_onnx(Named().eval(), named, file).any_batch

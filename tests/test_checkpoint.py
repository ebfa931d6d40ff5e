"""A training that goes on from its checkpoint is the training that was never stopped, to the last bit."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import clean_process
from torch import nn

from widthsearch import Budget, Recipe, Study
from widthsearch.database.folder import Folder
from widthsearch.database.records import HOST, SECONDS
from widthsearch.driver.prepare import make_plan
from widthsearch.errors import CheckpointError, TrainingError
from widthsearch.plans.plan import Plan, Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.training.batches import steps_per_epoch
from widthsearch.training.checkpoint import Checkpoint
from widthsearch.training.trial import TrialRunner, build_space

EPOCHS = 4


def network() -> nn.Module:
    """With all that keeps state or draws random numbers: running statistics, dropout."""
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool1d(4),
        nn.Flatten(), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip


def tensors() -> Any:
    x = torch.randn(96, 2, 12, generator=torch.Generator().manual_seed(0))
    y = x[:, 0, :3].argmax(1)
    return (x[:64], y[:64]), (x[64:], y[64:])


class Noisy(torch.utils.data.Dataset[Any]):
    """Augments with all three kinds of global random numbers."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        import random

        import numpy as np

        return self.x[i] + torch.rand(()) + np.random.rand() + random.random(), self.y[i]


def datasets() -> Any:
    train, validation = tensors()
    return Noisy(*train), validation


RECIPES = {
    "one-cycle": (tensors, Recipe(epochs=EPOCHS, batch_size=16, lr=0.1)),
    "adamw, cosine, warm-up, clipped, averaged": (
        tensors,
        Recipe(
            epochs=EPOCHS,
            batch_size=16,
            lr=0.01,
            optimizer="adamw",
            schedule="cosine",
            warmup=0.4,
            clip_grad_norm=0.5,
            ema=0.9,
        ),
    ),  # fmt: skip
    "constant, augmented": (datasets, Recipe(epochs=EPOCHS, batch_size=16, lr=0.1, schedule="constant")),
}


class Killed(BaseException):
    """The worker dies."""


@pytest.fixture(params=RECIPES)
def study(request: pytest.FixtureRequest) -> Study:
    data, recipe = RECIPES[request.param]
    return Study(
        model=network, data=data, budget=Budget(params="0.5x", macs="any"), recipe=recipe, measure_length=0.9
    )


@functools.cache
def plan_for(study: Study) -> Plan:
    return make_plan(study, build_space(study, study.data()))


def runner(study: Study, folder: str | None, identity: str = "this study") -> TrialRunner:
    return TrialRunner(study, SearchPlan(plan_for(study)), None if folder is None else (folder, identity))


def slot_of(kind: Any, study: Study) -> Slot:
    plan = plan_for(study)
    return Slot(kind, 0, 1, plan.over_wide(plan.widths) if kind == "measure" else plan.baseline)


def outcome(found: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in found.items() if k not in (SECONDS, HOST)}


def run_until(
    monkeypatch: pytest.MonkeyPatch,
    study: Study,
    slot: Slot,
    folder: str,
    epoch: int,
    identity: str = "this study",
) -> None:
    """Run the slot until its worker is killed, after the checkpoint of this epoch was written."""
    real = Checkpoint.save

    def save(self: Checkpoint, epochs: int, parts: Any) -> None:
        real(self, epochs, parts)
        if epochs == epoch:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", save)
        patched.setattr("widthsearch.training.checkpoint.WRITING_SHARE", 1e9)  # every epoch, however fast
        with pytest.raises(TrainingError, match="Killed"):
            runner(study, folder, identity).run(slot)


@pytest.mark.sample(12)
@pytest.mark.parametrize(
    "kind, pruner", [("score", "l0"), ("measure", "l0"), ("measure", "l1"), ("measure", "taylor")]
)
@pytest.mark.parametrize("epoch", [1, 3, EPOCHS])
def test_going_on_is_never_having_stopped(
    study: Study, kind: str, pruner: Any, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clean_process():
        study = replace(study, pruner=pruner)
        slot = slot_of(kind, study)
        whole = outcome(runner(study, None).run(slot))
        run_until(monkeypatch, study, slot, str(tmp_path), epoch)
        trained = []
        monkeypatch.setattr(Checkpoint, "save", lambda self, epochs, parts: trained.append(epochs))
        assert outcome(runner(study, str(tmp_path)).run(slot)) == whole
    assert trained == list(range(epoch + 1, EPOCHS + 1))  # the epochs before it were not trained again


def test_loader_processes_may_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is random in samples does not depend on them, nor on what was drawn before."""
    data, recipe = RECIPES["constant, augmented"]
    study = Study(model=network, data=data, budget=Budget(params="0.5x", macs="any"), recipe=recipe)
    with clean_process():
        slot = slot_of("measure", study)
        whole = outcome(runner(study, None).run(slot))
        loaded = replace(study, recipe=replace(recipe, num_workers=2))
        run_until(monkeypatch, loaded, slot, str(tmp_path), 1)
        assert outcome(runner(study, str(tmp_path)).run(slot)) == whole
        assert outcome(runner(loaded, None).run(slot)) == whole


def test_stopped_twice_and_on_any_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    with clean_process():
        study = Study(
            model=network,
            data=tensors,
            budget=Budget(params="0.5x", macs="any"),
            recipe=RECIPES["one-cycle"][1],
            measure_length=1,
        )
        slot = slot_of("measure", study)
        whole = outcome(runner(study, None).run(slot))
        monkeypatch.setattr("widthsearch.database.folder.PROTOCOLS", {"memory"})
        url = "memory://somewhere/else"
        run_until(monkeypatch, study, slot, url, 1)
        run_until(monkeypatch, study, slot, url, 2)
        assert Folder(url).read(slot.file)
        assert outcome(runner(study, url).run(slot)) == whole


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "damage", ["torn", "flipped bit", "empty", "no checkpoint at all", "other study", "code"]
)
def test_what_is_not_whole_or_not_ours_is_named_and_not_used(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clean_process():
        study = Study(
            model=network,
            data=tensors,
            budget=Budget(params="0.5x", macs="any"),
            recipe=RECIPES["one-cycle"][1],
            measure_length=1,
        )
        slot = slot_of("measure", study)
        whole = outcome(runner(study, None).run(slot))
        run_until(monkeypatch, study, slot, str(tmp_path), 2)
        file = tmp_path / slot.file
        content = bytearray(file.read_bytes())
        match damage:
            case "torn":
                file.write_bytes(content[:-1000])
            case "flipped bit":
                content[-500] ^= 1
                file.write_bytes(content)
            case "empty":
                file.write_bytes(b"")
            case "no checkpoint at all":
                file.write_bytes(os.urandom(5000))
            case "code":
                file.write_bytes(malicious(bytes(content)))
        found = runner(study, str(tmp_path), "another" if damage == "other study" else "this study").run(slot)
    (warning,) = found.pop("warnings")
    assert str(file) in warning and "starting again" in warning
    assert {"other study": "another training", "code": "cannot be loaded"}.get(damage, "checksum") in warning
    assert outcome(found) == whole
    assert not (tmp_path / "executed").exists()


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def malicious(content: bytes) -> bytes:
    """A checkpoint with the right header whose pickle makes a folder when it is loaded carelessly."""
    import hashlib

    buffer = io.BytesIO()
    torch.save({"network": Malicious()}, buffer, pickle_module=pickle)
    payload = buffer.getvalue()
    header = json.loads(content.partition(b"\n")[0])
    header |= {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    return json.dumps(header).encode() + b"\n" + payload


def test_a_failed_write_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"first")

    def broken(*_: Any) -> None:
        raise OSError("the share went away")

    monkeypatch.setattr(folder.files, "mv", broken)
    with pytest.raises(OSError):
        folder.write("a", b"second")
    assert folder.read("a") == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


class Part:
    """A part with one number as its state."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def test_a_hiccup_of_the_storage_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    real, fails = folder.write, [1]

    def flaky(name: str, content: bytes) -> None:
        if fails:
            fails.pop()
            raise OSError("timed out")
        real(name, content)

    monkeypatch.setattr(folder, "write", flaky)
    monkeypatch.setattr("widthsearch.training.checkpoint.PAUSES", (0.0, None))
    Checkpoint(folder, "a", "me").save(3, {"part": Part(7)})
    fresh = Part(0)
    assert Checkpoint(folder, "a", "me").restore({"part": fresh}) == 3
    assert fresh.value == 7


def test_slow_storage_is_written_to_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []
    monkeypatch.setattr("widthsearch.training.checkpoint.time.monotonic", lambda: now[0])
    folder = Folder(str(tmp_path))

    def slow(name: str, content: bytes) -> None:
        now[0] += 2.0
        written.append(now[0])

    monkeypatch.setattr(folder, "write", slow)
    checkpoint = Checkpoint(folder, "a", "me")
    for epoch in range(1, 41):
        now[0] += 3.0
        checkpoint.save(epoch, {})
    writing = 2.0 * len(written)
    assert 0.025 * now[0] < writing < 0.06 * now[0]


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_used(url: str) -> None:
    with pytest.raises(CheckpointError, match="checkpoints '" + url):
        Folder(url)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        folder = Folder(str(tmp_path))
        folder.write("a", b"x" * 1000)
        big = {"part": Part(0)}
        big["part"].state_dict = lambda: {"value": torch.zeros(100_000)}  # type: ignore[method-assign]
        with pytest.raises(CheckpointError, match="No space left on device"):
            Checkpoint(folder, "a", "me").save(1, big)
        assert folder.read("a") == b"x" * 1000
        assert [p.name for p in tmp_path.iterdir()] == ["a"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_measure_takes_its_share_of_the_epochs_and_says_what_it_cost() -> None:
    whole = Study(
        model=network, data=tensors, budget=Budget(params="0.5x", macs="any"), recipe=RECIPES["one-cycle"][1]
    )
    epochs, steps = 5, 5 * steps_per_epoch(tensors()[0], whole.recipe)
    for share in (1, 0.5, 0.3, 0.01):  # parts of an epoch, too, but one step at least
        study = replace(whole, measure_length=share, recipe=replace(whole.recipe, epochs=epochs))
        assert plan_for(study).measure_length == share
        outcomes = {kind: runner(study, None).run(slot_of(kind, study)) for kind in ("measure", "score")}
        samples = {kind: o["training_macs"] / (3 * o["macs"]) for kind, o in outcomes.items()}
        assert samples["measure"] / samples["score"] == max(1, round(share * steps)) / steps

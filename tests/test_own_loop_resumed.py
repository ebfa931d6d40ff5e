"""An own training loop that keeps checkpoints: stopped twice, it ends as undisturbed, to the last bit."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from commands import clean_process
from public import load
from test_checkpoint import EPOCHS, network, outcome, run_until, runner, slot_of, tensors
from test_own_loop import Rows, WithLoss
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from widthsearch import Budget, Study, UsageError
from widthsearch.training.checkpoint import Checkpoint, FileState

BATCH = 16
STEPS = EPOCHS * 64 // BATCH


@torch.no_grad()
def loss_on(model: nn.Module, split: tuple[Tensor, Tensor]) -> Tensor:
    model.eval()
    loss = F.cross_entropy(model(split[0]), split[1])
    model.train()
    return loss


def plain_loop(model: nn.Module, data: Any, report: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=STEPS)
    order = torch.Generator().manual_seed(torch.initial_seed())
    loader = DataLoader(TensorDataset(*data[0]), BATCH, shuffle=True, generator=order)
    model.train()
    done = report.restore(optimizer=optimizer, schedule=schedule, order=order)
    for epoch in range(done, EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
        report(val_loss=loss_on(model, data[1]))
        report.checkpoint(epoch + 1)


def lightning_loop(model: nn.Module, data: Any, report: Any) -> None:
    lightning = load("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Classifier(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", F.cross_entropy(self.model(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "last.ckpt")

        class Keep(lightning.Callback):  # type: ignore[misc, name-defined]
            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                report(val_loss=trainer.callback_metrics["val_loss"])
                trainer.save_checkpoint(own)
                report.checkpoint(trainer.current_epoch + 1)

        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", callbacks=[Keep()], enable_model_summary=False, **quiet
        )
        done = report.restore(lightning=own)
        loaders = [DataLoader(TensorDataset(*data[k]), BATCH, shuffle=k == 0) for k in (0, 1)]
        trainer.fit(Classifier(), *loaders, ckpt_path=own if done else None, weights_only=True)


def trainer_loop(model: nn.Module, data: Any, report: Any) -> None:
    transformers = load("transformers")

    class Keep(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_save(self, arguments: Any, state: Any, control: Any, **more: Any) -> None:
            report.checkpoint(round(state.epoch))

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            save_strategy="epoch",
            save_total_limit=1,
            seed=torch.initial_seed() % 2**32,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=0.01,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            log_level="error",
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=Rows(*data[0]),
            eval_dataset=Rows(*data[1]),
            callbacks=[Keep()],
        )
        done = report.restore(trainer=Path(folder))
        trainer.train(resume_from_checkpoint=done > 0)
        report(val_loss=trainer.evaluate()["eval_loss"])


def study_of(loop: Any) -> Study:
    model = (lambda: WithLoss(network)) if loop is trainer_loop else network
    return Study(model=model, data=tensors, budget=Budget(params="0.5x", macs="any"), train=loop, steps=STEPS)


@pytest.mark.parametrize(
    ("loop", "kind", "stops"),
    [
        (plain_loop, "score", (1, 3)),
        (plain_loop, "measure", (2, EPOCHS)),
        (lightning_loop, "measure", (1, 3)),
        (trainer_loop, "measure", (1, 3)),
    ],
)
def test_stopped_twice_it_ends_as_undisturbed(
    loop: Any, kind: str, stops: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clean_process():
        study = study_of(loop)
        slot = slot_of(kind, study)
        whole = outcome(runner(study, None).run(slot))
        for epoch in stops:
            run_until(monkeypatch, study, slot, str(tmp_path), epoch)
        kept: list[int] = []
        monkeypatch.setattr(Checkpoint, "save", lambda self, epochs, parts: kept.append(epochs))
        assert outcome(runner(study, str(tmp_path)).run(slot)) == whole
    assert kept == list(range(stops[1] + 1, EPOCHS + 1))  # the epochs before were not trained again


def test_a_torn_checkpoint_is_named_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with clean_process():
        study = study_of(plain_loop)
        slot = slot_of("score", study)
        whole = outcome(runner(study, None).run(slot))
        run_until(monkeypatch, study, slot, str(tmp_path), 2)
        file = tmp_path / slot.file
        file.write_bytes(file.read_bytes()[:-100])
        found = runner(study, str(tmp_path)).run(slot)
    assert "starting again" in found.pop("warnings")[0]
    assert outcome(found) == whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda report: report.checkpoint(1), "without report.restore"),
        (lambda report: report.restore(rate=0.1), r"report.restore\(rate=0.1\): give what has state_dict"),
        (lambda report: (report.restore(), report.checkpoint(0.5)), r"report.checkpoint\(0.5\)"),
    ],
)
def test_wrong_use_is_said(call: Any, message: str) -> None:
    """No other try would help, so it ends the search."""
    with clean_process(), pytest.raises(UsageError, match=message):
        study = study_of(lambda model, data, report: call(report))
        runner(study, None).run(slot_of("score", study))


def test_a_kept_folder_is_written_as_it_was_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "one").write_bytes(b"1")
    (tmp_path / "a" / "empty").touch()
    state = FileState(tmp_path / "a").state_dict()
    FileState(tmp_path / "b").load_state_dict(state)
    assert (tmp_path / "b" / "deep" / "one").read_bytes() == b"1"
    assert (tmp_path / "b" / "empty").read_bytes() == b""
    with pytest.raises(ValueError, match="is not in"):
        FileState(tmp_path / "b").load_state_dict({"../c": state["deep/one"]})
    assert not (tmp_path / "c").exists()
    with pytest.raises(UsageError, match="there is no file"):
        FileState(tmp_path / "missing").state_dict()

"""How should four layers of a small 1-D convolutional network, trained by Lightning, share 1/4 of its cost?

An own training loop in place of a ``Recipe``: a ``LightningModule`` and a ``Trainer`` that know nothing of
gates, with AdamW and gradient clipping.  The same would hold for any other loop that runs the given network.
MNIST-1D, the data of ``mnist1d_conv.py``: 6,000 train and 12,000 validation signals, no test part.
Seed widths 32-32-64, 64: 126,720 MACs and 37,098 parameters.
"""

# pip install 'widthsearch[studies]' 'lightning>=2.5,<2.7'
# Beside a CPU-only torch, torchvision must be its CPU build or be absent: Lightning imports it where it is.

from __future__ import annotations

import logging
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from mnist1d_conv import data
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from widthsearch import Budget, Study

EPOCHS, BATCH = 10, 128
STEPS = EPOCHS * (6000 // BATCH)


def model() -> nn.Module:
    # 40 samples -> 20 -> 10 -> 5 positions, which the hidden layer sees one by one.
    return nn.Sequential(
        *(nn.Conv1d(1, 32, 5, 2, padding=2), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Conv1d(32, 32, 5, 2, padding=2), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Conv1d(32, 64, 5, 2, padding=2), nn.BatchNorm1d(64), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(5 * 64, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


class Classifier(lightning.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(net: nn.Module, splits: tuple[tuple[Tensor, Tensor], ...], report: Any) -> None:
    """Train on the first split; nothing is reported, as ``evaluate`` gives the study its figures."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # what hardware there is, once a training
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(net), DataLoader(TensorDataset(*splits[0]), BATCH, shuffle=True, drop_last=True))


@torch.no_grad()
def evaluate(net: nn.Module, split: tuple[Tensor, Tensor]) -> tuple[float, float]:
    x, y = split
    output = net.eval()(x)
    return F.cross_entropy(output, y).item(), (output.argmax(1) == y).float().mean().item()


study = Study(
    model=model,
    data=data,
    budget=Budget(macs="0.25x", params="0.25x"),
    train=train,
    steps=STEPS,
    evaluate=evaluate,
    rounds=2,
    seeds=3,
    report_seeds=16,
)

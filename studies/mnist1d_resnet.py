"""How should the 13 widths of a ResNet on 1-D signals share a small part of its cost?

MNIST-1D as in ``mnist1d_conv.py``.  A stem that halves the signal, three stages of three basic blocks (He et
al. 2015; two convolutions of three samples beside a skip, a 1x1 convolution where the shape changes), and a
hidden linear layer.  Each stage's residual width ties all that is added up in it; what a block has inside is
a width of its own.  Seed: 16-32-64: 624,832 MACs and 102,266 parameters.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from mnist1d_conv import data as data
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm1d(n_out)
        self.conv2 = nn.Conv1d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm1d(n_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1:
            self.skip = nn.Sequential(nn.Conv1d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm1d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(n_in, n_out, stride), Block(n_out, n_out, 1), Block(n_out, n_out, 1))


def model(a: int = 16, b: int = 32, c: int = 64) -> nn.Module:
    # 40 samples -> 20 -> 20 -> 10 -> 5 -> 2 positions.
    stem = nn.Sequential(nn.Conv1d(1, a, 5, 2, padding=2, bias=False), nn.BatchNorm1d(a), nn.ReLU())
    stages = {"stage1": stage(a, a, 1), "stage2": stage(a, b, 2), "stage3": stage(b, c, 2)}
    flat = nn.Sequential(nn.AdaptiveAvgPool1d(2), nn.Flatten())
    hidden = nn.Sequential(nn.Linear(2 * c, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU())
    return nn.Sequential(OrderedDict(stem=stem, **stages, flat=flat, hidden=hidden, head=nn.Linear(64, 10)))


study = Study(
    model=model,
    data=data,
    budget=Budget(macs="1/8x", params="1/8x"),
    recipe=Recipe(epochs=12, batch_size=128, lr=0.1),
    rounds=2,
    report_seeds=16,
)

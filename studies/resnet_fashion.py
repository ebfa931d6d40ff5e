"""How should the 12 widths of a 20-layer residual network on Fashion-MNIST share a quarter of its cost?

A reduced experiment, so that one CPU core is enough: of the data of ``fashion_mnist.py`` (read from the same
place) the first 10,000 train and 5,000 validation images, all 10,000 test images, and 4 epochs.  What these
networks make of all images and many epochs is another question, and not answered here.

ResNet-20 (He et al. 2015) on a stem that halves the image: three stages of three basic blocks with
BatchNorm, 1x1 convolutions as the shortcuts where the shape changes (option B).
Seed widths 16-32-64: 8,523,968 MACs and 272,186 parameters.
"""

from __future__ import annotations

from collections import OrderedDict

import fashion_mnist
import torch.nn.functional as F
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def stage(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(n_in, n_out, stride), Block(n_out, n_out, 1), Block(n_out, n_out, 1))


def model(a: int = 16, b: int = 32, c: int = 64) -> nn.Module:
    # 28x28 -> 14x14 in the stem -> 14x14 -> 7x7 -> 4x4: one core then trains it in half a minute.
    stem = nn.Sequential(nn.Conv2d(1, a, 3, 2, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU())
    stages = {"stage1": stage(a, a, 1), "stage2": stage(a, b, 2), "stage3": stage(b, c, 2)}
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))
    return nn.Sequential(OrderedDict(stem=stem, **stages, head=head))


def data() -> tuple[tuple[Tensor, Tensor], ...]:
    train, validation, test = fashion_mnist.data()
    return first(train, 10_000), first(validation, 5_000), test


def first(split: tuple[Tensor, Tensor], n: int) -> tuple[Tensor, Tensor]:
    x, y = split
    return x[:n].clone(), y[:n].clone()  # a copy, so that the rest of the images can be freed


study = Study(
    model=model,
    data=data,
    budget=Budget(macs="0.25x", params="0.25x"),
    recipe=Recipe(epochs=4, batch_size=128, lr=0.1),
    rounds=2,
    seeds=2,
    report_seeds=8,
)

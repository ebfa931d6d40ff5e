"""How wide should each of the three hidden layers of an MLP on handwritten digits be?

scikit-learn's digits: 1,797 real 8x8 images, which come with the package.  Split once with a fixed seed
into 1,200 train, 297 validation and 300 test images, scaled to [0, 1].
Seed widths 512-512-512: 562,176 MACs and 563,722 parameters.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study


def model() -> nn.Module:
    # Wide enough that the matrix products dominate a step of 128 images: what gates add is then visible.
    return nn.Sequential(
        nn.Linear(64, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def data() -> tuple[tuple[Tensor, Tensor], ...]:
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float() / 16
    y = torch.from_numpy(labels).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return tuple((x[part], y[part]) for part in order.split([1200, 297, 300]))


study = Study(
    model=model,
    data=data,
    budget=Budget(macs="0.25x", params="0.25x"),
    recipe=Recipe(epochs=15, batch_size=128, lr=0.1),
    rounds=2,
    report_seeds=4,
)

"""How should seven layers of a small 1-D convolutional network share 1/16 of its cost?

MNIST-1D (Greydanus 2020): 40-sample signals of ten classes, generated offline in a few seconds by the
package ``mnist1d``; 6,000 train and 12,000 validation signals.  There is no test part: a final figure
comes from report seeds that the search has not seen.

Every Conv1d has k=5 and padding 2; BatchNorm scales and shifts are off and no layer has a bias (see
``model``), so that the cost is that of the weights: 524,032 MACs and 48,592 parameters.  Scaled uniformly
to the budget the widths are 4-4-8-8-15-16-15.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study

WIDTHS = (16, 16, 32, 32, 64, 64)
STRIDES = (1, 1, 2, 1, 2, 1)
HIDDEN = 64


def model() -> nn.Module:
    return network(WIDTHS, HIDDEN)


def network(widths: tuple[int, ...], hidden: int, affine: bool = False) -> nn.Sequential:
    """The network at any widths: 40 samples -> 20 -> 10 -> 2 positions -> hidden layer -> ten classes."""
    layers: list[nn.Module] = []
    for n_in, n_out, stride in zip((1, *widths), widths, STRIDES, strict=False):
        layers += [
            nn.Conv1d(n_in, n_out, 5, stride, padding=2, bias=False),
            nn.BatchNorm1d(n_out, affine=affine),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool1d(2),
        nn.Flatten(),
        nn.Linear(2 * widths[-1], hidden, bias=affine),
        nn.ReLU(),
        nn.Linear(hidden, 10, bias=affine),
    )


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    mnist1d = import_module("mnist1d.data")
    args = mnist1d.get_dataset_args()
    args.num_samples, args.train_split, args.seed = 18_000, 1 / 3, 42
    # The package spends three quarters of its time in setting up scipy's interp1d, four times per signal.
    with patch.object(import_module("mnist1d.transform"), "interpolate", interpolate):
        made = mnist1d.make_dataset(args)
    x, y = (torch.from_numpy(np.concatenate([made[k], made[k + "_test"]])) for k in "xy")
    x = x.float().unsqueeze(1)
    return (x[:6000], y[:6000]), (x[6000:], y[6000:])


@cache
def positions(n: int) -> NDArray[np.float64]:
    return np.linspace(0, 1, n)


def interpolate(x: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """``mnist1d.transform.interpolate`` for one dimension."""
    return np.interp(positions(n), positions(len(x)), x)


study = Study(
    model=model,
    data=data,
    budget=Budget(macs="0.0625x", params="0.0625x"),
    recipe=Recipe(epochs=12, batch_size=128, lr=0.1),
)

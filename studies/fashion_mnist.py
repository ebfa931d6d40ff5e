"""How should the layers of a small residual network on Fashion-MNIST share 1/8 of its cost?

The whole data set: 50,000 train and 10,000 validation images (fixed split of the published training part)
and the published 10,000 test images, which only the final report reads.  Nothing is downloaded: install the
Debian package ``dataset-fashion-mnist``, or let FASHION_MNIST_DIR name a folder with the four IDX files.
Seed widths 16-32-64: 2,552,000 MACs and 91,642 parameters.  ``reduced`` is the same question on 10,000 train
images, for comparisons of many searches.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study
from widthsearch.errors import UsageError

FOLDER = "/usr/share/datasets/fashion-mnist"


class Block(nn.Module):
    """Two 3x3 convolutions beside a skip: the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1:
            self.skip = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.skip(x))


def model(a: int = 16, b: int = 32, c: int = 64) -> nn.Module:
    # 28x28 -> 14x14 in the stem -> 7x7 -> 7x7 -> 4x4: halved early, so that one CPU thread is enough.  Widths
    # double wherever the image halves after the stem: the textbook guess that the search starts from.
    stem = nn.Sequential(nn.Conv2d(1, a, 3, 2, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU())
    blocks = {"block1": Block(a, b, stride=2), "block2": Block(b, b), "block3": Block(b, c, stride=2)}
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))
    return nn.Sequential(OrderedDict(stem=stem, **blocks, head=head))


def data() -> tuple[tuple[Tensor, Tensor], ...]:
    folder = Path(os.environ.get("FASHION_MNIST_DIR") or FOLDER)
    x, y = read(folder, "train")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation = order.split([50_000, 10_000])
    return (x[train], y[train]), (x[validation], y[validation]), read(folder, "t10k")


def reduced_data() -> tuple[tuple[Tensor, Tensor], ...]:
    (x, y), validation, test = data()
    return (x[:10_000].clone(), y[:10_000].clone()), validation, test


def read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28), normalised by the training part's mean and deviation, and labels (n,)."""
    images = idx(folder / f"{part}-images-idx3-ubyte.gz", header=16).view(-1, 1, 28, 28)
    labels = idx(folder / f"{part}-labels-idx1-ubyte.gz", header=8)
    return (images.float() / 255 - 0.286) / 0.353, labels.long()


def idx(path: Path, header: int) -> Tensor:
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(
            f"no readable {path.name} in {str(path.parent)!r}: apt-get install dataset-fashion-mnist, or set "
            "FASHION_MNIST_DIR to a folder with the four IDX .gz files"
        ) from error
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header)


study = Study(
    model=model,
    data=data,
    budget=Budget(macs="1/8x", params="1/8x"),
    recipe=Recipe(epochs=5, batch_size=128, lr=0.1),
    rounds=3,
    seeds=3,
)
reduced = replace(study, data=reduced_data)

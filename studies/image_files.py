"""The question of fashion_mnist.py with images as files: 20,000 PNGs to train on, read by two loaders.

An example for data that does not lie in memory.  Nothing is downloaded: the files are written once, from the
same Debian package, into the folder that IMAGE_FOLDER names (default: beside other temporary files).
``in_memory`` is the same study on the same images as tensors.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fashion_mnist import FOLDER as PACKAGE
from fashion_mnist import idx, model
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from widthsearch import Budget, Recipe, Study

TRAIN, VALIDATION = 20_000, 5_000


def folder() -> Path:
    """``label/number.png`` for each image; written on first use."""
    found = Path(os.environ.get("IMAGE_FOLDER") or Path(tempfile.gettempdir(), "widthsearch-image-files"))
    if found.is_dir():
        return found
    part = Path(
        tempfile.mkdtemp(dir=found.parent)
    )  # whole or not at all, also if several workers write it at once
    source = Path(os.environ.get("FASHION_MNIST_DIR") or PACKAGE)
    images = idx(source / "train-images-idx3-ubyte.gz", header=16).view(-1, 28, 28).numpy()
    labels = idx(source / "train-labels-idx1-ubyte.gz", header=8).tolist()
    for number in range(TRAIN + VALIDATION):
        own = part / str(labels[number])
        own.mkdir(exist_ok=True)
        Image.fromarray(images[number]).save(own / f"{number:05}.png")
    try:
        part.rename(found)
    except OSError:  # another worker was first
        shutil.rmtree(part)
    return found


class ImageFiles(Dataset[Any]):
    """The images below a folder, in the order of their numbers: (1, 28, 28), normalised, and a label."""

    def __init__(self, top: Path) -> None:
        files = sorted(top.glob("*/*.png"), key=lambda file: file.name)
        self.files = [(str(file), int(file.parent.name)) for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, label = self.files[i]
        with Image.open(path) as image:
            pixels = np.asarray(image, dtype=np.float32)[None]
        return torch.from_numpy((pixels - 0.286 * 255) / (0.353 * 255)), label


def data() -> tuple[Dataset[Any], Dataset[Any]]:
    files = ImageFiles(folder())
    return Subset(files, range(TRAIN)), Subset(files, range(TRAIN, TRAIN + VALIDATION))


def tensors() -> Any:
    def stacked(split: Dataset[Any]) -> tuple[Tensor, Tensor]:
        xs, ys = zip(*(split[i] for i in range(len(split))), strict=True)  # type: ignore[arg-type]
        return torch.stack(xs), torch.tensor(ys)

    return tuple(map(stacked, data()))


study = Study(
    model=model,
    data=data,
    budget=Budget(macs="1/8x", params="1/8x"),
    recipe=Recipe(epochs=3, batch_size=128, lr=0.1, num_workers=2),
)
in_memory = replace(study, data=tensors, recipe=replace(study.recipe, num_workers=0))

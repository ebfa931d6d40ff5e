"""The user's data: its splits, checked, an example batch, and what tells it from other data."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset

from widthsearch.errors import UsageError, describe_error
from widthsearch.study.study import Data, Split, Study

_SPLITS = "(train, validation[, test]), e.g. ((x[:800], y[:800]), (x[800:], y[800:]))"
EXAMPLE_SIZE = 2  # samples in the traced batch: BatchNorm in training mode refuses a single one


def size_of(split: Split) -> int:
    """The number of samples of a split."""
    return len(split[0]) if isinstance(split, tuple) else len(split)  # type: ignore[arg-type]


def example_of(split: Split, size: int = EXAMPLE_SIZE) -> tuple[Any, Any]:
    """The first samples of a split as a batch ``(x, y)``; fewer where it has no more."""
    if isinstance(split, tuple):
        return split[0][:size], split[1][:size]
    samples = [split[i] for i in range(min(size, size_of(split)))]
    x, y = torch.utils.data.default_collate(samples)
    return x, y


def load_data(study: Study) -> Data:
    """The user's splits, checked; :class:`UsageError` in one line where they cannot be used."""
    try:
        data = study.data()
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"data() raised {describe_error(error)}") from error
    return check_data(data, study)


def check_data(data: Any, study: Study) -> Data:
    """The splits, checked; :class:`UsageError` where they cannot be trained on."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise UsageError(f"data() returned {_said(data)}; it must return {_SPLITS}")
    if study.train is not None:  # only its own loop knows what its splits must be like
        if len(data) == 3 and study.evaluate is None:
            raise UsageError("data() gives a test split: Study(evaluate=...) must say how to evaluate on it")
        return tuple(data)
    if any(isinstance(split, Tensor | np.ndarray) for split in data):
        raise UsageError(f"data() returned {_said(data)}: pair inputs and targets; it must return {_SPLITS}")
    for name, split in zip(("train", "validation", "test"), data, strict=False):
        _check_split(name, split)
    return tuple(tuple(s) if isinstance(s, list) else s for s in data)  # type: ignore[return-value]


def _said(data: Any) -> str:
    kind = type(data).__name__
    if not isinstance(data, tuple | list):
        return kind
    return f"{kind} of {len(data)} ({', '.join(type(part).__name__ for part in data[:4])})"


def _check_split(name: str, split: Any) -> None:
    pair = isinstance(split, tuple | list)
    if pair and not (len(split) == 2 and all(isinstance(t, Tensor) for t in split)):
        raise UsageError(
            f"data(): {name} is {_said(split)}, but must be a pair of tensors (x, y) or a "
            "dataset of samples (x, y)"
        )
    if pair and (size := [len(t) if t.ndim else 0 for t in split])[0] != size[1]:
        raise UsageError(f"data(): {name} has {size[0]} inputs but {size[1]} targets")
    if isinstance(split, DataLoader):
        raise UsageError(
            f"data(): {name} is a {type(split).__name__}; give its dataset (loader.dataset): "
            "the recipe makes the batches"
        )
    if isinstance(split, IterableDataset) or not (pair or hasattr(split, "__getitem__")):
        raise UsageError(
            f"data(): {name} is {type(split).__name__}, without samples by number; give (x, y) tensors or a "
            "dataset with __getitem__ and __len__"
        )
    if not pair:
        _check_samples(name, split)
    if size_of(tuple(split) if pair else split) < EXAMPLE_SIZE:
        raise UsageError(f"data(): {name} has fewer than {EXAMPLE_SIZE} samples")


def _check_samples(name: str, split: Dataset[Any]) -> None:
    try:
        if size_of(split) < EXAMPLE_SIZE:
            return
        sample = split[0]
        if isinstance(sample, tuple | list) and len(sample) == 2:
            good = all(isinstance(t, Tensor) for t in tree_leaves(example_of(split)))
    except Exception as error:
        raise UsageError(f"data(): {name} gives no samples (x, y): {describe_error(error)}") from error
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise UsageError(
            f"data(): the samples of {name} are {_said(sample)}, but must be pairs (x, y): of more, make "
            "tuples or dicts, e.g. (x, (y, weight)), with a loss that takes them"
        )
    if not good:
        raise UsageError(f"data(): the samples (x, y) of {name} must become tensors when batched")


def digests_of(data: Data) -> dict[str, str]:
    """A digest of every split by name: what resume compares."""
    names = ("data.train", "data.validation", "data.test")
    return {name: _split_digest(split) for name, split in zip(names, data, strict=False)}


def _split_digest(split: Split) -> str:
    if not isinstance(split, tuple) or not all(isinstance(t, Tensor) for t in split):
        size = f" of {len(split)}" if hasattr(split, "__len__") else ""
        return f"{type(split).__name__}{size}"
    sample = hashlib.sha256()
    stride = max(1, len(split[0]) // 256)
    for tensor in split:  # a sample of rows: enough to notice other data, cheap for large ones
        sample.update(tensor[::stride].cpu().to(torch.float64).numpy().tobytes())
    return f"{'x'.join(map(str, split[0].shape))} {sample.hexdigest()[:12]}"

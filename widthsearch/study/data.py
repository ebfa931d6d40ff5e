"""The user's data: its splits, checked, an example batch, and what tells it from other data."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from widthsearch.errors import UsageError
from widthsearch.space.initialise import isolated_random_numbers
from widthsearch.study.recipe import Recipe
from widthsearch.study.study import Data, Split, Study
from widthsearch.study.users_code import users_code
from widthsearch.study.values import digest

_SPLITS = "(train, validation[, test]), e.g. ((x[:800], y[:800]), (x[800:], y[800:]))"
SPLITS = ("train", "validation", "test")  # what data() gives, in this order; the last one may be left out
EXAMPLE_SIZE = 2  # samples in the traced batch: BatchNorm in training mode refuses a single one
READING_SECONDS = 3.0  # for a digest of a dataset at launch
FIRST_SAMPLES = 8  # from which the time of one is known


class Samples(Dataset[Any]):
    """The samples of tensors in memory, of which inputs or targets are several, in tuples and dicts."""

    def __init__(self, x: Any, y: Any) -> None:
        self.pair = x, y

    def __len__(self) -> int:
        """How many rows each of the tensors has."""
        return len(tree_leaves(self.pair)[0])

    def __getitem__(self, i: int) -> Any:
        """The rows of one number, ``(x, y)``."""
        return tree_map(lambda t: t[i], self.pair)


def size_of(split: Split) -> int:
    """The number of samples of a split."""
    return len(split[0]) if isinstance(split, tuple) else len(split)  # type: ignore[arg-type]


def example_of(
    split: Split, size: int = EXAMPLE_SIZE, collate: Callable[[list[Any]], Any] | None = None
) -> tuple[Any, Any]:
    """The first samples of a split as a batch ``(x, y)``; fewer where it has no more."""
    if isinstance(split, tuple):
        return split[0][:size], split[1][:size]
    x, y = (collate or default_collate)(_first(split, size))
    return x, y


def _first(split: Dataset[Any], size: int) -> list[Any]:
    if isinstance(split, IterableDataset):
        return list(islice(split, size))
    return [split[i] for i in range(min(size, size_of(split)))]


def load_data(study: Study) -> Data:
    """The user's splits, checked; :class:`UsageError` in one line where they cannot be used."""
    with users_code(what="data() raised "):
        return check_data(study.data(), study)


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
    data = [_of_several(name, split) for name, split in zip(SPLITS, data, strict=False)]
    for name, split in zip(SPLITS, data, strict=False):
        _check_split(name, split, study.recipe)
    if study.recipe.steps_per_epoch is not None and not isinstance(data[0], IterableDataset):
        raise UsageError(
            f"Recipe(steps_per_epoch={study.recipe.steps_per_epoch}): train has a length, and an epoch is "
            "all of it: leave it out (it is for an IterableDataset)"
        )
    return tuple(tuple(s) if isinstance(s, list) else s for s in data)  # type: ignore[return-value]


def _said(data: Any) -> str:
    kind = type(data).__name__
    if not isinstance(data, tuple | list):
        return kind
    return f"{kind} of {len(data)} ({', '.join(type(part).__name__ for part in data[:4])})"


def _of_several(name: str, split: Any) -> Any:
    """A pair (x, y) of tuples or dicts of tensors as a dataset; anything else as it is."""
    if not isinstance(split, tuple) or len(split) != 2 or all(isinstance(t, Tensor) for t in split):
        return split
    leaves = [tree_leaves(part) for part in split]
    if not all(leaves) or not all(isinstance(t, Tensor) and t.ndim for part in leaves for t in part):
        return split
    if len({len(t) for part in leaves for t in part}) > 1:
        counts = " and ".join(", ".join(str(len(t)) for t in part) for part in leaves)
        raise UsageError(f"data(): the tensors of {name} must have as many samples each, but have {counts}")
    return Samples(*split)


def _check_split(name: str, split: Any, recipe: Recipe) -> None:
    pair = isinstance(split, tuple | list)
    if pair and not (len(split) == 2 and all(isinstance(t, Tensor) for t in split)):
        raise UsageError(
            f"data(): {name} is {_said(split)}, but must be a pair of tensors (x, y), of tuples "
            "or dicts of them, or a dataset of samples (x, y)"
        )
    if pair and (size := [len(t) if t.ndim else 0 for t in split])[0] != size[1]:
        raise UsageError(f"data(): {name} has {size[0]} inputs but {size[1]} targets")
    if isinstance(split, DataLoader):
        raise UsageError(
            f"data(): {name} is a {type(split).__name__}; give its dataset (loader.dataset): "
            "the recipe makes the batches"
        )
    stream = isinstance(split, IterableDataset)
    if not (stream or pair or hasattr(split, "__getitem__")):
        raise UsageError(
            f"data(): {name} is {type(split).__name__}, without samples by number; give (x, y) tensors or a "
            "dataset with __getitem__ and __len__"
        )
    if stream and name == "train" and recipe.steps_per_epoch is None:
        raise UsageError(
            f"data(): train is {type(split).__name__}, without samples by number: say how many batches of it "
            "are an epoch, e.g. Recipe(steps_per_epoch=100), or give a dataset with __getitem__ and __len__"
        )
    many = len(split[0]) if pair else _check_samples(name, split, recipe)
    if many < EXAMPLE_SIZE:
        raise UsageError(f"data(): {name} has fewer than {EXAMPLE_SIZE} samples")


def _check_samples(name: str, split: Dataset[Any], recipe: Recipe) -> int:
    """How many samples there are, at least; :class:`UsageError` if they cannot be made a batch ``(x, y)``."""
    with users_code(what=f"data(): {name} gives no samples (x, y): "):
        samples = _first(split, EXAMPLE_SIZE)
        if len(samples) < EXAMPLE_SIZE:
            return len(samples)
        made = samples[0] if recipe.collate_fn is None else recipe.collate_fn(samples)
        pair = isinstance(made, tuple | list) and len(made) == 2
        batch = (default_collate(samples) if recipe.collate_fn is None else made) if pair else ()
        good = all(isinstance(t, Tensor) for t in tree_leaves(batch))
    if not pair and recipe.collate_fn is not None:
        raise UsageError(
            f"Recipe(collate_fn=...): of {name} it made {_said(made)}; it must make a pair (x, y)"
        )
    if not pair:
        raise UsageError(
            f"data(): the samples of {name} are {_said(made)}, but must be pairs (x, y): of more, make "
            "tuples or dicts, e.g. (x, (y, weight)), with a loss that takes them"
        )
    if not good:
        raise UsageError(f"data(): the samples (x, y) of {name} must become tensors when batched")
    return len(samples)


def digests_of(data: Data, before: Mapping[str, str] | None = None) -> dict[str, str]:
    """A digest of every split by name: what resume compares.

    Tensors are read whole.  Of a dataset all samples are, where that takes seconds, else as many as it takes,
    from the first to the last at equal distances; the text says how many, and with ``before``, the digests at
    launch, so many are read again.  Random numbers are the same each time, so that augmentation by torch's,
    numpy's or Python's generator does not matter.
    """
    names, known = [f"data.{name}" for name in SPLITS], before or {}
    return {name: _digest_of(split, known.get(name, "")) for name, split in zip(names, data, strict=False)}


def _digest_of(split: Any, before: str) -> str:
    if isinstance(split, Samples):
        split = split.pair
    if isinstance(split, tuple | list | dict):
        leaves = tree_leaves(split)
        shapes = " and ".join("x".join(map(str, t.shape)) for t in leaves if isinstance(t, Tensor))
        return f"{shapes or type(split).__name__} {digest(leaves)}"
    kind, size = type(split).__name__, len(split) if hasattr(split, "__len__") else None
    if size is None or not hasattr(split, "__getitem__") or isinstance(split, IterableDataset):
        return kind if size is None else f"{kind} of {size}"
    first = range(min(FIRST_SAMPLES, size))
    began = time.monotonic()
    tried = _samples(split, first)
    each = (time.monotonic() - began) / max(1, len(first))
    if tried != _samples(split, first):
        return f"{kind} of {size}, each time other samples"
    noted = re.search(r", (\d+) of them", before)
    many = int(noted[1]) if noted else max(len(first), min(size, int(READING_SECONDS / max(each, 1e-9))))
    if many >= size:
        return f"{kind} of {size} {_samples(split, range(size))}"
    return f"{kind} of {size}, {many} of them {_samples(split, [k * size // many for k in range(many)])}"


def _samples(split: Any, indices: Iterable[int]) -> str:
    """The digest of these samples, read with the same random numbers each time."""
    with isolated_random_numbers():
        return digest(leaf for i in indices for leaf in tree_leaves(split[i]))

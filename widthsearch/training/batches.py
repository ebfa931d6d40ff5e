"""The batches of a training or an evaluation: of tensors in memory, of a dataset, or of a stream."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    get_worker_info,
)

from widthsearch.errors import TrainingError, describe_error
from widthsearch.space.initialise import isolated_random_numbers
from widthsearch.stopping import SIGNALS
from widthsearch.study.data import size_of
from widthsearch.study.recipe import Recipe
from widthsearch.study.study import Split

Collate = Callable[[list[Any]], Any]


def batches(
    split: Split, recipe: Recipe, order: torch.Generator | None = None, size: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """Batches ``(x, y)``: shuffled and whole ones only with an ``order``, else all samples as they come.

    What is random in the samples of a dataset depends on ``order`` and on the batch alone: neither on the
    network that is trained nor on who loads it.
    """
    size = size or recipe.batch_size
    if isinstance(split, tuple):
        yield from _of_tensors(split, size, order)
    elif isinstance(split, IterableDataset):
        yield from _of_stream(split, recipe, order, size)
    else:
        seed, sampler = _seed(order), _sampler(split, order, size)
        source = _Batches(split, recipe.collate_fn or default_collate, seed)
        yield from _loaded(source, recipe, order, recipe.num_workers, sampler)


def batches_of_epoch(
    split: Split, recipe: Recipe, order: torch.Generator, epoch: int, steps: int
) -> Iterator[tuple[Any, Any]]:
    """Shuffled batches of an epoch (from 0): all of them, or what is left of so many optimizer steps."""
    return islice(batches(split, recipe, order), steps - epoch * steps_per_epoch(split, recipe))


def epochs_of(split: Split, recipe: Recipe, steps: int) -> int:
    """In how many epochs so many optimizer steps are made, the last one maybe in part."""
    return -(-steps // steps_per_epoch(split, recipe))


def steps_per_epoch(split: Split, recipe: Recipe) -> int:
    """Optimizer steps of an epoch."""
    return recipe.steps_per_epoch or max(1, size_of(split) // recipe.batch_size)


def samples_per_step(split: Split, recipe: Recipe) -> int:
    """The size of a training batch."""
    stream = isinstance(split, IterableDataset)
    return recipe.batch_size if stream else min(recipe.batch_size, size_of(split))


def _whole(n: int, size: int, order: torch.Generator | None) -> bool:
    return order is not None and n >= size  # a last batch of one sample would break BatchNorm


def _of_tensors(
    split: tuple[torch.Tensor, torch.Tensor], size: int, order: torch.Generator | None
) -> Iterator[tuple[Any, Any]]:
    x, y = split
    n = len(x)
    shuffled = torch.randperm(n, generator=order).to(x.device) if order is not None else None
    for start in range(0, n - size + 1 if _whole(n, size, order) else n, size):
        part = slice(start, start + size)
        yield (x[part], y[part]) if shuffled is None else (x[shuffled[part]], y[shuffled[part]])


def _of_stream(
    split: IterableDataset[Any], recipe: Recipe, order: torch.Generator | None, size: int
) -> Iterator[tuple[Any, Any]]:
    """An epoch of so many steps of the stream from its start; without an order, all of it."""
    steps = None if order is None else recipe.steps_per_epoch
    source = _Stream(split, recipe.collate_fn or default_collate, _seed(order), size, steps)
    made = 0
    # Several loaders would each have a stream of their own: what comes would depend on their number.
    for batch in _loaded(source, recipe, order, min(1, recipe.num_workers)):
        made += 1
        yield batch
    if steps is not None and made < steps:
        raise TrainingError(
            f"the training data ended after {made} whole batches of {size}, but the recipe says "
            f"steps_per_epoch={steps}: give steps_per_epoch={max(made, 1)}"
        )


def _sampler(split: Dataset[Any], order: torch.Generator | None, size: int) -> BatchSampler:
    n = size_of(split)
    numbers = SequentialSampler(range(n)) if order is None else RandomSampler(range(n), generator=order)
    return BatchSampler(numbers, size, drop_last=_whole(n, size, order))


def _loaded(
    source: Dataset[Any],
    recipe: Recipe,
    order: torch.Generator | None,
    workers: int,
    sampler: BatchSampler | None = None,
) -> Iterator[Any]:
    """What torch's loader makes of a source that gives whole batches."""
    # A forked loader has the user's data and code as they are; a fresh process could not import a study file.
    forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(
        source,
        batch_size=None,
        sampler=sampler,
        collate_fn=_as_it_is,
        generator=order,
        num_workers=workers,
        worker_init_fn=_leave_signals,
        multiprocessing_context="fork" if forks else None,
        pin_memory=recipe.pin_memory and torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, _Failed):
            raise TrainingError(batch.why)
        yield batch


class _Failed(NamedTuple):
    """What a loader process gives in the place of a batch: torch would hide the text behind its own."""

    why: str


class _Batches(Dataset[Any]):
    """The batches of a dataset, by the numbers of their samples."""

    def __init__(self, split: Any, collate: Collate, seed: int) -> None:
        self._split, self._collate, self._seed = split, collate, seed

    def __getitem__(self, numbers: Sequence[int]) -> Any:
        return _made(lambda: self._collate(self._read(numbers)), self._seed + numbers[0])

    def _read(self, numbers: Sequence[int]) -> list[Any]:
        several = getattr(self._split, "__getitems__", None)  # torch's name for reading several at once
        return list(several(numbers)) if several else [self._split[i] for i in numbers]


class _Stream(IterableDataset[Any]):
    """The batches of a stream, one after the other: so many whole ones, or all."""

    def __init__(
        self, split: IterableDataset[Any], collate: Collate, seed: int, size: int, steps: int | None
    ) -> None:
        self._split, self._collate, self._seed = split, collate, seed
        self._size, self._steps = size, steps
        self._rest: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        self._rest = None
        for step in count() if self._steps is None else range(self._steps):
            batch = _made(self._next, self._seed + step)
            if batch is None:
                return
            yield batch

    def _next(self) -> Any | None:
        """The next batch, ``None`` at the end."""
        if self._rest is None:
            self._rest = iter(self._split)
        samples = list(islice(self._rest, self._size))
        return self._collate(samples) if len(samples) >= (self._size if self._steps else 1) else None


def _made(batch: Callable[[], Any], seed: int) -> Any:
    """A batch, made with random numbers of its own, in whatever process."""
    try:
        with isolated_random_numbers(seed):
            return batch()
    except Exception as error:
        if get_worker_info() is None:
            raise
        return _Failed(describe_error(error))


def _seed(order: torch.Generator | None) -> int:
    """Where the random numbers of an epoch's samples begin; the order itself is left as it is."""
    if order is None:
        return 0
    ahead = torch.Generator()
    ahead.set_state(order.get_state())
    return int(torch.randint(2**62, (), generator=ahead))


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals(loader: int) -> None:
    """Ctrl-C reaches all processes of a terminal, but it is the training that ends its loaders."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)

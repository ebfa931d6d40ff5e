"""What a training by several processes needs to know of the others; nothing of it matters to one alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from widthsearch.training.checkpoint import RandomState
from widthsearch.training.gates import Vector

T = TypeVar("T")


def world() -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def of_first(value: T) -> T:
    """What rank 0 has here."""
    if world()[1] == 1:
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def with_mean_gradient(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """The same step, by the mean gradient of all processes, each of which has a part of the batch."""
    if world()[1] == 1:
        return step

    def taken(gradient: Vector | Tensor) -> None:
        own = gradient if isinstance(gradient, Tensor) else torch.from_numpy(gradient.copy())
        distributed.all_reduce(own)
        own /= world()[1]
        step(own if isinstance(gradient, Tensor) else own.numpy())

    return taken


class RandomStates:
    """:class:`RandomState` of every process: :meth:`gather` in all of them, before the first one saves."""

    def __init__(self, device: torch.device) -> None:
        self._own = RandomState(device)
        self._all: list[Any] = []

    def gather(self) -> None:
        """Bring the states together."""
        rank, number = world()
        self._all = [self._own.state_dict()] * number
        if number > 1:
            distributed.all_gather_object(self._all, self._all[rank])

    def state_dict(self) -> dict[str, Any]:
        """As they were gathered."""
        return {"ranks": self._all}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """This process's own."""
        self._own.load_state_dict(state["ranks"][world()[0]])

"""The same random numbers in two networks of other widths: noise in eval mode, random masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from widthsearch.space.initialise import isolated_random_numbers

Out = TypeVar("Out")
RANDOM = {
    "rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm", "bernoulli", "normal",
    "uniform", "exponential", "random", "geometric", "cauchy", "log_normal", "multinomial",
}  # fmt: skip


def with_the_same_noise(first: Callable[[], Out], second: Callable[[], Out]) -> tuple[Out, Out]:
    """Run both so that each random operation draws the same in both.

    Where what it draws has other sizes in one than in the other, it is drawn once for all indices along these
    dimensions: they are units, and which of them are there must not matter.
    """
    along: dict[int, list[int]] = {}
    for _ in range(3):
        noises = _Noise(along), _Noise(along)
        outs = []
        for run, noise in zip((first, second), noises, strict=True):
            with isolated_random_numbers(), noise:
                outs.append(run())
        differ = {
            k: [d for d, (m, n) in enumerate(zip(a, b, strict=True)) if m != n]
            for k, (a, b) in enumerate(zip(noises[0].shapes, noises[1].shapes, strict=False))
            if a != b and len(a) == len(b)
        }
        if differ == along:
            break
        along = differ
    return outs[0], outs[1]


class _Noise(TorchDispatchMode):
    """Seeds every random operation by its number; ``along``: number -> dimensions of one value."""

    def __init__(self, along: Mapping[int, list[int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[int, ...]] = []
        self._along = along

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation."""
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name not in RANDOM:
            return func(*args, **kwargs)
        number, (given, *others) = len(self.shapes), args
        torch.default_generator.manual_seed(number)
        shape = tuple(getattr(given, "shape", given)) if isinstance(given, (Tensor, list, tuple)) else ()
        self.shapes.append(shape)
        dims = self._along.get(number)
        if not dims:
            return func(*args, **kwargs)
        drawn = tuple(1 if d in dims else size for d, size in enumerate(shape))
        if not isinstance(given, Tensor):  # torch.randn(shape)
            return func(drawn, *others, **kwargs).expand(shape).clone()
        out = func(given[tuple(map(slice, drawn))].clone(), *others, **kwargs).expand(shape)
        return given.copy_(out) if func._schema.is_mutable else out.clone()

"""Fresh weights that are distributed like those of the user's own fresh model.

``reset_parameters`` is not how most models initialise themselves: torchvision's ResNet-50 is 2.45 times as
spread out.  So the trace records, for every parameter, how the user's values relate to what
``reset_parameters`` gives at the same size, and every resized model is corrected by it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from widthsearch.errors import UsageError
from widthsearch.space.copies import copy_with, named_tensors

#: How to fill one tensor anew, after ``reset_parameters``: an in-place method of a tensor, and its arguments.
Fill = tuple[Literal["fill_", "mul_", "normal_", "copy_"], tuple[Any, ...]]

Table = Callable[[tuple[int, ...]], Tensor]  # a buffer of any shape


@dataclass(frozen=True)
class Initialisation:
    """``resets``: modules whose ``reset_parameters`` is called; ``fills``: what follows, per tensor.

    A tensor without a fill keeps the user's values; it cannot be resized.  ``tables``: buffer -> a function
    of the user's that makes one of any shape.  ``own``: another that is called on the model at the end.
    """

    resets: tuple[str, ...]
    fills: dict[str, Fill]
    own: Callable[[nn.Module], object] | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)

    def can_fill(self, name: str, dim: int) -> bool:
        """Whether the tensor of this name can have another size along this dimension."""
        if name in self.tables:
            return True
        method, values = self.fills.get(name, (None, ()))
        return method is not None and (method != "copy_" or values[0].shape[dim] == 1)


@contextmanager
def isolated_random_numbers(seed: int = 0) -> Iterator[None]:
    """Random numbers by this seed inside, the global generators untouched outside."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=list(devices)):
            # Not torch.manual_seed: it would also queue a seed for a GPU that is not initialised yet.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def record(
    model: nn.Module,
    own: Callable[[nn.Module], object] | None = None,
    tables: Mapping[str, Table] | None = None,
) -> Initialisation:
    """Read the initialisation off a model, fresh as the user's factory gave it.

    ``own``: see the class; ``tables``: likewise, but from patterns.  Raises UsageError for one that no buffer
    matches.
    """
    found: dict[str, Table] = {}
    for pattern, make in (tables or {}).items():
        names = [name for name, _ in model.named_buffers() if fnmatchcase(name, pattern)]
        if not names:
            there = ", ".join(name for name, _ in model.named_buffers()) or "none"
            raise UsageError(
                f"buffers={{{pattern!r}: ...}}: the model has no such buffer; there are: {there}"
            )
        found.update(dict.fromkeys(names, make))
    with isolated_random_numbers(), torch.no_grad():
        # What is still NaN afterwards, reset_parameters does not fill.
        probe = copy_with(model, {name: _unfilled(t) for name, t in named_tensors(model).items()})
        resets = tuple(name for name, module in probe.named_modules() if _reset(module))
        after = named_tensors(probe)
        fills = {}
        for name, tensor in named_tensors(model).items():
            if tensor.is_floating_point() and not tensor.is_meta and tensor.numel():
                fill = _compare(tensor.cpu().float(), after[name].float(), tensor.requires_grad)
                if fill is not None:
                    fills[name] = fill
    return Initialisation(resets, fills, own, found)


def _unfilled(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return torch.full(tensor.shape, math.nan, dtype=tensor.dtype)
    return tensor.detach().to("cpu", copy=True)


def _reset(module: nn.Module) -> bool:
    """Call the module's own ``reset_parameters``, if it has tensors and the method works."""
    reset = getattr(module, "reset_parameters", None)
    if reset is None or not [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        return False
    try:
        reset()
    except Exception:  # a user's own method, on values that are NaN: then it does not count as one
        return False
    return True


def _compare(own: Tensor, reset: Tensor, trainable: bool) -> Fill | None:
    """How to make what ``reset_parameters`` left (NaN: nothing) distributed like ``own``."""
    first = own.flatten()[0]
    if bool((own == first).all()):
        return "fill_", (float(first),)
    spread = float(own.std())
    covered = not bool(reset.isnan().any())
    base = float(reset.std()) if covered else 0.0
    if base > 0.0:
        ratio = spread / base
        within_noise = abs(ratio - 1.0) < 4.0 / math.sqrt(2 * own.numel())
        return "mul_", (1.0 if within_noise else ratio,)
    if trainable:
        return "normal_", (float(own.mean()), spread)
    if own.ndim == 1 and math.isclose(float(own.norm()), 1.0, rel_tol=1e-4):
        return "normal_", (0.0, len(own) ** -0.5)  # a direction: power iterations start anywhere
    # Running statistics start anew; values that no reset explains (a filter, a table) mean something, but
    # are known for other sizes along the dimensions where they are all the same.
    return ("mul_", (1.0,)) if covered else _repeated(own)


def _repeated(own: Tensor) -> Fill | None:
    less = own
    for dim in range(own.ndim):
        first = less.narrow(dim, 0, 1)
        less = first if torch.equal(less, first.expand_as(less)) else less
    return ("copy_", (less.clone(),)) if less.shape != own.shape else None


def initialise(model: nn.Module, initialisation: Initialisation) -> None:
    """Fill a (resized) model with fresh values, from torch's global random numbers."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name in initialisation.resets:
            modules[name].reset_parameters()
        for name, tensor in named_tensors(model).items():
            if name in initialisation.tables:
                tensor.copy_(initialisation.tables[name](tuple(tensor.shape)))
            elif name in initialisation.fills:
                method, numbers = initialisation.fills[name]
                getattr(tensor, method)(*numbers)
    if initialisation.own is not None:
        initialisation.own(model)

"""Sizes that modules state: which of their integers say how many units there are.

``x.view(b, t, self.num_heads, -1)`` works at another width only if ``num_heads`` follows.  So while the trace
runs, every integer attribute of a user's module is a :class:`Stated`, an ``int`` that knows where it came
from, and a function mode sees it arrive as an argument: the dimension that it became says what it counts.
"""

from __future__ import annotations

import copy
import enum
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from widthsearch.space.factors import read_factors
from widthsearch.space.labels import Dim, Report
from widthsearch.space.marks import Factor, NumpyFactor, Stated
from widthsearch.space.masking import FUNCTIONS as MASKED_FUNCTIONS
from widthsearch.space.recorder import Place, Recorder, Trace

Arguments = tuple[Any, ...]


_ANY_MODULES = frozenset(vars(nn.Module()))  # the attributes that all modules have
_STATING = (
    nn.Unflatten,
    nn.Transformer,
    nn.LayerNorm,
    nn.RMSNorm,
)  # of torch's, those that read a size of their own
_DEEPEST = 3  # a list in a dict in a config
_LEAVES = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, enum.Enum)


def mark_numbers(model: nn.Module, trace: Trace) -> None:
    """Make the numbers in the user's own modules know where they came from, in place (on a copy).

    Every whole number becomes a :class:`Stated`, also those in lists, dicts and objects that hold nothing but
    data (a config): each module gets a copy of its own of these.  A float attribute becomes a
    :class:`Factor`.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.") and type(module) not in _STATING:
            continue  # their attributes are known: see resize.py
        for attribute, value in list(vars(module).items()):
            place: Place = (name, (attribute,))
            if attribute in _ANY_MODULES:
                continue
            if type(value) in (float, np.float64):
                trace.held[place] = float(value)
                kind = Factor if type(value) is float else NumpyFactor
                module.__dict__[attribute] = kind.of(value, place, converted=trace.converted)
            else:
                module.__dict__[attribute] = _marked(value, place, trace)
    trace.held.update(trace.sizes)


def _marked(value: Any, place: Place, trace: Trace) -> Any:
    if type(value) is int and value > 1:
        trace.sizes[place] = value
        return Stated.of(value, place, converted=trace.converted)
    parts = parts_of(value) if len(place[1]) <= _DEEPEST else {}
    marked = {step: _marked(part, (place[0], (*place[1], step)), trace) for step, part in parts.items()}
    changed = {step: part for step, part in marked.items() if part is not parts[step]}
    try:
        return with_parts(value, changed) if changed else value
    except Exception:  # an object of a kind of its own
        return value


def numbers_in(model: nn.Module, runner: nn.Module, trace: Trace) -> dict[Tensor, Place]:
    """The tensors of one value that the user's own modules hold and do not train; ``runner``: a copy."""
    found: dict[Tensor, Place] = {}
    copies = dict(runner.named_modules())
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        for attribute, value in {**vars(module), **module._buffers}.items():
            copied = getattr(copies[name], attribute, None)
            if isinstance(value, Tensor) and isinstance(copied, Tensor) and _is_number(value):
                trace.held[name, (attribute,)] = float(value)
                found[copied] = (name, (attribute,))
    trace.tensors.update(found.values())
    return found


def _is_number(value: Tensor) -> bool:
    return value.numel() == 1 and value.is_floating_point() and not value.requires_grad and not value.is_meta


def parts_of(value: Any, depth: int = 0) -> dict[Any, Any]:
    """What a list, dict or plain object holds, by position, key or attribute; empty if not only data."""
    if isinstance(value, (*_LEAVES, Tensor, nn.Module)) or callable(value) or depth > _DEEPEST:
        return {}
    if isinstance(value, (list, tuple)):
        parts = dict(value if _is_pairs(value) else enumerate(value))
    else:
        parts = dict(value if isinstance(value, dict) else getattr(value, "__dict__", {}))
    return parts if all(_is_data(part, depth + 1) for part in parts.values()) else {}


def _is_pairs(value: Sequence[Any]) -> bool:
    """``(("heads", 4), ("size", 8))``."""
    return bool(value) and all(type(p) is tuple and len(p) == 2 and type(p[0]) is str for p in value)


def _is_data(value: Any, depth: int) -> bool:
    if isinstance(value, (list, tuple, dict)) and not value:
        return True
    return isinstance(value, _LEAVES) or bool(parts_of(value, depth))


def with_parts(value: Any, parts: Mapping[Any, Any]) -> Any:
    """A copy of such a value in which these parts are others."""
    every = parts_of(value) | dict(parts)
    if isinstance(value, dict):
        return type(value)(every)
    if isinstance(value, (list, tuple)):
        new = list(every.items()) if _is_pairs(value) else list(every.values())
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)
    copied = copy.copy(value)
    vars(copied).update(parts)
    return copied


def follow_namesakes(trace: Trace) -> None:
    """What a module holds a second time, under the same name and of the same value, is the same size."""
    for (module, path), known in list(trace.stated.items()):
        for place, size in trace.sizes.items():
            same = place[0] == module and place[1][-1] == path[-1] and size == trace.sizes[module, path]
            if same and isinstance(path[-1], str):
                trace.stated.setdefault(place, known)


def settle_scales(trace: Trace) -> None:
    """Of the numbers that scale products, those that something else reads too stay as they are.

    A whole number that is seen as a size follows that size (:data:`Trace.stated`).
    """
    others = trace.elsewhere.difference(trace.sizes)
    for place in [p for p in trace.scales if p in others or p in trace.stated]:
        del trace.scales[place]
    for site in [s for s, place in trace.scaled.items() if place in others]:
        del trace.scaled[site]


@functools.lru_cache(1)  # a search of seconds in all, were it made at each run of a trace
def _cached_functions(modules: int) -> list[tuple[Any, str, Any]]:
    """Module, name and function of each such cache, while so many modules are loaded."""
    cached = type(functools.lru_cache(len))
    skipped = (*sys.stdlib_module_names, "torch", "numpy", "scipy", "sympy", "widthsearch")
    return [
        (module, name, value)
        for key, module in list(sys.modules.items())
        if key.partition(".")[0] not in skipped
        for name, value in list(getattr(module, "__dict__", {}).items())
        if type(value) is cached
    ]


@contextmanager
def nothing_cached() -> Iterator[None]:
    """A cache by value (``functools.lru_cache``, as in einops) would mix up equal sizes: pass it by."""
    found = _cached_functions(len(sys.modules))

    def uncached(function: Any, *args: Any, **kwargs: Any) -> Any:
        stated = any(isinstance(size, Stated) for size in _integers([*args, *kwargs.values()]))
        return (function.__wrapped__ if stated else function)(*args, **kwargs)

    try:
        for module, name, function in found:
            setattr(module, name, functools.partial(uncached, function))
        yield
    finally:
        for module, name, function in found:
            setattr(module, name, function)


class SizeReader(TorchFunctionMode):
    """Notes which dimension each stated size becomes, and which function runs; inside the tracer."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, then look at its arguments."""
        name = getattr(func, "__name__", "")
        if name in MASKED_FUNCTIONS:
            self._recorder.site = self._recorder.modules.next_site(name)
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self._recorder.site = None
        if name in READERS:
            READERS[name](self._recorder, args, kwargs or {}, out)
        read_factors(self._recorder, name, args, kwargs or {}, out)
        return out


def _read_shape(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Tensor) -> None:
    """``torch.zeros(2, self.width)``, ``x.view(2, self.width)``, ``F.layer_norm(x, (self.width,))``."""
    _note_all(recorder, _integers([*args, *kwargs.values()]), out)


def _read_unflatten(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Tensor) -> None:
    """``x.unflatten(1, (self.heads, -1))``."""
    dim, *sizes = _integers([*args[1:], *kwargs.values()])
    _note_all(recorder, sizes, out, first=int(dim) % args[0].ndim)


def _read_slice(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Tensor) -> None:
    """``x[:, : self.width]`` and ``x[..., : self.width]``."""
    indices = args[1] if isinstance(args[1], tuple) else (args[1],)
    if not all(i is None or i is ... or type(i) in (int, slice, Stated) for i in indices):
        return
    dim, taken = 0, sum(i is not None and i is not ... for i in indices)
    for index in indices:
        if isinstance(index, slice) and not index.start:
            _note(recorder, index.stop, out, dim)
        dim += args[0].ndim - taken if index is ... else not isinstance(index, int)


def _read_split(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Any) -> None:
    """``x.split((self.width, self.rest), dim=1)``; parts that are as long by nature stay equal."""
    given = [*args[1:], *kwargs.values()]
    listed = next((value for value in given if isinstance(value, (list, tuple))), None)
    sizes = [size for size in given if isinstance(size, Stated)] if listed is None else listed
    parts: list[Dim] = []
    for part, size in zip([out] if isinstance(out, Tensor) else out, sizes, strict=False):
        changed = [dim for dim in range(part.ndim) if part.shape[dim] != args[0].shape[dim]]
        if len(changed) == 1:
            _note(recorder, size, part, changed[0])
            parts.append(recorder.label(part).dims[changed[0]])
    origins = {size.place if isinstance(size, Stated) else None for size in sizes}
    if listed is not None and len(origins) == 1 and len(set(listed)) == 1:
        for part_dim in parts[1:]:
            recorder.labels.unify(parts[0], part_dim, Report.NEVER)


#: What reads the sizes out of the call of a function (by name, whether of torch or Tensor).
READERS: dict[str, Callable[[Recorder, Arguments, dict[str, Any], Any], None]] = {
    **dict.fromkeys(("zeros", "ones", "empty", "new_zeros", "new_ones"), _read_shape),
    **dict.fromkeys(("view", "reshape", "expand", "layer_norm", "rms_norm"), _read_shape),
    **dict.fromkeys(("split", "split_with_sizes", "narrow"), _read_split),
    "unflatten": _read_unflatten,
    "__getitem__": _read_slice,
}


def _note_all(recorder: Recorder, sizes: Sequence[int], out: Tensor, first: int | None = None) -> None:
    """These sizes are those of dimensions in a row: from the ``first`` on, or else the last ones."""
    start = out.ndim - len(sizes) if first is None else first
    if start >= 0:
        for dim, size in enumerate(sizes, start):
            _note(recorder, size, out, dim)


def _note(recorder: Recorder, size: object, out: Tensor, dim: int) -> None:
    """A size, if a module states it, is that of this dimension."""
    if isinstance(size, Stated) and size.place is not None and out.shape[dim] == size:
        recorder.trace.stated.setdefault(size.place, (recorder.label(out).dims[dim], size.ratio))


def _integers(values: Iterable[Any]) -> list[int]:
    """All integers in nested lists and tuples."""
    integers: list[int] = []
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool):
            integers.append(value)
        elif isinstance(value, (list, tuple)):
            integers += _integers(value)
    return integers

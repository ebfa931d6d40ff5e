"""Sizes that modules state: which of their integers say how many units there are.

``x.view(b, t, self.num_heads, -1)`` works at another width only if ``num_heads`` follows.  So while the trace
runs, every integer attribute of a user's module is a :class:`Stated`, an ``int`` that knows where it came
from, and a function mode sees it arrive as an argument: the dimension that it became says what it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from widthsearch.space.masking import FUNCTIONS as MASKED_FUNCTIONS
from widthsearch.space.recorder import Place, Recorder

Arguments = tuple[Any, ...]


class Stated(int):
    """An integer attribute of a module."""

    place: Place
    ratio: Fraction = Fraction(1)  # this number over the attribute: ``self.width // 2`` has 1/2

    @classmethod
    def of(cls, value: int, place: Place, ratio: Fraction = Fraction(1)) -> Stated:
        """The same number, with its origin."""
        stated = cls(value)
        stated.place, stated.ratio = place, ratio
        return stated

    def __mul__(self, other: int) -> int:
        """A whole multiple keeps the origin."""
        product = int(self) * other
        if type(other) is not int or other < 1:
            return product
        return Stated.of(product, self.place, self.ratio * other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> int:
        """A whole part keeps the origin."""
        part = int(self) // other
        if type(other) is not int or other < 1 or part * other != int(self):
            return part
        return Stated.of(part, self.place, self.ratio / other)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 1


def mark_sizes(model: nn.Module) -> None:
    """Make every integer attribute of the user's own modules a :class:`Stated`, in place (on a copy)."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Unflatten:
            continue  # their attributes are known: see resize.py
        for attribute, value in list(vars(module).items()):
            if attribute == "training":
                continue
            if _is_size(value):
                module.__dict__[attribute] = Stated.of(value, (name, attribute, None))
            elif type(value) in (list, tuple) and all(type(v) is int for v in value):
                marked = [
                    Stated.of(v, (name, attribute, i)) if _is_size(v) else v for i, v in enumerate(value)
                ]
                module.__dict__[attribute] = type(value)(marked)


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
        return out


def _read_new(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Tensor) -> None:
    """``torch.zeros(2, self.width)``."""
    _note_all(recorder, _integers([*args, *kwargs.values()]), out)


def _read_view(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Tensor) -> None:
    """``x.view(2, self.width)``."""
    _note_all(recorder, _integers([*args[1:], *kwargs.values()]), out)


def _read_unflatten(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Tensor) -> None:
    """``x.unflatten(1, (self.heads, -1))``."""
    dim, *sizes = _integers([*args[1:], *kwargs.values()])
    _note_all(recorder, sizes, out, first=int(dim) % args[0].ndim)


def _read_norm(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Tensor) -> None:
    """``F.layer_norm(x, (self.width,))``."""
    sizes = _integers(args[1:2])
    if len(sizes) == 1:
        recorder.note_normalised(recorder.labels.flat(recorder.label(out).dims[-1]))
    _note_all(recorder, sizes, out)


def _read_slice(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Tensor) -> None:
    """``x[:, : self.width]``."""
    if out.ndim == args[0].ndim:
        for dim, index in enumerate(args[1] if isinstance(args[1], tuple) else (args[1],)):
            if isinstance(index, slice) and not index.start:
                _note(recorder, index.stop, out, dim)


def _read_split(recorder: Recorder, args: Arguments, kwargs: dict[str, Any], out: Any) -> None:
    """``x.split((self.width, self.rest), dim=1)``."""
    given = [*args[1:], *kwargs.values()]
    listed = next((value for value in given if isinstance(value, (list, tuple))), None)
    sizes = [size for size in given if isinstance(size, Stated)] if listed is None else listed
    for part, size in zip([out] if isinstance(out, Tensor) else out, sizes, strict=False):
        changed = [dim for dim in range(part.ndim) if part.shape[dim] != args[0].shape[dim]]
        if len(changed) == 1:
            _note(recorder, size, part, changed[0])


#: What reads the sizes out of the call of a function (by name, whether of torch or Tensor).
READERS: dict[str, Callable[[Recorder, Arguments, dict[str, Any], Any], None]] = {
    name: reader
    for reader, names in {
        _read_new: "zeros ones empty",
        _read_view: "view reshape expand new_zeros new_ones",
        _read_unflatten: "unflatten",
        _read_norm: "layer_norm rms_norm",
        _read_slice: "__getitem__",
        _read_split: "split split_with_sizes narrow",
    }.items()
    for name in names.split()
}


def _note_all(recorder: Recorder, sizes: Sequence[int], out: Tensor, first: int | None = None) -> None:
    """These sizes are those of dimensions in a row: from the ``first`` on, or else the last ones."""
    start = out.ndim - len(sizes) if first is None else first
    if start >= 0:
        for dim, size in enumerate(sizes, start):
            _note(recorder, size, out, dim)


def _note(recorder: Recorder, size: object, out: Tensor, dim: int) -> None:
    """A size, if a module states it, is that of this dimension."""
    if isinstance(size, Stated) and out.shape[dim] == size:
        recorder.trace.stated.setdefault(size.place, (recorder.label(out).dims[dim], size.ratio))


def _integers(values: Iterable[Any]) -> list[int]:
    """All integers in nested lists and tuples."""
    integers: list[int] = []
    for value in values:
        if isinstance(value, int):
            integers.append(value)
        elif isinstance(value, (list, tuple)):
            integers += _integers(value)
    return integers

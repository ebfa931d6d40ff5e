"""Sizes that modules state: which of their integers say how many units there are.

``x.view(b, t, self.num_heads, -1)`` works at another width only if ``num_heads`` follows.  So while the trace
runs, every integer attribute of a user's module is a :class:`Stated`, an ``int`` that knows where it came
from, and a function mode sees it arrive as an argument: the dimension that it became says what it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from widthsearch.space.masking import FUNCTIONS as MASKED_FUNCTIONS
from widthsearch.space.recorder import Place, Recorder

MAKING = {"zeros", "ones", "empty"}
RESHAPING = MAKING | {"view", "reshape", "expand", "unflatten", "new_zeros", "new_ones"}
NORMALISING = {"layer_norm", "rms_norm"}
SPLITTING = {"split", "split_with_sizes", "narrow", "chunk"}


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
    """Notes which dimension each stated size becomes, and which function runs; inside the :class:`Tracer`."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, then look at its arguments."""
        name = getattr(func, "__name__", "")
        if name in MASKED_FUNCTIONS:
            self.recorder.site = self.recorder.modules.next_site(name)
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self.recorder.site = None
        if name in RESHAPING and isinstance(out, Tensor):
            sizes = list(_integers(args if name in MAKING else args[1:])) + list(
                _integers(list((kwargs or {}).values()))
            )
            if name == "unflatten":
                sizes, offset = sizes[1:], int(sizes[0]) % args[0].ndim
            else:
                offset = out.ndim - len(sizes)
            for k, size in enumerate(sizes):
                if isinstance(size, Stated) and offset >= 0:
                    self._note(size, out, offset + k)
        elif name in NORMALISING and len(args) > 1 and isinstance(out, Tensor):
            sizes = list(_integers([args[1]]))
            if len(sizes) == 1:
                self.recorder.note_normalised(self.recorder.labels.flat(self.recorder.label(out).dims[-1]))
            for k, size in enumerate(sizes):
                if isinstance(size, Stated):
                    self._note(size, out, out.ndim - len(sizes) + k)
        elif name == "__getitem__" and isinstance(out, Tensor) and out.ndim == args[0].ndim:
            for dim, index in enumerate(args[1] if isinstance(args[1], tuple) else (args[1],)):
                if isinstance(index, slice) and isinstance(index.stop, Stated) and not index.start:
                    self._note(index.stop, out, dim)  # x[:, : self.width]
        elif name in SPLITTING:
            self._read_split(name, out, args, kwargs or {})
        return out

    def _read_split(self, name: str, out: Any, args: Any, kwargs: dict[str, Any]) -> None:
        outs = [out] if isinstance(out, Tensor) else list(out)
        given = [*args[1:], *kwargs.values()]
        listed = next((value for value in given if isinstance(value, (list, tuple))), None)
        sizes = list(listed) if listed is not None else [s for s in given if isinstance(s, Stated)]
        if name == "chunk":
            return
        for part, size in zip(outs, sizes, strict=False):
            changed = [d for d in range(part.ndim) if part.shape[d] != args[0].shape[d]]
            if isinstance(size, Stated) and len(changed) == 1:
                self._note(size, part, changed[0])

    def _note(self, size: Stated, out: Tensor, dim: int) -> None:
        if out.shape[dim] == size:
            counted = self.recorder.label(out).dims[dim]
            self.recorder.trace.stated.setdefault(size.place, (counted, size.ratio))


def _integers(values: Any) -> Iterator[int]:
    for value in values:
        if isinstance(value, int):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _integers(value)

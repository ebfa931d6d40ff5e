"""Numbers that know which attribute of a module they come from, for the time of a trace."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

from widthsearch.space.recorder import Place


class Stated(int):
    """An integer attribute of a module."""

    place: Place | None = None  # none of a number that user code makes by ``type(self.size)(3)``
    ratio: Fraction = Fraction(1)  # this number over the attribute: ``self.width // 2`` has 1/2
    #: The attributes that were read as floats (``math.sqrt``), which forget their origin.
    converted: set[Place]

    @classmethod
    def of(
        cls,
        value: int,
        place: Place | None,
        ratio: Fraction = Fraction(1),
        converted: set[Place] | None = None,
    ) -> Stated:
        """The same number, with its origin."""
        stated = cls(value)
        stated.place, stated.ratio = place, ratio
        stated.converted = set() if converted is None else converted
        return stated

    def __mul__(self, other: Any) -> Any:
        """A whole multiple keeps the origin."""
        if isinstance(other, Tensor):  # which sees the origin then
            return NotImplemented
        product = int(self) * other
        if type(other) is not int or other < 1 or self.place is None:
            return product
        return Stated.of(product, self.place, self.ratio * other, self.converted)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> int:
        """A whole part keeps the origin."""
        part = int(self) // other
        if type(other) is not int or other < 1 or part * other != int(self) or self.place is None:
            return part
        return Stated.of(part, self.place, self.ratio / other, self.converted)

    def __float__(self) -> float:
        """``math.sqrt(self.size)``."""
        if self.ratio == 1 and self.place is not None:
            self.converted.add(self.place)
        return float(int(self))

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        """``self.size ** 0.5``."""
        return _marked(lambda a, b: pow(a, b, modulo), self, other)

    def __truediv__(self, other: Any) -> Any:
        """``self.size / 2``."""
        return _marked(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        """``1 / self.size``."""
        return _marked(operator.truediv, other, self)


class Factor(float):
    """A float attribute of a module, or what is computed from numbers that modules hold."""

    places: tuple[Place, ...] = ()
    converted: set[Place] | None = None

    @classmethod
    def of(cls, value: float, *places: Place, converted: set[Place] | None = None) -> Factor:
        """The same number, with its origins."""
        factor = cls(value)
        factor.places, factor.converted = places, converted
        return factor

    def __float__(self) -> float:
        """``float(self.scale)``, which forgets the origin."""
        if self.converted is not None:
            self.converted.update(self.places)
        return super().__float__()

    def __mul__(self, other: Any) -> Any:
        """A multiple keeps the origin."""
        return _marked(operator.mul, self, other)

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        """So does the negative."""
        return self * -1.0

    def __truediv__(self, other: Any) -> Any:
        """So does a part."""
        return _marked(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        """``1 / self.scale``."""
        return _marked(operator.truediv, other, self)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        """``self.scale ** 0.5``."""
        return _marked(operator.pow, self, other)


class NumpyFactor(Factor):
    """The same of ``1 / np.sqrt(width)``, which has NumPy's methods."""

    def __getattr__(self, name: str) -> Any:
        """Those of the plain number."""
        if name.startswith("__"):  # protocols are looked for here, and are the float's
            raise AttributeError(name)
        return getattr(np.float64(plain(self)), name)


def places_of(number: Any) -> tuple[Place, ...]:
    """The attributes that a number comes from; none for a part or multiple of a whole one."""
    if isinstance(number, Factor):
        return number.places
    if not isinstance(number, Stated) or number.place is None or number.ratio != 1:
        return ()
    return (number.place,)


def plain(number: Any) -> Any:
    """The same number without an origin."""
    if isinstance(number, Factor):
        return float.__float__(number)
    return int(number) if isinstance(number, Stated) else number


def _marked(compute: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """What is computed of two numbers, one of them with an origin."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):  # which sees the origin then
        return NotImplemented
    value = compute(plain(a), plain(b))
    places = dict.fromkeys((*places_of(a), *places_of(b)))
    return Factor.of(value, *places) if type(value) is float and places else value

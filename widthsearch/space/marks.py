"""Numbers that know which attribute of a module they come from, for the time of a trace."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import Tensor

from widthsearch.space.recorder import Place


class Stated(int):
    """An integer attribute of a module."""

    place: Place
    ratio: Fraction = Fraction(1)  # this number over the attribute: ``self.width // 2`` has 1/2
    converted: set[
        Place
    ]  # the attributes that were read as a float (``math.sqrt``), which forgets the origin

    @classmethod
    def of(
        cls, value: int, place: Place, ratio: Fraction = Fraction(1), converted: set[Place] | None = None
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
        if type(other) is not int or other < 1:
            return product
        return Stated.of(product, self.place, self.ratio * other, self.converted)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> int:
        """A whole part keeps the origin."""
        part = int(self) // other
        if type(other) is not int or other < 1 or part * other != int(self):
            return part
        return Stated.of(part, self.place, self.ratio / other, self.converted)

    def __float__(self) -> float:
        """``math.sqrt(self.size)``."""
        if self.ratio == 1:
            self.converted.add(self.place)
        return float(int(self))

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        """``self.size ** 0.5``."""
        return NotImplemented if isinstance(other, Tensor) else self._factor(pow(int(self), other, modulo))

    def __truediv__(self, other: Any) -> Any:
        """``self.size / 2``."""
        return NotImplemented if isinstance(other, Tensor) else self._factor(int(self) / other)

    def __rtruediv__(self, other: Any) -> Any:
        """``1 / self.size``."""
        return NotImplemented if isinstance(other, Tensor) else self._factor(other / int(self))

    def _factor(self, value: Any) -> Any:
        return Factor.of(value, self.place) if type(value) is float and self.ratio == 1 else value


class Factor(float):
    """A float attribute of a module, or what is computed from one number that a module holds."""

    place: Place

    @classmethod
    def of(cls, value: float, place: Place) -> Factor:
        """The same number, with its origin."""
        factor = cls(value)
        factor.place = place
        return factor

    def _kept(self, value: Any) -> Any:
        return Factor.of(value, self.place) if type(value) is float else value

    def __mul__(self, other: Any) -> Any:
        """A multiple keeps the origin."""
        return self._kept(float.__mul__(self, other))

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        """So does the negative."""
        return self._kept(float.__neg__(self))

    def __truediv__(self, other: Any) -> Any:
        """So does a part."""
        return self._kept(float.__truediv__(self, other))

    def __rtruediv__(self, other: Any) -> Any:
        """``1 / self.scale``."""
        return self._kept(float.__rtruediv__(self, other))

    def __pow__(self, other: Any, modulo: None = None) -> Any:
        """``self.scale ** 0.5``."""
        return self._kept(float.__pow__(self, other))

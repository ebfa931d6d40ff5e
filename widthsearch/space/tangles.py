"""Which width variables resize together: found by trying, and by looking where a resized model breaks.

A model's code may hold what the labels cannot see: a width as a literal (``view(-1, 512)``: that variable
stays as it is), or one size taken for another (``reshape(b, t, channels)`` of heads x size: those variables
only move together).  Where the forward pass breaks, a variable of that module is to blame.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from widthsearch.space.recorder import Axis, Place, Trace
from widthsearch.space.variables import Variables

LARGEST_SEARCH = 120  # resized models tried in one round
MEANINGS = 6  # tried for one number in a module
SIZES_IN_VAIN = 24  # numbers in modules that are tried and do not help
IN_VAIN = 3  # variables of one module added to those that resize together, while it still breaks there
AGAIN = 8  # times to look for the failure that began a round, where the round's own first widths run
BLOCK = 8  # units: 16 bytes of bfloat16, as grouped matrix multiplications need
FACTOR = 3  # by which variables are scaled together: their ratio stays


@dataclass(frozen=True)
class Failure:
    """How a resized model breaks; ``module``: whose forward was running, empty for the model's own.

    ``training``: in train mode; ``line``: of the code that raised.
    """

    module: str
    reason: str
    training: bool
    line: tuple[str, int] | None = None


@dataclass(frozen=True)
class Change:
    """What verification changes: freeze one variable for a reason, or (no reason) tie several into one.

    ``block``: so many units in a row live or die together; or ``states``: a number that a module holds is the
    size of this axis.
    """

    names: tuple[str, ...]
    reason: str | None = None
    block: int = 1
    states: tuple[Place, Axis] | None = None


Test = Callable[[Sequence[int]], Failure | None]  # of a model at these widths


class Tangles:
    """The search of one round; ``test`` runs a resized model."""

    def __init__(self, test: Test, trace: Trace, variables: Variables, numbers: random.Random) -> None:
        self._test, self._trace, self._variables, self._numbers = test, trace, variables, numbers
        self._width = variables.width
        self._tests_left = LARGEST_SEARCH
        self._last: Sequence[int] = variables.widths
        self._in_vain: set[tuple[Place, Axis]] = set()  # sizes held in modules that do not help
        self._owners: dict[str, set[str]] = {name: set() for name in variables.names}
        for (parameter, _), ids in trace.axes.items():
            for name in variables.among(ids):
                self._owners[name].add(parameter.rpartition(".")[0])

    def changes(self) -> list[Change]:
        """What to tie and what to freeze, so that everything else resizes freely; never empty."""
        changes: list[Change] = []
        left = list(self._variables.names)
        while left and (failure := self._random(left) or (None if changes else self._failed_before())):
            if (found := self._size_held(failure, left)) is not None:
                changes.append(found)
                continue
            culprit = self._first_that_breaks(self._near(failure.module, left))
            alone = self._random([culprit])
            if alone is None:
                culprit = self._first_that_breaks(left)
                reason = f"it does not resize independently of others: {failure.reason}"
                changes.append(Change((culprit,), reason))
                left.remove(culprit)
                continue
            group = self._grown(culprit, left)
            if group is not None:
                changes.append(Change(tuple(group)))
                left = [name for name in left if name not in group]
                continue
            # Where one block of a stack finds no others to resize with, the next ones will find none either.
            for name in [n for n in left if self._same_stack(n, culprit)]:
                failure = alone if name == culprit else self._random([name])
                if failure is not None:
                    in_blocks = self._resizes_in_blocks(name)
                    why = None if in_blocks else f"another width does not run: {failure.reason}"
                    changes.append(Change((name,), why, BLOCK if in_blocks else 1))
                    left.remove(name)
        return changes or [Change((self._variables.names[-1],), "it does not resize independently of others")]

    def _size_held(self, failure: Failure, left: Sequence[str]) -> Change | None:
        """A number in the module that breaks with which it breaks no more, or only later; None without one.

        It equals the size of an axis, and is nowhere seen as a size: the code only compares it
        (``assert x.shape[1] == self.channels``).
        """
        widths, stated, sizes = self._last, self._trace.stated, self._trace.sizes

        def helps(places: Sequence[Place], axis: Axis) -> bool:
            stated.update(dict.fromkeys(places, ((self._trace.axes[axis],), Fraction(1))))
            again = self._test(widths)
            for place in places:
                del stated[place]
            return again is None or (again.module, again.line) != (failure.module, failure.line)

        for module in _around(failure.module):
            held = [place for place in sizes if place[0] == module and place not in stated]
            for size in dict.fromkeys(sizes[place] for place in held):
                places = [place for place in held if sizes[place] == size]
                for axis in self._axes_of_size(size, module, left):
                    if (places[0], axis) in self._in_vain or len(self._in_vain) >= SIZES_IN_VAIN:
                        continue
                    # All of them at once first: most are never read.
                    for place in places if len(places) == 1 or helps(places, axis) else ():
                        if helps([place], axis):
                            stated[place] = ((self._trace.axes[axis],), Fraction(1))
                            return Change((), states=(place, axis))
                    self._in_vain.add((places[0], axis))
        return None

    def _axes_of_size(self, size: int, module: str, left: Sequence[str]) -> list[Axis]:
        """One axis of every meaning among those of this size, the module's own first."""
        indices = {self._variables.names.index(name) for name in left}
        found: dict[tuple[int, ...], Axis] = {}
        axes = [axis for axis, ids in self._trace.axes.items() if len(ids) == size]
        for axis in sorted(axes, key=lambda axis: not f"{axis[0]}.".startswith(f"{module}.")):
            form = self._variables.form(self._trace.axes[axis])
            if any(form[0][index] for index in indices):
                found.setdefault(form[0], axis)
        return list(found.values())[:MEANINGS]

    def _resizes_in_blocks(self, name: str) -> bool:
        """Whether it runs at multiples of what kernels want aligned."""
        blocks, rest = divmod(self._width[name], BLOCK)
        others = [k * BLOCK for k in (blocks + 1, 2 * blocks + 1, max(1, blocks - 1))]
        tried = ([w if n == name else own for n, own in self._width.items()] for w in others)
        return blocks > 1 and not rest and all(self._tried(widths) is None for widths in tried)

    def _grown(self, first: str, left: Sequence[str]) -> list[str] | None:
        """The variables that resize in proportion with ``first``; None if there are none.

        One by one, each from the module where scaling the others breaks; once a module has broken for want of
        one, its likes in the modules that also hold units of ``first`` come along (the blocks of a stack).
        """
        group = [first]
        doubtful: list[str] = []  # after which it still broke in the same module
        in_vain = 0
        failure = self._scaled(group)
        while failure is not None:
            candidates = [name for name in self._near(failure.module, left) if name not in group]
            if not candidates or in_vain > IN_VAIN or self._tests_left <= 0:
                return None
            added = candidates[0]
            group.append(added)
            before, failure = failure, self._scaled(group)
            in_vain = in_vain + 1 if failure is not None and failure.module == before.module else 0
            if in_vain:
                doubtful.append(added)
            elif failure is not None and (alike := self._alike(added, first, left, group)):
                group.extend(alike)
                failure = self._scaled(group)
        for name in doubtful:
            fewer = [n for n in group if n != name]
            if self._scaled(fewer) is None:
                group = fewer
        return group if math.gcd(*(self._width[name] for name in group)) > 1 and len(group) > 1 else None

    def _alike(self, name: str, first: str, left: Sequence[str], group: Sequence[str]) -> list[str]:
        """Variables named like this one but for numbers, as wide, in modules with units of ``first``."""
        return [
            other
            for other in left
            if other not in group
            and self._likeness(other) == self._likeness(name)
            and any(f"{owner}.".startswith(f"{other.rpartition('.')[0]}.") for owner in self._owners[first])
        ]

    def _likeness(self, name: str) -> tuple[str, int]:
        """What the variables of like blocks share: the name but for its numbers, and the width."""
        return re.sub(r"\d+", "#", name), self._width[name]

    def _same_stack(self, a: str, b: str) -> bool:
        """Whether these variables are alike and their names differ in at most one number."""
        numbers = zip(re.findall(r"\d+", a), re.findall(r"\d+", b), strict=False)
        return self._likeness(a) == self._likeness(b) and sum(m != n for m, n in numbers) <= 1

    def _near(self, module: str, left: Sequence[str]) -> list[str]:
        """Those left that have parameters in this module, or in the smallest one around it with any."""
        inside = (
            [v for v in left if any(f"{owner}.".startswith(f"{around}.") for owner in self._owners[v])]
            for around in _around(module)
            if around
        )
        return next(filter(None, inside), list(left))

    def _random(self, names: Sequence[str]) -> Failure | None:
        """How the model breaks with these variables at random widths."""
        other = zip(self._variables.names, random_widths(self._variables, self._numbers), strict=True)
        return self._tried([w if name in names else self._width[name] for name, w in other])

    def _failed_before(self) -> Failure | None:
        """How the whole model breaks: it did, but what is tied may have had widths that fit by chance."""
        failures = (self._random(self._variables.names) for _ in range(AGAIN))
        return next(filter(None, failures), None)

    def _scaled(self, names: Sequence[str]) -> Failure | None:
        return self._tried([w * FACTOR if name in names else w for name, w in self._width.items()])

    def _tried(self, widths: Sequence[int]) -> Failure | None:
        self._tests_left -= 1
        self._last = widths
        return self._test(widths)

    def _first_that_breaks(self, names: Sequence[str]) -> str:
        """By halving: the shortest start of ``names`` that breaks ends with it."""
        low, high = 0, len(names)  # names[:low] runs, names[:high] breaks
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._random(names[:middle]) is None else (low, middle)
        return names[high - 1]


def _around(module: str) -> Iterator[str]:
    """The module and all around it, innermost first; the last one, the model itself, is empty."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def random_widths(variables: Variables, numbers: random.Random) -> list[int]:
    """Another width for every variable, odd ones."""
    # Odd sizes have no hidden divisors: x2 and x1/2 pass where 12 heads must divide the width.
    odd = [max(3, int(w * numbers.uniform(0.3, 2.2)) | 1) for w in variables.widths]
    others = [w + 2 if w == own else w for w, own in zip(odd, variables.widths, strict=True)]
    return told_apart(variables.widths, others, lambda own: range(3, max(3, int(2.2 * own)) + 3, 2))


def told_apart(
    widths: Sequence[int], others: Sequence[int], choices: Callable[[int], Iterable[int]]
) -> list[int]:
    """The other widths, but of equally wide variables each another one, as long as there are choices.

    Where two of them are the same by chance, the network runs although they only resize together.
    """
    found: list[int] = []
    taken: set[tuple[int, int]] = set()
    for own, other in zip(widths, others, strict=True):
        free = [w for w in choices(own) if w != own and (own, w) not in taken]
        width = min(free, key=lambda w: (abs(w - other), w)) if free and (own, other) in taken else other
        taken.add((own, width))
        found.append(width)
    return found

"""Which modules make a variable's units, as places along the data's way: a residual stage has many makers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from widthsearch.maths.cost import Cost


@dataclass(frozen=True)
class Tie:
    """A variable whose units several modules make.

    ``places``: where they are executed, in columns of width variables: at a variable's own column the first
    of its makers, half a column later those that come after it and before the next variable's first.
    """

    modules: tuple[str, ...]
    places: tuple[float, ...]

    @property
    def first(self) -> float:
        """The place of the first maker."""
        return min(self.places)

    @property
    def last(self) -> float:
        """The place of the last maker."""
        return max(self.places)


def ties_of(modules: Sequence[tuple[str, str]], variables: Sequence[str]) -> dict[str, Tie]:
    """The variables that more than one module makes.

    ``modules``: (module, variable) in the order of execution; ``variables``: those that have a column.
    """
    column = {v: k for k, v in enumerate(variables)}
    made: dict[str, list[tuple[str, float]]] = {}
    reached = -1  # the last column that the data has come to
    for module, variable in modules:
        if variable not in column or any(module == m for m, _ in made.get(variable, ())):
            continue  # one module, however often it is run, is one maker
        place = reached + 0.5 if variable in made else float(column[variable])
        reached = max(reached, column[variable])
        made.setdefault(variable, []).append((module, place))
    return {
        v: Tie(tuple(m for m, _ in makers), tuple(p for _, p in makers))
        for v, makers in made.items()
        if len(makers) > 1
    }


def skips_of(cost: Cost, ties: Mapping[str, Tie], variables: Sequence[str]) -> dict[tuple[float, float], str]:
    """Where units are read again further on than by the next layer, as a U-Net does: (from, to) -> of what.

    Places as in :class:`Tie`, from the last module that makes the units to the one that reads them.  Which
    layer reads which units follows from the ``cost``: its MACs are products of both sizes.
    """
    column = {v: k for k, v in enumerate(variables)}
    found: dict[tuple[float, float], str] = {}
    for v, w in cost.products("macs"):
        if v not in column or w not in column or column[v] >= column[w]:
            continue
        made = ties[v].places if v in ties else (float(column[v]),)
        place = max(p for p in made if p < column[w])
        if column[w] - place > 1:
            found[place, float(column[w])] = f"{v} is read by {w} too"
    return found


def lanes(spans: Mapping[str, tuple[float, float]]) -> dict[str, int]:
    """A lane for each span, so that none overlaps another in its lane; short spans get the lowest lanes."""
    taken: list[list[tuple[float, float]]] = []
    found: dict[str, int] = {}
    for name, (a, b) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        free = (k for k, lane in enumerate(taken) if all(b < c or d < a for c, d in lane))
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((a, b))
        found[name] = lane
    return found

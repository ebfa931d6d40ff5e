"""From the labels of a trace to width variables: names, widths, linear forms, the cost polynomial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from widthsearch.maths.cost import Cost, Polynomial
from widthsearch.space.labels import Dim, Factor, Freeze, Ids, Report, Solution
from widthsearch.space.recorder import Trace

Form = tuple[tuple[int, ...], int]  # a size: the multiplicity of each variable, and a constant

ALONE = "a single unit, or units that only live or die together"


@dataclass(frozen=True)
class Frozen:
    """Units that look like a width variable but cannot be searched, and why (module and operation)."""

    name: str
    width: int
    reason: str


@dataclass(frozen=True, eq=False)
class _Group:
    """Components that touch the same parameter axes equally often."""

    components: Ids  # in the order of the units
    first_axis: str  # the first parameter that has them


@dataclass(frozen=True, eq=False)
class Variables:
    """The width variables of one trace.

    ``position``: int (ids,), of every id its position in the concatenation of all variables' units, -1 for
    constants; ``variable``: int (ids,), the index of its variable, -1 for constants.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    frozen: tuple[Frozen, ...]
    position: Ids
    variable: Ids

    def form(self, factor: Factor) -> Form:
        """The size of a factor as a linear form: the multiplicity per variable, and the constant."""
        if isinstance(factor, int):
            return (0,) * len(self.names), factor
        counts = np.bincount(self.variable[factor] + 1, minlength=len(self.names) + 1)
        return tuple((counts[1:] // self.widths).tolist()), int(counts[0])

    @property
    def width(self) -> dict[str, int]:
        """The width of each, by name, in order."""
        return dict(zip(self.names, self.widths, strict=True))

    def among(self, ids: Ids) -> list[str]:
        """The variables that have units among these ids, in order."""
        return [self.names[index] for index in np.unique(self.variable[ids]).tolist() if index >= 0]

    def size(self, factor: Factor, widths: Sequence[int]) -> int:
        """The size of a factor at these widths."""
        multiplicity, constant = self.form(factor)
        return constant + sum(m * w for m, w in zip(multiplicity, widths, strict=True))

    def without(self, fixed: Mapping[str, str]) -> Variables:
        """These variables (name -> reason) become constants; the others keep their names."""
        stays = np.array([name not in fixed for name in self.names], dtype=bool)
        unit_stays = np.repeat(stays, self.widths)

        def renumbered(kept: NDArray[np.bool_], numbers: Ids) -> Ids:
            return np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)[numbers]  # -1, a constant, stays -1

        gone = (Frozen(name, width, fixed[name]) for name, width in self.width.items() if name in fixed)
        left = {name: width for name, width in self.width.items() if name not in fixed}
        return Variables(
            names=tuple(left),
            widths=tuple(left.values()),
            frozen=(*gone, *self.frozen),
            position=renumbered(unit_stays, self.position),
            variable=renumbered(stays, self.variable),
        )


def find_variables(
    trace: Trace, rejected: Iterable[Freeze] = (), ties: Iterable[tuple[Ids, Ids]] = ()
) -> Variables:
    """Group the units of a trace into width variables; verification adds freezes and ties.

    A variable is a set of components with the same signature: how often each parameter axis has them.
    """
    solution = trace.labels.solve(rejected, ties)
    summed = [ids for dims in trace.sites.values() for dim, ids in dims.items() if dim < 0]
    consumed = solution.has([*summed, *(trace.axes[axis] for axis in trace.consumers)])
    produced = solution.has(ids for _, ids in trace.productions)
    free: list[_Group] = []
    given_up: dict[_Group, str] = {}
    for group in _groups(trace, solution):
        first = int(group.components[0])
        freeze = solution.frozen.get(first)
        if freeze is not None:
            is_used = produced[first] and (consumed[first] or freeze.report != Report.IF_READ)
            if freeze.report == Report.ALWAYS or is_used and freeze.report != Report.NEVER:
                given_up[group] = freeze.reason
        elif consumed[first] and len(group.components) > 1:
            free.append(group)
        elif produced[first]:
            given_up[group] = ALONE if consumed[first] else "no weight reads its units"
    named = _named(trace, solution, free)
    position, variable = _positions(solution, [group.components for group in named.values()])
    return Variables(
        names=tuple(named),
        widths=tuple(len(group.components) for group in named.values()),
        frozen=tuple(
            Frozen(name, _width_of(trace, solution, group, given_up[group]), given_up[group])
            for name, group in _named(trace, solution, given_up).items()
        ),
        position=position,
        variable=variable,
    )


def _width_of(trace: Trace, solution: Solution, group: _Group, reason: str) -> int:
    """The units of a frozen group; of those that only live or die together the outputs of their layer."""
    if reason != ALONE:
        return len(group.components)
    made = (int(np.isin(solution.component[ids], group.components).sum()) for _, ids in trace.productions)
    return next(filter(None, made), len(group.components))


def makers_of(trace: Trace, variables: Variables) -> dict[tuple[str, str], int]:
    """Each layer (or parameter) that makes units, with the variable, in the order of execution.

    With each, how many of its outputs the units are: one each, or a head's many.
    """
    makers: dict[tuple[str, str], int] = {}
    for layer, ids in trace.productions:
        indices, outputs = np.unique(variables.variable[ids], return_counts=True)
        for index, count in zip(indices.tolist(), outputs.tolist(), strict=True):
            if index >= 0:
                makers[layer, variables.names[index]] = count
    return makers


def _groups(trace: Trace, solution: Solution) -> list[_Group]:
    """Partition the components by signature, refining axis by axis; in the order of the parameters."""
    count = int(solution.component.max(initial=-1)) + 1
    signature = np.zeros(count, dtype=np.int64)  # 0: in no axis so far
    owner = np.full(count, -1, dtype=np.int64)
    sequence: list[int] = []  # components in the order in which the axes show them
    names: list[str] = []
    cuts = [("", ids) for ids in trace.labels.cuts]
    fresh = 1
    for name, ids in [*((name, ids) for (name, _), ids in trace.axes.items()), *cuts]:
        components, first, times = np.unique(solution.component[ids], return_index=True, return_counts=True)
        unseen = owner[components] < 0
        if name:
            sequence.extend(components[unseen][np.argsort(first[unseen])].tolist())
            owner[components[unseen]] = len(names)
            names.append(name)
        else:  # no new components: what no parameter has is no unit
            components, times = components[~unseen], 0 * times[~unseen]
        _, refined = np.unique(signature[components] * (len(ids) + 1) + times, return_inverse=True)
        signature[components] = fresh + refined
        fresh += len(components)
    members: dict[tuple[int, bool], list[int]] = {}
    for c in sequence:
        # A layer may have both, frozen units and free ones.
        members.setdefault((int(signature[c]), c in solution.frozen), []).append(c)
    return [_Group(np.array(m, dtype=np.int64), names[owner[m[0]]]) for m in members.values()]


def _named(trace: Trace, solution: Solution, groups: Iterable[_Group]) -> dict[str, _Group]:
    """The groups in order of execution, by name: the layer that makes their units first.

    Units that no layer makes (a parameter used as an activation) are named after the parameter and come last.
    """
    made: dict[int, tuple[int, str]] = {}
    for moment, (layer, ids) in enumerate(trace.productions):
        for c in np.unique(solution.component[ids]).tolist():
            made.setdefault(c, (moment, layer))
    never = len(trace.productions)
    first = {g: made.get(int(g.components[0]), (never, g.first_axis)) for g in groups}
    seen: Counter[str] = Counter()
    named = {}
    for group in sorted(first, key=lambda g: first[g][0]):
        name = first[group][1]
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}#{seen[name]}"] = group
    return named


def _positions(solution: Solution, components: Sequence[Ids]) -> tuple[Ids, Ids]:
    count = int(solution.component.max(initial=-1)) + 1
    position, variable = np.full(count, -1, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    start = 0
    for index, units in enumerate(components):
        position[units] = np.arange(start, start + len(units))
        variable[units] = index
        start += len(units)
    return position[solution.component], variable[solution.component]


def cost_of(trace: Trace, variables: Variables, batch: int, *, written: bool = False) -> Cost:
    """The cost polynomials: MACs per sample and unique parameters.

    ``written``: as a third resource, the elements that operations write per sample.
    """
    shapes = {
        name: tuple(trace.axes.get((name, dim), size) for dim, size in enumerate(trace.shapes[name]))
        for name in trace.parameters
    }
    terms = {"macs": (1.0 / batch, trace.macs), "params": (1.0, shapes.values())}
    if written:
        terms["written"] = (1.0 / batch, trace.written)
    forms: dict[Form, int] = {((0,) * len(variables.names), 1): 0}
    polynomials = {
        resource: _polynomial(scale, products, variables, forms)
        for resource, (scale, products) in terms.items()
    }
    return Cost(
        variables=variables.names,
        multiplicity=np.array([m for m, _ in forms], dtype=np.float64),
        constant=np.array([c for _, c in forms], dtype=np.float64),
        polynomials=polynomials,
    )


def _polynomial(
    scale: float, products: Iterable[Dim], variables: Variables, forms: dict[Form, int]
) -> Polynomial:
    """Sum products of sizes, equal ones together; ``forms``: all linear forms so far, the first is 1."""
    total: dict[tuple[int, ...], float] = {}
    for product in products:
        coefficient, factors = scale, []
        for factor in product:
            multiplicity, constant = form = variables.form(factor)
            if any(multiplicity):
                factors.append(forms.setdefault(form, len(forms)))
            else:
                coefficient *= constant
        key = tuple(sorted(factors))
        total[key] = total.get(key, 0.0) + coefficient
    longest = max(map(len, total), default=0)
    padded = [key + (0,) * (longest - len(key)) for key in total]
    return Polynomial(
        np.array(list(total.values()), dtype=np.float64),
        np.array(padded, dtype=np.int64).reshape(len(total), longest),
    )

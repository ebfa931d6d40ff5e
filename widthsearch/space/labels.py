"""Labels: which unit every index of every tensor dimension belongs to.

The trace gives an id to every index of every parameter dimension and carries these ids along.  A tensor
dimension is a row-major tuple of *factors* (:data:`Dim`); a factor is a constant size (``int``) or an array
of unit ids.  So a feature map (N, C, 7, 7) has the dims ``((N,), (c,), (7,), (7,))`` and its flattened form
``((N,), (c, 7, 7))``: views only regroup factors, and what they merged they can split again.

While the trace runs, this file merely *writes down* what it learns (ties, products, freezes);
:meth:`Labels.solve` draws the conclusions afterwards, as often as verification adds another freeze.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = NDArray[np.int64]
Factor = int | Ids
Dim = tuple[Factor, ...]
Dims = tuple[Dim, ...]


class Report(IntEnum):
    """Whether the user hears of a freeze; of several freezes of the same units the lowest counts."""

    NEVER = 0  # an input of the network, a kernel size: nobody expects a variable there
    IF_READ = 1  # an output of the network: only where one layer makes these units and one reads them
    ALWAYS = 2
    IF_PRODUCED = 3  # only where a layer makes these units (an input's own scale is no news)


@dataclass(frozen=True, eq=False)
class Freeze:
    """These ids can never belong to a width variable, and why."""

    ids: Ids
    reason: str
    report: Report

    def onto(self, ids: Ids) -> Freeze:
        """The same for ids that follow from these; the user has heard of it already."""
        return Freeze(ids, self.reason, self.report if self.report <= Report.IF_READ else Report.IF_PRODUCED)


@dataclass(frozen=True, eq=False)
class Product:
    """``whole`` has one id per index of the row-major product of ``factors``."""

    whole: Ids
    factors: Dim
    where: str


@dataclass(frozen=True, eq=False)
class Fixed:
    """A factor of an ambiguous product that is fixed, as another is taken as the ``units``.

    ``of_heads``: one of the two is the number of heads of an attention, the other their size.
    """

    freeze: Freeze
    units: Ids
    of_heads: bool


@dataclass(frozen=True, eq=False)
class Solution:
    """What follows from the labels.

    ``component``: int (ids,), equal where ids live or die together; ``frozen``: component -> its freeze.
    """

    component: Ids
    frozen: dict[int, Freeze]

    def has(self, arrays: Iterable[Ids]) -> NDArray[np.bool_]:
        """Of each component, whether one of these arrays has ids of it."""
        found = np.zeros(len(self.component), dtype=bool)
        for ids in arrays:
            found[self.component[ids]] = True
        return found

    def freeze_of(self, ids: Ids) -> Freeze | None:
        """Why all of these ids are frozen; None if one of them is not."""
        freezes = [self.frozen.get(c) for c in self.component[ids].tolist()]
        return None if None in freezes else freezes[0]


def constant(size: int) -> Dim:
    """A dimension of a size that no variable changes; size 1 carries no factor at all."""
    return (int(size),) if size != 1 else ()


def constants(shape: Sequence[int]) -> Dims:
    """Constant dims for a whole shape."""
    return tuple(constant(size) for size in shape)


def size_of(factor: Factor) -> int:
    """The size of one factor."""
    return factor if isinstance(factor, int) else len(factor)


def size_of_dim(dim: Dim) -> int:
    """The size of a dimension: the product of its factors."""
    return math.prod(size_of(factor) for factor in dim)


def ids_in(dim: Iterable[Factor]) -> list[Ids]:
    """The id arrays among the factors."""
    return [factor for factor in dim if not isinstance(factor, int)]


@dataclass
class Labels:
    """Everything the trace learns about unit ids.  ``where`` names the op at work, for the reasons."""

    count: int = 0
    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    freezes: list[Freeze] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    cuts: list[Ids] = field(default_factory=list)  # parts that were taken by position: never one variable
    summed: list[Ids] = field(default_factory=list)  # where queries meet keys: the size of a head
    where: str = "the trace"
    choices: list[int] = field(default_factory=list)  # which factor of each ambiguous product has the units
    given: Iterator[int] = field(
        default_factory=lambda: iter(())
    )  # those of the same network at other widths
    _fixed: list[Fixed] | None = None
    _merged: dict[tuple[int, ...], Ids] = field(default_factory=dict)
    _split: dict[tuple[int, int], tuple[Ids, Ids]] = field(default_factory=dict)

    def new(self, size: int) -> Ids:
        """Fresh ids for a dimension of this size."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def tie(self, a: Ids, b: Ids) -> None:
        """Units of ``a`` and ``b`` (same length) live or die together, index by index."""
        if a is not b:
            self.ties.append((a, b))

    def freeze(self, dim: Iterable[Factor], reason: str, report: Report = Report.ALWAYS) -> None:
        """No unit of these factors may be searched."""
        self.freezes += [Freeze(ids, reason, report) for ids in ids_in(dim)]

    def concatenate(self, factors: Iterable[Factor]) -> Ids:
        """Factors side by side; constants among them get fresh frozen ids."""
        parts = []
        for factor in factors:
            ids = self.new(factor) if isinstance(factor, int) else factor
            if ids is not factor:
                self.freeze((ids,), f"{self.where}: beside a constant size ({factor})", Report.IF_READ)
            parts.append(ids)
        return np.concatenate(parts)

    def flat(self, dim: Dim) -> Factor:
        """The dimension as a single factor; a product of several gets ids of its own."""
        if not ids_in(dim):
            return size_of_dim(dim)
        if len(dim) == 1:
            return dim[0]
        # Negative keys are constants; the product keeps the arrays alive, so that their id() stays theirs.
        key = tuple(-factor if isinstance(factor, int) else id(factor) for factor in dim)
        if key not in self._merged:
            self._merged[key] = self.new(size_of_dim(dim))
            self.products.append(Product(self._merged[key], dim, self.where))
        return self._merged[key]

    def split(self, factor: Factor, first: int) -> tuple[Factor, Factor]:
        """One factor as the product of one of size ``first`` and the rest."""
        if isinstance(factor, int):
            return first, factor // first
        key = (id(factor), first)
        if key not in self._split:
            self._split[key] = self.new(first), self.new(len(factor) // first)
            self.products.append(Product(factor, self._split[key], self.where))
        return self._split[key]

    def is_split(self, dim: Dim) -> bool:
        """Whether this dimension has a factor that another size was split into."""
        parts = {id(part) for pair in self._split.values() for part in pair}
        return any(id(ids) in parts for ids in ids_in(dim))

    def unify(self, a: Dim, b: Dim, constant_report: Report = Report.IF_PRODUCED) -> Dim:
        """Two dimensions of equal size index the same units; returns the one to go on with (``a`` if it can).

        Where one of them is constant the other is frozen, and the user told according to ``constant_report``.
        """
        pairs, left, right = _matched(a, b)
        if left or right:  # what is between equal factors at both ends
            pairs.append((self.flat(left), self.flat(right)))
        for f, g in pairs:
            if isinstance(f, int) or isinstance(g, int):
                reason = f"{self.where}: tied to a constant size ({size_of(f)})"
                self.freeze((f, g), reason, constant_report)
            else:
                self.tie(f, g)
        return a if ids_in(a) else b

    def reshape(self, dims: Dims, shape: Sequence[int]) -> Dims | None:
        """The dims after a view to ``shape``: factors regrouped, split where needed; None if that fails."""
        if 0 in shape:
            return constants(shape)
        queue = [factor for dim in reversed(dims) for factor in reversed(dim)]
        result = []
        for size in shape:
            dim: list[Factor] = []
            while (need := size // math.prod(size_of(f) for f in dim)) > 1:
                if not queue:
                    return None
                factor = queue.pop()
                common = math.gcd(size_of(factor), need)
                if common == 1:
                    return None
                if common == size_of(factor):
                    dim.append(factor)
                    continue
                first, rest = self.split(factor, common)
                dim.append(first)
                queue.append(rest)
            result.append(tuple(dim))
        return tuple(result) if not queue else None

    def solve(self, extra: Iterable[Freeze] = (), ties: Iterable[tuple[Ids, Ids]] = ()) -> Solution:
        """What lives or dies together and what is frozen, with ``extra`` freezes and ties; changes no label.

        A product with one free factor ties every index to the unit it belongs to.  With two (heads x head
        size, 2 x 58 in a channel shuffle) heads come before the size that is summed over where queries meet
        keys, then what the whole is tied to already, then what is the only free factor of another product,
        then the largest; the others are fixed.  Whether the model really resizes like that, verification
        finds out; if it freezes the heads, their size is free, and the other way round.
        """
        if self._fixed is None:  # decided once
            self._fixed = []
            self._solve([*self.freezes], [*self.ties], self._fixed)
        freezes = [*self.freezes]
        swapped: set[int] = set()
        for freeze in extra:
            taken = [f for f in self._fixed if np.isin(f.units, freeze.ids).all()]
            if any(f.of_heads for f in taken):
                swapped.update(map(id, taken))
                freezes += [Freeze(f.units, freeze.reason, Report.IF_READ) for f in taken]
            else:
                freezes.append(freeze)
        freezes += [f.freeze for f in self._fixed if id(f) not in swapped]
        return self._solve(freezes, [*self.ties, *ties], [])

    def _solve(self, freezes: list[Freeze], ties: list[tuple[Ids, Ids]], decided: list[Fixed]) -> Solution:
        pending = list(self.products)
        settled: list[Ids] = []  # the only free factors of products
        while True:
            solution = self._components(ties, freezes)
            left = [p for p in pending if not _settle(p, solution, ties, freezes, settled)]
            if len(left) == len(pending):
                if not left:
                    return solution
                first = decided is self._fixed
                given = next(self.given, None) if first else None
                chosen, new = _all_but_one(left, solution, settled, self.summed, given)
                self.choices.extend([chosen] if first else [])
                decided.extend(new)
                freezes.extend(f.freeze for f in new)
            pending = left

    def _components(self, ties: list[tuple[Ids, Ids]], freezes: list[Freeze]) -> Solution:
        empty = np.zeros(0, dtype=np.int64)
        rows = np.concatenate([empty, *(a for a, _ in ties)])
        columns = np.concatenate([empty, *(b for _, b in ties)])
        graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(self.count, self.count))
        component = connected_components(graph, directed=False)[1].astype(np.int64)
        ordered = sorted(freezes, key=lambda freeze: freeze.report)  # stable: the first of the lowest counts
        # Per component its freeze; of several the first, which is written last.
        by = np.full(self.count, -1, dtype=np.int64)
        last_first = range(len(ordered) - 1, -1, -1)
        frozen_ids = np.concatenate([empty, *(ordered[i].ids for i in last_first)])
        sizes = np.array([len(ordered[i].ids) for i in last_first], dtype=np.int64)
        by[component[frozen_ids]] = np.repeat(np.arange(len(ordered))[::-1], sizes)
        components = np.flatnonzero(by >= 0)
        frozen = {c: ordered[i] for c, i in zip(components.tolist(), by[components].tolist(), strict=True)}
        return Solution(component, frozen)


def _matched(a: Dim, b: Dim) -> tuple[list[tuple[Factor, Factor]], Dim, Dim]:
    """Factors of equal size at both ends index the same; also what is left of both in the middle."""
    pairs: list[tuple[Factor, Factor]] = []
    for end in (0, -1):
        while a and b and size_of(a[end]) == size_of(b[end]):
            pairs.append((a[end], b[end]))
            a, b = (a[1:], b[1:]) if end == 0 else (a[:-1], b[:-1])
    return pairs, a, b


def _all_but_one(
    products: Sequence[Product],
    solution: Solution,
    settled: Sequence[Ids],
    summed: Sequence[Ids],
    given: int | None,
) -> tuple[int, list[Fixed]]:
    """Fix all free factors but one of an ambiguous product, the clearest: see :meth:`Labels.solve`.

    That one is the factor of this number, if ``given``.
    """
    elsewhere, sizes_of_heads = solution.has(settled), solution.has(summed)

    def wishes(product: Product) -> dict[int, tuple[bool, bool, bool, int]]:
        """What speaks for each free factor, by its place."""
        found = {}
        for k, ids in enumerate(product.factors):
            if not isinstance(ids, int) and solution.freeze_of(ids) is None:
                one = solution.component[ids[0]]
                follows = _follows(product, k, solution)
                found[k] = not sizes_of_heads[one], follows, bool(elsewhere[one]), len(ids)
        return found

    def clarity(product: Product) -> tuple[bool, bool, bool]:
        no_size, follows, is_elsewhere, _ = zip(*wishes(product).values(), strict=True)
        return not all(no_size), any(follows), any(is_elsewhere)

    product = max(products, key=clarity)
    wished = wishes(product)
    chosen = given if given in wished else max(wished, key=wished.__getitem__)
    free = {k: ids for k, ids in enumerate(product.factors) if k in wished and not isinstance(ids, int)}
    units = free.pop(chosen)
    sizes = " x ".join(str(size_of(f)) for f in product.factors)
    reason = f"{product.where}: a size read as {sizes}, of which the {len(units)} are taken as the units"
    of_heads = not all(wish[0] for wish in wished.values())
    return chosen, [Fixed(Freeze(ids, reason, Report.IF_READ), units, of_heads) for ids in free.values()]


def _follows(product: Product, place: int, solution: Solution) -> bool:
    """Whether the whole is known to be the units of the factor at this place, the same along all others."""
    whole = solution.component[product.whole].reshape([size_of(f) for f in product.factors])
    along = np.moveaxis(whole, place, -1).reshape(-1, whole.shape[place])
    return len(along) > 1 and bool((along == along[0]).all()) and len(np.unique(along[0])) == along.shape[1]


def _settle(
    product: Product,
    solution: Solution,
    ties: list[tuple[Ids, Ids]],
    freezes: list[Freeze],
    settled: list[Ids],
) -> bool:
    """Draw the conclusion from one product, if there is one yet; True if so."""
    free = []
    frozen = None
    for k, factor in enumerate(product.factors):
        if not isinstance(factor, int):
            freeze = solution.freeze_of(factor)
            if freeze is None:
                free.append((k, factor))
            elif frozen is None or frozen.report <= Report.IF_READ:  # one of which the user hears comes first
                frozen = freeze
    if len(free) == 1:
        k, unit = free[0]
        before = math.prod(size_of(f) for f in product.factors[:k])
        after = len(product.whole) // (before * len(unit))
        ties.append((product.whole, np.tile(np.repeat(unit, after), before)))
        settled.append(unit)
        return True
    whole = solution.freeze_of(product.whole)
    if not free and frozen is not None:
        if whole is None:
            freezes.append(frozen.onto(product.whole))
    elif whole is not None:
        freezes.extend(whole.onto(factor) for _, factor in free)
    else:
        return False
    return True

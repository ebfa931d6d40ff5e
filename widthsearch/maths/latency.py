"""A latency that the search can count: a polynomial of the widths, fitted to measured networks.

    seconds(widths) = overhead + sum over layer shapes k of (a_k MACs_k + b_k written_k)

MACs_k and written_k (elements that operations write) are the products of sizes that the trace has found, all
layers of one shape together, and no coefficient is negative: a wider network never counts as faster.  Like
MACs it takes microseconds and has a gradient.  It is smooth where hardware has steps (a vector holds 16
channels), so how far it is off is measured, on networks that had no part in the fit, and kept with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widthsearch.errors import UsageError
from widthsearch.maths.cost import Cost, Polynomial

Array = NDArray[np.float64]

#: No layer counts as cheaper than this share of what its MACs and writes cost at the network's mean rates:
#: a layer whose cost drowns in noise would be free, and the search would make it wider without end.
LEAST_RATE = 0.1


@dataclass(frozen=True)
class Fitted:
    """How a latency model was measured, and how far it is off on networks that it was not fitted to.

    ``fitted``, ``held_out``: numbers of networks; errors: relative, median and largest over those held out;
    ``seed``: the seed network's measured latency in seconds.
    """

    batch: int
    threads: int
    device: str
    machine: str
    fitted: int
    held_out: int
    median_error: float
    largest_error: float
    seed: float

    def __str__(self) -> str:
        """One line for people."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return (
            f"latency: batch {self.batch} on {self.device} with {threads} ({self.machine}), by a model "
            f"fitted to {self.fitted} measured networks; on {self.held_out} others it is off by "
            f"{self.median_error:.1%} (median), at most {self.largest_error:.1%}"
        )

    @classmethod
    def of(cls, facts: Mapping[str, Any] | None) -> Fitted | None:
        """Read back from a plan."""
        return None if facts is None else cls(**facts)


def fit(shapes: Cost, widths: Array, seconds: Array) -> Cost:
    """The cost with a ``latency`` in place of ``written``: non-negative least squares on relative errors.

    ``shapes``: a cost whose resources include ``macs`` and ``written``; ``widths``: (N, V), in the order of
    its variables; ``seconds``: (N,).  First the network's mean rates, then each layer shape's own, none below
    :data:`LEAST_RATE` of the mean.  Raises :class:`UsageError` if no rate can be told from the overhead.
    """
    macs, written = (shapes.polynomials[r] for r in ("macs", "written"))
    counts = shapes.many(widths)
    one = np.ones(len(seconds))
    rates = _non_negative(np.stack([one, counts["macs"], counts["written"]], axis=1), seconds)[1:]
    if not rates.any():
        raise UsageError(
            "budget latency: the measured latency does not grow with the widths, calling the operations "
            "takes all of it; give a larger batch (latency=0.5x,batch=64), or a budget of macs or params"
        )
    products = _products(macs, written)
    least = Polynomial(
        LEAST_RATE * np.array(list(products.values())) @ rates,
        np.array(list(products), dtype=np.int64),
    )
    size = widths @ shapes.multiplicity.T + shapes.constant
    columns = size[:, least.factors].prod(axis=2)  # (N, T)
    extra = _non_negative(np.column_stack([one, columns]), seconds, least=columns @ least.coefficients)
    overhead = np.zeros((1, least.factors.shape[1]), dtype=np.int64)
    latency = Polynomial(
        np.concatenate([extra[:1], least.coefficients + extra[1:]]), np.concatenate([overhead, least.factors])
    )
    counted = {r: p for r, p in shapes.polynomials.items() if r != "written"}
    return replace(shapes, polynomials={**counted, "latency": latency})


def _products(macs: Polynomial, written: Polynomial) -> dict[tuple[int, ...], tuple[float, float]]:
    """Every product of sizes that depends on widths -> its share of the MACs, and of the elements written."""
    longest = max(macs.factors.shape[1], written.factors.shape[1])
    shares: dict[tuple[int, ...], tuple[float, float]] = {}
    for i, polynomial in enumerate((macs, written)):
        for coefficient, factors in zip(polynomial.coefficients, polynomial.factors.tolist(), strict=True):
            key = (*sorted(f for f in factors if f), *[0] * (longest - np.count_nonzero(factors)))
            if any(key):
                both = shares.get(key, (0.0, 0.0))
                shares[key] = (both[0] + coefficient, both[1]) if i == 0 else (both[0], both[1] + coefficient)
    return shares


def _non_negative(columns: Array, seconds: Array, least: Array | float = 0.0) -> Array:
    """x >= 0 that minimises the relative errors of ``least + columns @ x``."""
    from scipy.optimize import nnls  # here: `widthsearch show` should start fast

    scale = columns.max(axis=0)
    rates: Array = nnls(columns / scale / seconds[:, None], 1 - least / seconds)[0] / scale
    return rates


def relative_errors(cost: Cost, widths: Array, seconds: Array) -> Array:
    """|model / measured - 1| for each of N networks; ``widths``: (N, V), ``seconds``: (N,)."""
    errors: Array = np.abs(cost.many(widths)["latency"] / seconds - 1)
    return errors

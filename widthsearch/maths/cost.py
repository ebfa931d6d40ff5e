"""The exact cost of any widths: a polynomial, so it takes microseconds and needs no model.

Every size in a network is a linear form of the widths, ``sum(multiplicity * width) + constant`` (a
flattened 7x7 map has 49 inputs per channel), and every parameter count or multiply-accumulate count is
a sum of products of such sizes.  The trace writes the polynomial down once; from then on nothing here
needs torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNTED = ("macs", "params")
RESOURCES = (*COUNTED, "latency")


def shown(resource: str, amount: float, *, called: str = "") -> str:
    """An amount as people read it: ``65,504 macs``, ``1.25 ms latency``; ``called``: the resource's name."""
    return f"{f'{amount:,}' if resource in COUNTED else f'{1e3 * amount:.4g} ms'} {called or resource}"


@dataclass(frozen=True, eq=False)
class Polynomial:
    """``sum over terms t of coefficients[t] * product over k of form[factors[t, k]]``.

    ``coefficients``: float (T,); ``factors``: int (T, K), indices of forms.  Form 0 is the constant 1 and
    pads the shorter products.
    """

    coefficients: NDArray[np.float64]
    factors: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cost:
    """MACs (one forward pass, one sample) and parameters as functions of the widths.

    A ``latency`` in seconds is a third resource where one was fitted (see :mod:`.latency`).

    ``multiplicity``: int (F, V) and ``constant``: int (F,) are the linear forms, over the V ``variables``.
    """

    variables: tuple[str, ...]
    multiplicity: NDArray[np.float64]
    constant: NDArray[np.float64]
    polynomials: Mapping[str, Polynomial]

    def __call__(self, widths: Mapping[str, float]) -> dict[str, float]:
        """The cost at ``widths`` per resource; whole numbers where the widths are whole."""
        return self.values(np.array([widths[v] for v in self.variables], dtype=np.float64))

    def products(self, resource: str) -> set[tuple[str, str]]:
        """The pairs of variables of which a product is part of the cost, in both orders."""
        found: set[tuple[str, str]] = set()
        for factors in self.polynomials[resource].factors:
            sizes = [
                [v for v, m in zip(self.variables, self.multiplicity[f], strict=True) if m] for f in factors
            ]
            found |= {(v, w) for a, b in permutations(sizes, 2) for v in a for w in b}
        return found

    def values(self, widths: NDArray[np.float64]) -> dict[str, float]:
        """The cost at real ``widths`` (V,), in the order of ``variables``."""
        size = self.sizes(widths)
        return {
            resource: float((p.coefficients * size[p.factors].prod(axis=1)).sum())
            for resource, p in self.polynomials.items()
        }

    def sizes(self, widths: NDArray[np.float64]) -> NDArray[np.float64]:
        """The linear forms (F,) at real ``widths`` (V,)."""
        size: NDArray[np.float64] = self.multiplicity @ widths + self.constant
        return size

    def many(self, widths: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The costs (N,) of N candidates at once; ``widths``: (N, V), in the order of ``variables``."""
        size = widths @ self.multiplicity.T + self.constant  # (N, F)
        return {
            resource: size[:, p.factors].prod(axis=2) @ p.coefficients
            for resource, p in self.polynomials.items()
        }

    def gradient(self, resource: str, widths: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Value and gradient of one resource at real ``widths`` (V,), in the order of ``variables``."""
        p, size = self.polynomials[resource], self.sizes(widths)
        factors = size[p.factors]  # (T, K)
        by_size = np.zeros_like(size)  # d value / d size
        for k in range(factors.shape[1]):
            rest = p.coefficients * np.delete(factors, k, axis=1).prod(axis=1)
            np.add.at(by_size, p.factors[:, k], rest)
        return float((p.coefficients * factors.prod(axis=1)).sum()), by_size @ self.multiplicity

    def at(self, widths: Mapping[str, int]) -> dict[str, float]:
        """The cost at whole widths: whole numbers of what is counted, seconds of latency."""
        return {r: value if r == "latency" else round(value) for r, value in self(widths).items()}

    def overhead(self, resource: str) -> float:
        """Of a latency, the seconds that no width changes; 0 for what is counted.

        Where "four times the budget" is meant to be a wider network it does not count: calling the operations
        of a small one takes nearly all of its time.
        """
        if resource in COUNTED:
            return 0.0
        p = self.polynomials[resource]
        return float(p.coefficients[(p.factors == 0).all(axis=1)].sum())

    def share(self, resource: str, widths: Mapping[str, int], variables: Collection[str]) -> float:
        """The share of a resource that involves at least one of these variables: 0 to 1.

        The shares of single variables add up to more than 1: a weight has two sides.
        """
        p = self.polynomials[resource]
        size = self.sizes(np.array([widths[v] for v in self.variables], dtype=np.float64))
        terms = p.coefficients * size[p.factors].prod(axis=1)  # (T,)
        asked = np.array([v in variables for v in self.variables], dtype=bool)
        involved = (self.multiplicity[:, asked] != 0).any(axis=1)[p.factors].any(axis=1)
        return float(terms[involved].sum() / max(terms.sum(), 1.0))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, small enough for a study attribute."""
        return {
            "variables": list(self.variables),
            "multiplicity": self.multiplicity.tolist(),
            "constant": self.constant.tolist(),
            "polynomials": {
                r: {"coefficients": p.coefficients.tolist(), "factors": p.factors.tolist()}
                for r, p in self.polynomials.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cost:
        """The inverse of :meth:`to_json`."""
        v = len(data["variables"])
        return cls(
            variables=tuple(data["variables"]),
            multiplicity=np.array(data["multiplicity"], dtype=np.float64).reshape(-1, v),
            constant=np.array(data["constant"], dtype=np.float64),
            polynomials={
                r: Polynomial(
                    np.array(p["coefficients"], dtype=np.float64), np.array(p["factors"], dtype=np.int64)
                )
                for r, p in data["polynomials"].items()
            },
        )

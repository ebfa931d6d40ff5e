"""Several comparisons at once: p-values that hold for all of them together (Holm, 1979)."""

from __future__ import annotations

from collections.abc import Sequence

#: What is called significant: the chance that anything at all is, where there is no difference anywhere.
LEVEL = 0.05


def holm(p: Sequence[float]) -> list[float]:
    """The adjusted p-values, in the same order.

    The smallest of n is multiplied by n, the next by n - 1, and so on, none comes out smaller than the one
    before it, and none above 1.  This holds however the comparisons depend on each other, as those with one
    reference do.
    """
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted

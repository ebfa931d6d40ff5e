"""A race between networks: they are trained seed by seed, and one that is hopeless leaves.

Student's test on paired differences at every seed, as F-Race has it (Birattari et al., 2002).  Symbols:

    d_ck       loss of network c minus the leader's, both trained from seed k
    n_c        seeds of network c so far
    s2         variance of a difference, pooled: sum over c and k of (d_ck - mean over k of d_ck)^2 / df
    df         sum over c of (n_c - 1)

Network c is hopeless if the mean of its d_ck is above t * sqrt(s2 / n_c); t is the 95 % quantile of
Student's distribution with df degrees of freedom: one as good as the leader leaves at one look in twenty.
The pooled variance can tell after a network's first seed.  One whose training fails on some seeds makes it
large, so that the others stay for longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

#: One-sided, at each look.
LEVEL = 0.05

Losses = Mapping[int, float]  # seed -> validation loss


def differences(losses: Losses, leader: Losses) -> list[float]:
    """Loss minus the leader's, on the seeds that both have."""
    return [losses[k] - leader[k] for k in sorted(losses.keys() & leader.keys())]


def hopeless(of: Sequence[Sequence[float]]) -> list[bool]:
    """Of each network, by its differences from the leader (none for the leader itself), whether it leaves."""
    means = [sum(values) / len(values) if values else 0.0 for values in of]
    df = sum(len(values) - 1 for values in of if values)
    if df == 0:
        return [False] * len(of)
    variance = sum((d - mean) ** 2 for values, mean in zip(of, means, strict=True) for d in values) / df
    from scipy.special import stdtrit  # imported here: `widthsearch show` should start fast

    t = float(stdtrit(df, 1 - LEVEL))
    return [
        bool(values) and mean > t * math.sqrt(variance / len(values))
        for values, mean in zip(of, means, strict=True)
    ]

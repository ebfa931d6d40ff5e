"""Means with their uncertainty: over seeds, over paired seeds, and over repeated searches times seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Stats(TypedDict):
    """A mean over seeds, with its standard error: ``None`` for a single one."""

    mean: float
    se: float | None
    median: float
    n: int


class Gain(TypedDict):
    """A mean of differences, with its 95 % interval."""

    mean: float
    ci95: list[float]
    median: float
    n: int


class StatsOfRepeats(Stats):
    """A mean over repeats of a search and seeds."""

    repeats: int


class Crossed(StatsOfRepeats):
    """The same with its 95 % interval, and the two-sided p-value of the mean being 0."""

    ci95: list[float]
    p: float


def mean_se(values: Sequence[float]) -> Stats | None:
    """Mean, standard error, median and n; ``None`` without values, ``se`` null for a single one."""
    if not values:
        return None
    n = len(values)
    se = float(np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"mean": float(np.mean(values)), "se": se, "median": float(median(values)), "n": n}


def paired_gain(baseline: Mapping[int, float], candidate: Mapping[int, float]) -> Gain | None:
    """Mean of baseline loss minus candidate loss over the seeds both have, with Student's 95 % interval.

    ``None`` for fewer than two pairs.
    """
    pairs = sorted(baseline.keys() & candidate.keys())
    differences = np.array([baseline[k] - candidate[k] for k in pairs])
    if len(differences) < 2:
        return None
    of = crossed(differences[None, :])
    return {"mean": of["mean"], "ci95": of["ci95"], "median": of["median"], "n": of["n"]}


def crossed(values: NDArray[np.float64]) -> Crossed:
    """Mean over repeats of a search and seeds of its trainings, shape (K, S), with interval and p-value.

    Both are random: another search finds other widths, another seed trains them differently, and the S seeds
    are the same in all K repeats.  So the variance of the mean is that of a two-way layout with random
    effects, ``(MS_repeats + MS_seeds - MS_rest) / (K S)``, never taken smaller than with either effect alone;
    degrees of freedom by Satterthwaite (1946).  With one repeat this is Student's interval over the seeds.
    """
    k, s = values.shape
    mean = float(values.mean())
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    by_repeat = s * float(rows.var(ddof=1)) if k > 1 else 0.0
    by_seed = k * float(columns.var(ddof=1)) if s > 1 else 0.0
    rest = 0.0
    if k > 1 and s > 1:
        left = values - rows[:, None] - columns[None, :] + mean
        rest = float((left**2).sum() / ((k - 1) * (s - 1)))
    total = max(by_repeat + by_seed - rest, by_repeat, by_seed)
    parts = [(by_repeat, k - 1), (by_seed, s - 1), (rest, (k - 1) * (s - 1))]
    spread = sum(part**2 / df for part, df in parts if df > 0)
    se = (total / (k * s)) ** 0.5
    half, p = 0.0, float(mean == 0)
    if se > 0:
        from scipy.special import stdtr, stdtrit  # imported here: `widthsearch --help` should start fast

        df = min(max(total**2 / spread, 1.0), k * s - 1.0)
        half = float(stdtrit(df, 0.975)) * se
        p = 2 * float(stdtr(df, -abs(mean) / se))
    middle = float(np.median(values))
    return {
        "mean": mean,
        "se": se,
        "ci95": [mean - half, mean + half],
        "p": p,
        "median": middle,
        "n": s,
        "repeats": k,
    }

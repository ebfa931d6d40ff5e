"""Holm's method: many comparisons, one chance of a false alarm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from widthsearch.maths.holm import LEVEL, holm

P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def test_the_example_of_the_textbooks():
    # .005 * 4, .01 * 3, .03 * 2; .04 * 1 would be below the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.3, 0.9]) == [0.6, 0.9]
    assert holm([0.8, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(P_VALUES)
def test_never_below_raw_nor_above_bonferroni_and_in_the_same_order(p):
    adjusted = holm(p)
    for i, (own, raw) in enumerate(zip(adjusted, p, strict=True)):
        assert raw <= own <= min(1.0, len(p) * raw)
        assert all(own <= adjusted[j] for j, other in enumerate(p) if raw <= other and i != j)


@given(P_VALUES, st.randoms())
def test_the_order_in_which_they_are_given_does_not_matter(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    adjusted = holm(p)
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]


@given(P_VALUES.filter(bool), st.floats(0, 1))
def test_it_rejects_what_the_steps_from_the_smallest_on_reject(p, level):
    rejected = 0
    for rank, value in enumerate(sorted(p)):
        if (len(p) - rank) * value >= level:
            break
        rejected += 1
    assert sum(value < level for value in holm(p)) == rejected


@given(P_VALUES, st.floats(0, 1))
def test_another_comparison_makes_no_other_more_significant(p, more):
    with_it = holm([*p, more])[:-1]
    assert all(one <= other for one, other in zip(holm(p), with_it, strict=True))


def test_without_any_difference_one_is_called_significant_at_most_as_often_as_it_says():
    """However they depend on each other: here all share one reference."""
    n, found = 4000, np.random.default_rng(0).normal(0, 1, (4000, 9))
    p = 2 * stats.norm.sf(np.abs(found[:, 1:] - found[:, :1]) / 2**0.5)
    alarms = sum(min(holm(list(of))) < LEVEL for of in p)
    assert alarms / n < LEVEL + 3 * (LEVEL * (1 - LEVEL) / n) ** 0.5

"""The rule's mathematics, on random networks, budgets and prune ratios."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from widthsearch.maths import rule
from widthsearch.maths.rule import BudgetTooSmallError, Constraints

NAMES = [f"layer{i}" for i in range(8)]


def chain_cost(widths):
    """A chain of linear layers with biases, 10 inputs and 5 outputs: MACs are its weights."""
    sizes = [10, *widths.values(), 5]
    macs = sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))
    return {"macs": macs, "params": macs + sum(sizes[1:])}


variable_counts = st.integers(2, 8)
ratios = st.floats(0.0, 0.98)


@st.composite
def networks(draw):
    names = NAMES[: draw(variable_counts)]
    return {v: draw(st.integers(2, 300)) for v in names}


@st.composite
def problems(draw):
    """Relative widths and constraints that the minimum satisfies."""
    widths = draw(networks())
    minimum = {v: draw(st.integers(1, 9)) for v in widths}
    step = {v: draw(st.sampled_from([1, 1, 2, 4, 8])) for v in widths}
    free = Constraints(chain_cost, {}, minimum, step)
    least = chain_cost(free.smallest())
    factor = draw(st.floats(1.0, 400.0))
    resources = draw(st.sampled_from([["macs"], ["params"], ["macs", "params"]]))
    budget = {r: least[r] * factor for r in resources}
    relative = {v: draw(st.floats(1e-3, 1e3)) for v in widths}
    return relative, Constraints(chain_cost, budget, minimum, step)


@given(problems())
def test_scaled_widths_obey_budget_minimum_and_step(problem):
    relative, constraints = problem
    widths = rule.scale_to_budget(relative, constraints)
    assert constraints.allow(widths)
    for v, w in widths.items():
        assert isinstance(w, int)
        assert w >= constraints.minimum[v]
        assert w % constraints.multiple_of[v] == 0


@given(problems())
def test_scaled_widths_leave_no_room_for_a_uniformly_wider_network(problem):
    """Growing every variable by one step would break the budget."""
    relative, constraints = problem
    widths = rule.scale_to_budget(relative, constraints)
    wider = {v: w + constraints.multiple_of[v] for v, w in widths.items()}
    assert not constraints.allow(wider)


@given(networks(), st.floats(0.01, 30.0))
def test_scaling_keeps_proportions_up_to_one_unit(widths, factor):
    cost = chain_cost(widths)
    constraints = Constraints(
        chain_cost,
        {"macs": factor * cost["macs"], "params": factor * cost["params"]},
        dict.fromkeys(widths, 1),
        dict.fromkeys(widths, 1),
    )
    assume(constraints.allow(constraints.smallest()))
    scaled = rule.scale_to_budget(widths, constraints)
    # Some multiplier m has every width above the minimum within one unit of m * relative.
    low = max(((w - 1) / widths[v] for v, w in scaled.items() if w > 1), default=0.0)
    high = min((w + 1) / widths[v] for v, w in scaled.items())
    assert low <= high * (1 + 1e-6)


def test_widths_at_the_budget_are_a_fixed_point_of_scaling():
    widths = {"a": 4, "b": 8, "c": 16}
    constraints = Constraints(
        chain_cost, chain_cost(widths), dict.fromkeys(widths, 1), dict.fromkeys(widths, 1)
    )
    assert rule.scale_to_budget(widths, constraints) == widths


def test_a_budget_below_the_minimum_is_refused():
    widths = {"a": 4, "b": 8}
    constraints = Constraints(chain_cost, {"macs": 50}, dict.fromkeys(widths, 8), dict.fromkeys(widths, 1))
    with pytest.raises(BudgetTooSmallError):
        rule.scale_to_budget(widths, constraints)


@given(networks(), st.data(), st.floats(0, 1))
def test_a_step_is_bounded(widths, data, damping):
    p = {v: data.draw(ratios) for v in widths}
    new = rule.grow_shrink(widths, p, damping=damping, max_step=3.0)
    for v, w in widths.items():
        assert w / 3 * (1 - 1e-9) <= new[v] <= w * 3 * (1 + 1e-9)


@given(networks(), ratios, st.floats(0, 1))
def test_equal_ratios_are_a_fixed_point(widths, ratio, damping):
    new = rule.grow_shrink(widths, dict.fromkeys(widths, ratio), damping=damping)
    assert new == pytest.approx(widths)


@given(networks(), st.data())
def test_a_layer_that_prunes_more_gets_no_more(widths, data):
    """Monotone: raising one layer's ratio lowers its width and raises no other layer's share of it."""
    p = {v: data.draw(ratios) for v in widths}
    v = data.draw(st.sampled_from(list(widths)))
    higher = {**p, v: data.draw(st.floats(p[v], 0.99))}
    before, after = rule.grow_shrink(widths, p), rule.grow_shrink(widths, higher)
    assert after[v] <= before[v] * (1 + 1e-9)
    for other in widths:
        if other != v:
            assert after[other] >= before[other] * (1 - 1e-9)


@given(networks(), st.data())
def test_a_full_step_goes_to_the_kept_widths(widths, data):
    p = {v: data.draw(st.floats(0.2, 0.8)) for v in widths}
    new = rule.grow_shrink(widths, p, damping=1.0, max_step=1e6)
    scale = [new[v] / (widths[v] * (1 - p[v])) for v in widths]
    assert scale == pytest.approx([scale[0]] * len(scale))


@given(networks(), st.data(), st.floats(0.01, 2), st.integers(1, 3))
def test_a_proposal_is_as_far_as_it_is_said_to_be_in_the_direction_of_the_rule(widths, data, step, replicas):
    kept = {v: data.draw(st.floats(0.3, 0.7)) for v in widths}
    p = [{v: 1 - k * data.draw(st.floats(0.95, 1.05)) for v, k in kept.items()} for _ in range(replicas)]
    new = rule.proposal(widths, p, step)
    moved = np.log([new[v] / widths[v] for v in widths])
    full = np.log([rule.grow_shrink(widths, rule.merge(p))[v] / widths[v] for v in widths])
    distance = step * rule.damping(p)
    if rule.length(rule.merge(p)) < 1e-9:
        assert moved == pytest.approx(0)
    elif np.abs(full).max() * distance / full.std() < np.log(rule.MAX_STEP):  # nothing is cut off
        assert moved.std() == pytest.approx(distance, abs=1e-7)
        assert moved == pytest.approx(full * distance / full.std(), abs=1e-7)
    assert np.abs(moved).max() <= np.log(rule.MAX_STEP) + 1e-9


@given(networks(), ratios, st.floats(0.01, 2), st.integers(1, 4))
def test_where_all_prune_by_the_same_share_there_is_no_direction(widths, ratio, step, replicas):
    assert rule.proposal(widths, replicas * [dict.fromkeys(widths, ratio)], step) == pytest.approx(widths)


def test_replicas_merge_by_the_geometric_mean_of_what_they_kept():
    merged = rule.merge([{"a": 0.5, "b": 0.0}, {"a": 0.875, "b": 0.75}])
    assert merged == pytest.approx({"a": 1 - math.sqrt(0.5 * 0.125), "b": 0.5})


def test_damping_tells_noise_from_difference():
    clear = [{"a": 0.2 + e, "b": 0.8 - e, "c": 0.5 + e} for e in (0.0, 0.01, -0.01)]
    assert rule.damping(clear) > 0.99
    noise = [{"a": 0.2, "b": 0.8}, {"a": 0.8, "b": 0.2}]
    assert rule.damping(noise) == 0.0
    assert rule.damping(clear[:1]) == 1.0  # one replica says nothing of the noise


def test_spread_is_the_standard_deviation_of_replica_means():
    p = [{"a": 0.2, "b": 0.4}, {"a": 0.4, "b": 0.8}]
    assert rule.spread(p) == pytest.approx(np.std([0.3, 0.6], ddof=1))
    assert rule.standard_error(p) == pytest.approx({"a": 0.1, "b": 0.2})
    assert rule.standard_error(p[:1]) is None


def test_balanced_rejects_at_its_level_and_not_more_often():
    """Under equal true ratios the test says "not balanced" about 5 times in 100; under unequal ones always."""
    rng = np.random.default_rng(0)

    def measure(means):
        return [{f"l{i}": m + rng.normal(0, 0.05) for i, m in enumerate(means)} for _ in range(4)]

    equal = sum(rule.balanced(measure([0.5] * 7), tolerance=0.0) for _ in range(400)) / 400
    assert 0.92 <= equal <= 0.98
    assert not any(rule.balanced(measure([0.2, 0.3, 0.5, 0.5, 0.6, 0.8, 0.4])) for _ in range(50))


def test_balanced_within_tolerance_whatever_the_noise():
    assert rule.balanced([{"a": 0.50, "b": 0.51}], tolerance=0.02)
    assert not rule.balanced([{"a": 0.3, "b": 0.7}], tolerance=0.02)  # one replica, clearly apart


@given(problems())
def test_largest_width_is_the_last_that_fits(problem):
    _, constraints = problem
    smallest = constraints.smallest()
    for v, width in rule.largest_widths(constraints).items():
        assert constraints.allow({**smallest, v: width})
        assert not constraints.allow({**smallest, v: width + 1})

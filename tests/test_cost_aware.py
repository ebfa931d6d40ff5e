"""Cost-aware widths: the one solution of a convex problem, and what follows from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import dear
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, ResNet, images
from scipy.optimize import minimize
from test_plan import COST, PLAN
from torch import nn

from widthsearch.maths.cost import Cost, Polynomial
from widthsearch.maths.cost_aware import LEAST_SHARE, cost_aware
from widthsearch.maths.rule import BudgetTooSmallError, Constraints
from widthsearch.space import trace


def chain(positions: list[float]) -> Cost:
    """Convolutions of three samples one after the other, 1 -> w_1 -> ... -> w_V -> 10, each at so many positions."""
    v = len(positions)
    multiplicity = np.vstack([np.zeros(v), np.zeros(v), np.eye(v), np.zeros(v)])
    constant = np.array([1.0, 1.0, *np.zeros(v), 10.0])
    factors = np.array([[1 + i, 2 + i] for i in range(v + 1)])
    params = Polynomial(np.full(v + 1, 3.0), factors)
    macs = Polynomial(3.0 * np.array([*positions, 1.0]), factors)
    return Cost(tuple("abcdefgh"[:v]), multiplicity, constant, {"macs": macs, "params": params})


chains = st.lists(st.floats(1, 100), min_size=2, max_size=8).map(chain)
shares = st.floats(0.02, 1)


def sum_of(outputs: dict[str, list[float]], widths: dict[str, float]) -> float:
    return sum(1 / (k * widths[v]) for v, of in outputs.items() for k in of)


def budget_of(cost: Cost, share: float, other: float) -> dict[str, float]:
    """These shares of what a network of 64 units everywhere costs."""
    whole = cost(dict.fromkeys(cost.variables, 64))
    return {"macs": share * whole["macs"], "params": other * whole["params"]}


def constraints_of(cost: Cost, budget: dict[str, float], step: int = 1, minimum: int = 1) -> Constraints:
    every = cost.variables
    return Constraints(cost, budget, dict.fromkeys(every, minimum), dict.fromkeys(every, step))


def least_sum(
    outputs: dict[str, list[float]], cost: Cost, budget: dict[str, float], start: list[int]
) -> float:
    """By another method: sequential quadratic programming on the log widths."""

    def widths(x):
        return dict(zip(cost.variables, np.exp(x), strict=True))

    solved = minimize(
        lambda x: sum_of(outputs, widths(x)),
        np.log(start),
        constraints=[
            {"type": "ineq", "fun": lambda x, r=r, b=b: np.log(b / cost.gradient(r, np.exp(x))[0])}
            for r, b in budget.items()
        ],
        method="SLSQP",
    )
    return float(solved.fun)


@dear
@given(cost=chains, share=st.floats(0.1, 1), other=st.floats(0.1, 1), data=st.data())
def test_no_other_widths_at_the_budget_have_a_smaller_sum(cost, share, other, data):
    outputs = {v: data.draw(st.sampled_from([[1.0], [1.0, 1.0, 1.0], [8.0, 1.0]])) for v in cost.variables}
    budget = budget_of(cost, share, other)
    found = cost_aware(outputs, cost, constraints_of(cost, budget))
    best = least_sum(outputs, cost, budget, list(found.values()))
    # Whole widths are a little worse than real ones, the more so the narrower they are.
    assert sum_of(outputs, found) <= (1 + 0.6 / min(found.values())) * best


@dear
@given(positions=st.lists(st.floats(1, 100), min_size=2, max_size=2), share=st.floats(0.1, 1))
def test_two_narrow_layers_are_nearly_the_best_of_all_whole_widths(positions, share):
    cost = chain(positions)
    budget = budget_of(cost, share, share)
    outputs = {"a": [1.0], "b": [1.0]}
    found = cost_aware(outputs, cost, constraints_of(cost, budget))
    grid = np.stack(np.meshgrid(np.arange(1.0, 100), np.arange(1.0, 100)), axis=-1).reshape(-1, 2)
    amounts = cost.many(grid)
    fits = np.all([amounts[r] <= limit for r, limit in budget.items()], axis=0)
    assert sum_of(outputs, found) <= 1.1 * (1 / grid[fits]).sum(axis=1).min()


@dear
@given(cost=chains, share=shares, step=st.sampled_from([1, 2, 4]), minimum=st.sampled_from([1, 3]))
def test_they_fit_the_budget_and_nothing_more_does(cost, share, step, minimum):
    constraints = constraints_of(cost, budget_of(cost, share, share), step, minimum)
    if not constraints.allow(constraints.smallest()):
        return
    found = cost_aware(dict.fromkeys(cost.variables, [1.0]), cost, constraints)
    assert constraints.allow(found)
    assert all(w % step == 0 and w >= minimum for w in found.values())
    assert not any(constraints.allow({**found, v: w + step}) for v, w in found.items())


def test_two_layers_alike_have_the_same_width_and_a_dear_one_less():
    outputs = dict.fromkeys("ab", [1.0])
    alike = replace(COST, constant=np.array([1, 10, 0, 0, 10], dtype=float))
    even = cost_aware(outputs, alike, constraints_of(alike, {"macs": 1000}))
    assert abs(even["a"] - even["b"]) <= 1
    dear, cheap = (
        cost_aware(outputs, cost, constraints_of(cost, {"macs": 20_000}))
        for cost in (chain([40.0, 40.0]), chain([40.0, 4.0]))
    )
    assert cheap["b"] / cheap["a"] > dear["b"] / dear["a"]


def test_a_width_that_more_layers_have_is_wider():
    constraints = constraints_of(COST, {"macs": 550})
    one, four = (cost_aware({"a": [1.0] * n, "b": [1.0]}, COST, constraints) for n in (1, 4))
    assert four["a"] > 1.3 * one["a"] and four["b"] < one["b"]
    assert 530 < COST(four)["macs"] <= 550


def test_a_layer_that_costs_nothing_does_not_grow_without_bounds():
    forms = np.array([[0, 0], [1, 0], [0, 1]], dtype=float)
    macs = Polynomial(np.array([1.0]), np.array([[1, 1]]))  # a * a; b is for nothing
    cost = Cost(("a", "b"), forms, np.array([1.0, 0, 0]), {"macs": macs})
    found = cost_aware({"a": [1.0], "b": [1.0]}, cost, constraints_of(cost, {"macs": 100}))
    assert found["a"] == 10
    assert found["b"] <= 10 * 2 / LEAST_SHARE


def test_a_budget_below_the_minimum_widths_is_refused():
    with pytest.raises(BudgetTooSmallError):
        cost_aware({"a": [1.0], "b": [1.0]}, COST, constraints_of(COST, {"macs": 550}, minimum=100))


def test_the_plan_scales_them_to_whole_widths_at_its_budget():
    plan = replace(PLAN, minimum={"a": 1, "b": 12}, multiple_of={"a": 4, "b": 1}, widths={"a": 2, "b": 800})
    widths = plan.cost_aware
    assert plan.constraints().allow(widths) and widths["b"] >= 12 and widths["a"] % 4 == 0
    # Nothing of the seed network is in it.
    assert widths == replace(plan, widths={"a": 4000, "b": 1}).cost_aware


def test_a_residual_width_counts_once_for_every_layer_that_adds_to_it():
    space = trace(ResNet(), images(), verify=False)
    assert space.outputs == {v: [1.0] * len(space.modules[v]) for v in space.widths}
    assert max(map(len, space.outputs.values())) > 1


def test_a_head_counts_by_its_outputs():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 24)
            self.q, self.k, self.v = (nn.Linear(24, 24) for _ in range(3))
            self.out = nn.Linear(24, 24)
            self.head = nn.Linear(24, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            q, k, v = (f(x).view(*x.shape[:2], -1, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head((x + self.out(y)).mean(1))

    space = trace(Net(), torch.randn(2, 7, 5))
    heads = next(v for v, w in space.widths.items() if w == 3)
    assert space.outputs[heads] == [8.0, 8.0, 8.0]  # three layers, eight outputs to the head


@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_has_them(name):
    network = NETWORKS[name]
    space = trace(network.factory(), network.example, verify=False)
    constraints = constraints_of(space.cost, {"params": space.cost.at(space.widths)["params"] // 2})
    widths = cost_aware(space.outputs, space.cost, constraints)
    assert list(widths) == list(space.widths) and constraints.allow(widths)

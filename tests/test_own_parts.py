"""What a user can bring beside a network: rules for operators of their own, an initialisation of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from exactness import counted_macs, random_widths
from networks import Between, images, mlp, vectors
from torch import Tensor, nn

from widthsearch import UsageError
from widthsearch.space import Op, register_rule, rules, trace


@torch.library.custom_op("mine::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return 2 * x


@double.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("mine::view", mutates_args=())  # not torch's
def view(x: Tensor) -> Tensor:
    return x.flip(1)


@view.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(rules.RULES)
    register_rule("mine::double", lambda op: [op.dims("x")])
    yield
    rules.RULES.clear()
    rules.RULES.update(before)


def calls(operator: Callable[[Tensor], Tensor]) -> nn.Module:
    return Between(lambda x: operator(x)).eval()  # an operator itself cannot be copied


@pytest.mark.parametrize("operator", [double, view])
def test_an_operator_without_a_rule_freezes_what_it_touches(operator: Callable[[Tensor], Tensor]) -> None:
    space = trace(calls(operator), images())
    assert list(space.widths) == ["last"]
    assert [(f.name, f.width) for f in space.frozen] == [("first", 8)]
    assert space.frozen[0].reason.endswith("no rule for this operation yet")


def test_a_registered_rule_is_followed(registered: None) -> None:
    space = trace(calls(double), images())
    assert space.widths == {"first": 8, "last": 6}
    widths = random_widths(space, seed=1, least=2)
    assert space.cost.at(widths)["macs"] == counted_macs(space.resize(widths), images())


def test_a_rule_that_does_not_cover_a_case_or_fails_freezes() -> None:
    def no_answer(op: Op) -> None:
        return None

    def wrong_shape(op: Op) -> list[tuple[()]]:
        return [()]

    def raises(op: Op) -> None:
        raise KeyError("there is no such argument")

    for rule in (no_answer, wrong_shape, raises):
        rules.RULES["mine::double"] = rule
        try:
            space = trace(calls(double), images())
        finally:
            del rules.RULES["mine::double"]
        assert [(f.name, f.reason[-30:]) for f in space.frozen] == [
            ("first", "no rule for this operation yet")
        ]


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(UsageError, match="Between cannot be copied: TypeError: cannot pickle"):
        trace(Between(double).eval(), images())


def test_a_rule_needs_the_full_name_of_its_operator() -> None:
    with pytest.raises(ValueError, match="'double'"):
        register_rule("double", lambda op: None)


def test_an_initialisation_of_ones_own_comes_last() -> None:
    def ones(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.ones_(module.weight)

    space = trace(mlp(), vectors(10), init=ones)
    resized = space.resize({"0": 5, "3": 7})
    assert all(bool((p == 1).all()) for name, p in resized.named_parameters() if name.endswith("weight"))
    again = space.at({"0": 5, "3": 7}).model
    assert all(bool((p == 1).all()) for name, p in again.named_parameters() if name.endswith("weight"))
    assert not bool((space.model[0].weight == 1).any())  # type: ignore[index]


def test_the_cost_of_many_candidates_is_that_of_each() -> None:
    cost = trace(mlp(), vectors(10)).cost
    candidates = np.random.default_rng(0).integers(1, 100, (50, 2))
    many = cost.many(candidates.astype(np.float64))
    for i, (a, b) in enumerate(candidates.tolist()):
        assert {r: round(float(values[i])) for r, values in many.items()} == cost.at({"0": a, "3": b})

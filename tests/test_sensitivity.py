"""Sensitivity, an arm of a comparison: the rise of the error by layer, and the widths at one rise of all layers."""

from itertools import product

import numpy as np
import pytest
import torch
from test_plan import PLAN
from torch import nn

from widthsearch import Budget, Recipe, Study
from widthsearch.driver.questions import make_comparison
from widthsearch.errors import UsageError
from widthsearch.maths.rule import Constraints
from widthsearch.plans.arms import ARMS
from widthsearch.space import trace
from widthsearch.training.controller import cut
from widthsearch.training.pruners.sensitivity import LEVELS, rises, sensitivity
from widthsearch.training.recipe_loop import RecipeLoop


def test_between_the_widths_that_were_tried_a_rise_is_linear_and_narrower_is_never_better():
    found = rises([1, 4, 6], [3.0, 0.9, 1.5], whole=1.0, width=8)
    #         left: 0    1    2     3     4    5    6    7 units; at 4 it was lucky
    expected = [2.0, 2.0, 1.5, 1.0, 0.5, 0.5, 0.5, 0.25]
    assert found == pytest.approx(expected, abs=1e-5)
    assert (np.diff(found) < 0).all()  # the best unit goes last
    assert len(rises([1], [2.0], 1.0, 2)) == 2


def test_no_widths_at_the_budget_have_a_smaller_largest_rise():
    """Against every network that there is: three layers, whose loss grows in unlike ways as they get narrower."""
    widths, rng = {"a": 8, "b": 6, "c": 9}, np.random.default_rng(0)
    ones = dict.fromkeys(widths, 1)
    for limit in (20, 45, 90, 130):
        curves = {v: np.sort(rng.exponential(size=w))[::-1] for v, w in widths.items()}  # at 1, 2... units
        scores = [rises(range(1, w), curves[v][:-1], curves[v][-1], w) for v, w in widths.items()]
        constraints = Constraints(
            lambda w: {"macs": 2 * w["a"] + w["a"] * w["b"] + w["b"] * w["c"]}, {"macs": limit}, ones, ones
        )
        keep = cut(np.concatenate(scores), widths, constraints)
        kept = [int(k.sum()) for k in keep.values()]

        def largest(ns, curves=curves):
            return max(curves[v][n - 1] - curves[v][-1] for v, n in zip(widths, ns, strict=True))

        allowed = (
            ns
            for ns in product(*(range(1, w + 1) for w in widths.values()))
            if constraints.allow(dict(zip(widths, ns, strict=True)))
        )
        assert constraints.allow(dict(zip(widths, kept, strict=True)))
        assert largest(kept) == pytest.approx(min(map(largest, allowed)))


def test_layers_that_lose_nothing_are_cut_by_the_same_share():
    widths = {"a": 16, "b": 64}
    scores = np.concatenate([rises([1, w // 2], [1.0, 1.0], 1.0, w) for w in widths.values()])
    ones = dict.fromkeys(widths, 1)
    keep = cut(scores, widths, Constraints(lambda w: {"units": w["a"] + w["b"]}, {"units": 40}, ones, ones))
    assert {v: int(k.sum()) for v, k in keep.items()} == {"a": 8, "b": 32}


@pytest.mark.parametrize("of", ["classes", "loss"])
def test_a_unit_scores_what_the_error_rises_by_without_it_and_all_worse_ones_of_its_layer(of):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    x, y = torch.randn(64, 5), torch.arange(64) % 3
    own_loss = nn.functional.cross_entropy if of == "loss" else None
    recipe = Recipe(epochs=1, batch_size=32, lr=0.1, device="cpu", loss=own_loss)
    ranked = np.random.default_rng(0).random(20)
    found = sensitivity(trace(net, x), RecipeLoop(recipe, ((x, y), (x, y))), ranked)

    @torch.no_grad()
    def error():
        output = net(x)
        wrong = (output.argmax(1) != y).double().mean()
        return float(nn.functional.cross_entropy(output, y) if of == "loss" else wrong)

    for reader, own, ranks in ((net[2], found[:8], ranked[:8]), (net[4], found[8:], ranked[8:])):
        whole, before, worst = error(), reader.weight.detach().clone(), 0.0
        order = np.argsort(-ranks)
        for k in reversed(range(1, LEVELS)):
            n = len(own) * k // LEVELS
            with torch.no_grad():
                reader.weight[:, order[n:].tolist()] = 0
                worst = max(worst, error() - whole)
                reader.weight.copy_(before)
            assert own[order[n]] == pytest.approx(worst, abs=1e-5)
        assert (np.diff(own[order]) < 0).all()


def test_an_own_training_loop_is_compared_without_it():
    def train(model, data, report):
        report(val_loss=1.0)

    own = Study(model=nn.Identity, data=tuple, budget=Budget(macs="0.5x", params="any"), train=train, steps=1)
    assert set(ARMS) - set(make_comparison(own, PLAN).arms) == {"sensitivity"}
    with pytest.raises(UsageError, match="'sensitivity' cannot prune in an own training loop"):
        make_comparison(own, PLAN, arms=["uniform", "sensitivity"])

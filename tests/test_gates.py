"""Gates: exact at 0, unbiased where it can be checked by hand, and on budget."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, outputs, randomise
from sklearn.datasets import load_digits
from torch import nn

from widthsearch.gates import (
    START,
    BudgetController,
    Gated,
    _HardConcrete,
    _Products,
    cut,
    expected,
    sample,
)
from widthsearch.rule import Constraints
from widthsearch.space import trace
from widthsearch.study import Recipe
from widthsearch.train import evaluate, train


@pytest.mark.parametrize("name", NETWORKS)
def test_a_closed_gate_equals_the_compacted_network(name):
    make, example, *_ = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(make())
    space = trace(model, example)
    rng = np.random.default_rng(0)
    keep = {v: rng.random(w) > 0.4 for v, w in space.widths.items()}
    for k in keep.values():
        k[0] = True
    gated = Gated(space).eval()
    with torch.no_grad():
        gated.log_alpha.fill_(10.0)  # all gates exactly 1, so that only the mask closes any
        full = outputs(gated, example)
        gated.mask = torch.from_numpy(np.concatenate(list(keep.values()))).float()
        closed, compacted = outputs(gated, example), outputs(space.compact(keep).eval(), example)
        plain = outputs(model.eval(), example)
    assert (closed - compacted).abs().max() < 1e-5
    assert torch.equal(full, plain) or (full - plain).abs().max() < 1e-6  # open gates change nothing
    assert (closed - plain).abs().max() > 1e-4  # and closing them does


def test_gates_leave_the_users_model_alone():
    make, example, *_ = NETWORKS["unet"]
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gated = Gated(trace(model, example)).eval()
    gated(*example)
    assert gated.model is model
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert set(gated.state_dict()) == {"log_alpha", *(f"model.{k}" for k in before)}


def test_every_gate_gets_a_gradient():
    make, example, *_ = NETWORKS["unet"]
    torch.manual_seed(0)
    gated = Gated(trace(randomise(make()), example))
    with torch.no_grad():
        gated.log_alpha.zero_()  # half open: no sample is clamped for all units at once
    total = torch.zeros_like(gated.log_alpha)
    for _ in range(20):
        gated.zero_grad()
        gated(*example).square().sum().backward()
        total += gated.log_alpha.grad.abs()
    assert (total > 0).all()


def test_samples_follow_the_hard_concrete_distribution():
    """P(z = 0) and P(z = 1) against equation 12 of Louizos et al. and its mirror."""
    torch.manual_seed(0)
    for log_alpha in (-2.0, 0.0, 1.5):
        z = sample(torch.full((200_000,), log_alpha))
        closed = 1 - 1 / (1 + math.exp(2 / 3 * math.log(0.1 / 1.1) - log_alpha))
        opened = 1 / (1 + math.exp(2 / 3 * math.log(1.1 / 0.1) - log_alpha))
        assert (z == 0).float().mean().item() == pytest.approx(closed, abs=5e-3)
        assert (z == 1).float().mean().item() == pytest.approx(opened, abs=5e-3)
        assert z.min() >= 0
        assert z.max() <= 1


def test_expected_gates_are_monotone_and_reach_both_ends():
    z = expected(torch.linspace(-6, 6, 101))
    assert z[0] == 0
    assert z[-1] == 1
    assert (z.diff() >= 0).all()


def test_the_gradients_written_by_hand_are_those_of_autograd():
    noise = torch.linspace(-3, 3, 7).double()
    a = torch.linspace(-2, 2, 7).double().requires_grad_()

    def reference(a):
        s = torch.sigmoid((noise + a) / (2 / 3))
        return (s * 1.2 - 0.1).clamp(0, 1)

    weight = torch.rand(7, dtype=torch.double)
    (expect,) = torch.autograd.grad((reference(a) * weight).sum(), a)
    (got,) = torch.autograd.grad((_HardConcrete.apply(a, noise.clone()) * weight).sum(), a)
    torch.testing.assert_close(got, expect)

    for name in ("unet", "densenet", "lenet", "mlp"):  # whole variables, concatenations, flattening, inputs
        make, example, *_ = NETWORKS[name]
        gated = Gated(trace(make().double(), tuple(t.double() for t in example)))
        z = torch.rand(len(gated.log_alpha), dtype=torch.double, requires_grad=True)
        padded = torch.cat([z, torch.ones(1)])
        loss, by_hand = 0.0, 0.0
        for axis in gated._axes:
            gate = padded[axis.part] if axis.part is not None else padded[axis.index]
            loss = loss + (axis.weight * gate.view(axis.shape)).sin().sum()
        for product in _Products.apply(z, gated._axes, *(axis.weight for axis in gated._axes)):
            by_hand = by_hand + product.sin().sum()
        wanted = [z, *(axis.weight for axis in gated._axes)]
        for p, q in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(by_hand, wanted), strict=True):
            torch.testing.assert_close(p, q)


def test_gating_inputs_equals_gating_weights():
    """A batch smaller than the layer takes the other way through; the outputs agree."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3))
    x = torch.randn(100, 6)
    gated = Gated(trace(model, x[:2])).eval()
    with torch.no_grad():
        gated.log_alpha.normal_()
    assert gated._axes[0].is_cheaper_on_input(4)
    assert not gated._axes[0].is_cheaper_on_input(100)
    torch.testing.assert_close(gated(x)[:4], gated(x[:4]))
    small = [
        g.clone() for g in torch.autograd.grad(gated(x[:4]).sum(), [gated.log_alpha, *model.parameters()])
    ]
    both = torch.autograd.grad(gated(x)[:4].sum(), [gated.log_alpha, *model.parameters()])
    torch.testing.assert_close(small, list(both))
    assert not model[2]._forward_pre_hooks


def controller_for(pressure, steps=100):
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    space = trace(model, torch.randn(2, 6))
    budget = {r: c / 4 for r, c in space.cost(space.widths).items()}
    gated = Gated(space)
    return (
        gated,
        BudgetController(gated, space.widths, space.cost, budget, steps=steps, pressure=pressure),
        space,
        budget,
    )


@pytest.mark.parametrize("pressure", ["neurons", "cost"])
def test_the_penalty_gradient_is_the_gradient_of_the_penalty(pressure):
    """The gradient written by hand against autograd on ``price * log E[.]``."""
    torch.manual_seed(0)
    gated, controller, space, budget = controller_for(pressure)
    with torch.no_grad():
        gated.log_alpha.normal_()
    controller._step = 50  # the target is well below the cost by now, so the price is not 0
    gradient = controller.penalty_gradient(gated.log_alpha.detach().double().numpy())
    assert controller.price > 0
    a = gated.log_alpha.detach().double().requires_grad_()
    open_ = torch.sigmoid(a - 2 / 3 * math.log(0.1 / 1.1))
    units = torch.stack([part.sum() for part in open_.split(list(space.widths.values()))])
    if pressure == "neurons":
        objective = open_.sum().log()
    else:
        sizes = torch.cat([torch.tensor([6.0]).double(), units, torch.tensor([3.0]).double()])
        macs = (sizes[:-1] * sizes[1:]).sum()
        params = macs + sizes[1:].sum()
        worst = max(("macs", macs), ("params", params), key=lambda f: (f[1] / budget[f[0]]).item())
        objective = worst[1].log()
    (controller.price * objective).backward()
    np.testing.assert_allclose(gradient, a.grad.numpy(), rtol=1e-6)


def test_the_price_is_zero_within_the_target_and_rises_above_it():
    gated, controller, _, _ = controller_for("neurons")
    with torch.no_grad():
        gated.log_alpha.fill_(-4.0)
    controller.step()
    assert controller.price == 0
    with torch.no_grad():
        gated.log_alpha.fill_(START)
    prices = []
    for _ in range(60):
        controller.penalty_gradient(gated.log_alpha.detach().double().numpy())
        prices.append(controller.price)
    assert prices[-1] > prices[10] > 0


@pytest.mark.parametrize("pressure", ["neurons", "cost"])
def test_a_measure_ends_at_the_budget_and_still_classifies(pressure):
    """A real gated training, four times over budget: the expected cost follows its target down."""
    x, y = load_digits(return_X_y=True)
    split = (torch.from_numpy(x).float() / 16, torch.from_numpy(y))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    space = trace(model, split[0][:2])
    budget = {r: c / 4 for r, c in space.cost(space.widths).items()}
    recipe = Recipe(epochs=20, batch_size=64, lr=0.1)
    gated = Gated(space)
    steps = recipe.epochs * (len(y) // recipe.batch_size)
    controller = BudgetController(gated, space.widths, space.cost, budget, steps=steps, pressure=pressure)
    train(gated, split, recipe, seed=0, controller=controller)

    log_alpha = gated.log_alpha.detach().double()
    open_ = torch.sigmoid(log_alpha - 2 / 3 * math.log(0.1 / 1.1))
    units = [part.sum().item() for part in open_.split(list(space.widths.values()))]
    cost = space.cost(dict(zip(space.widths, units, strict=True)))
    assert 0.7 < max(cost[r] / limit for r, limit in budget.items()) < 1.1

    ones = dict.fromkeys(space.widths, 1)
    keep = cut(log_alpha.numpy(), space.widths, Constraints(space.cost, budget, ones, ones))
    gated.mask = torch.from_numpy(np.concatenate(list(keep.values()))).float()
    assert evaluate(gated, split, recipe).accuracy > 0.9


def chain(widths):
    sizes = [5, *widths.values(), 3]
    return {"macs": sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=4), st.floats(0.05, 1.2), st.integers(0, 10**6))
def test_the_cut_is_the_longest_prefix_by_rank_within_the_budget(counts, share, seed):
    widths = {f"v{i}": n for i, n in enumerate(counts)}
    log_alpha = np.random.default_rng(seed).normal(size=sum(counts))
    ones = dict.fromkeys(widths, 1)
    constraints = Constraints(
        chain, {"macs": max(share * chain(widths)["macs"], chain(ones)["macs"])}, ones, ones
    )
    keep = cut(log_alpha, widths, constraints)
    kept = {v: int(k.sum()) for v, k in keep.items()}
    assert constraints.allow(kept)
    assert min(kept.values()) >= 1
    flat = np.concatenate(list(keep.values()))
    if flat.all():
        return
    # Every unit that goes ranks below every unit that stays, but for the one best unit of each variable.
    best = np.concatenate([np.arange(len(a)) == a.argmax() for a in split(log_alpha, counts)])
    assert log_alpha[flat & ~best].min(initial=np.inf) > log_alpha[~flat].max()
    # And the next unit by rank would break the budget.
    following = np.where(flat, -np.inf, log_alpha).argmax()
    more = flat.copy()
    more[following] = True
    assert not constraints.allow({v: int(k.sum()) for v, k in zip(widths, split(more, counts), strict=True)})


def split(array, counts):
    return np.split(array, np.cumsum(counts)[:-1])

"""Gates: exact at 0, unbiased where it can be checked by hand, and on budget."""

import copy
import math

import numpy as np
import pytest
import torch
from examples import dear
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, outputs, randomise
from sklearn.datasets import load_digits
from torch import nn

from widthsearch.errors import TrainingError
from widthsearch.maths.rule import Constraints
from widthsearch.space import Gating, trace
from widthsearch.study.recipe import Recipe
from widthsearch.training.controller import BudgetController, cut
from widthsearch.training.device_gates import DeviceController, DeviceGates
from widthsearch.training.gates import START, Gates, expected, open_probability, sample
from widthsearch.training.recipe_loop import CLOSING, evaluate, train


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
    gates = Gates(space)
    gates.log_alpha.fill(10.0)  # all gates exactly 1, so that only the mask closes any
    model.eval()
    with torch.no_grad(), gates.attached():
        full = outputs(model, example)
        gates.mask = np.concatenate(list(keep.values()))
        closed = outputs(model, example)
    with torch.no_grad():
        compacted, plain = outputs(space.compact(keep).eval(), example), outputs(model, example)
    assert (closed - compacted).abs().max() < 1e-5
    assert torch.equal(full, plain) or (full - plain).abs().max() < 1e-6  # open gates change nothing
    assert (closed - plain).abs().max() > 1e-4  # and closing them does


class TiedHead(nn.Module):
    """The output layer reads the embedding's width through the embedding's own table."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.fc(x).relu())


def test_of_tied_weights_only_the_consuming_side_is_gated():
    torch.manual_seed(0)
    model, tokens = TiedHead(), torch.arange(10).reshape(2, 5)
    gates = Gates(trace(model.eval(), tokens))
    gates.log_alpha[:] = 0.0  # half open: a gate on both sides would count twice
    z = torch.from_numpy(expected(gates.log_alpha))
    assert len(z) == 8
    with torch.no_grad(), gates.attached():
        gated = model(tokens)
        x = model.embed(tokens)
        y = x + (nn.functional.linear(x, model.fc.weight * z, model.fc.bias)).relu()
        torch.testing.assert_close(gated, nn.functional.linear(y, model.head.weight * z))


def test_gates_leave_the_users_model_alone():
    make, example, *_ = NETWORKS["unet"]
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gates = Gates(trace(model, example))
    with gates.attached(lambda gradient: None):
        model(*example)
        with pytest.raises((RuntimeError, ValueError)):
            model(example[0][:, :1])
    assert all(torch.equal(v, before[k]) for k, v in model.named_parameters())
    assert set(model.state_dict()) == set(before)
    assert all(type(p) is nn.Parameter for p in model.parameters())
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    assert not any(getattr(m, name) for m in model.modules() for name in hooks)


def test_every_gate_gets_a_gradient():
    make, example, *_ = NETWORKS["unet"]
    torch.manual_seed(0)
    model = randomise(make())
    gates = Gates(trace(model, example))
    gates.log_alpha[:] = 0  # half open: no unit's samples are all clamped
    gradients = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gates.attached(gradients.append):
        for _ in range(20):
            model(*example).square().sum().backward()
            optimizer.step()
    assert len(gradients) == 20  # one for each step of the optimizer
    assert (np.abs(gradients).sum(0) > 0).all()


def two_passes(model, x, change):
    (model(x[:4]).sum() + model(x[4:]).sum()).backward()
    change()


def two_backward_passes(model, x, change):
    for half in (x[:4], x[4:]):
        model(half).sum().backward()
    change()


def two_optimizers(model, x, change):
    model(x).sum().backward()
    for layer in (model[0], model[2]):
        torch.optim.SGD(layer.parameters(), lr=0.01).step()


def a_closure(model, x, change):
    def closure():
        loss = model(x).sum()
        loss.backward()
        return loss

    torch.optim.SGD(model.parameters(), lr=0.01).step(closure)


@pytest.mark.parametrize("loop", [two_passes, two_backward_passes, two_optimizers, a_closure])
@pytest.mark.parametrize("by_hand", [False, True])
def test_gates_make_a_step_when_the_weights_do(loop, by_hand):
    """However many passes a step takes, and whoever changes the weights."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(8, 6)
    gates = Gates(trace(model, x))

    def change():
        if not by_hand:
            torch.optim.SGD(model.parameters(), lr=0.01).step()
            return
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * p.grad

    gradients = []
    with gates.attached(gradients.append):
        for _ in range(3):
            loop(model, x, change)
            model.zero_grad()
    assert len(gradients) == 3


def test_samples_follow_the_hard_concrete_distribution():
    """P(z = 0) and P(z = 1) against equation 12 of Louizos et al. and its mirror."""
    noise = np.random.default_rng(0).logistic(size=200_000)
    for log_alpha in (-2.0, 0.0, 1.5):
        z, _ = sample(np.full(len(noise), log_alpha), noise)
        closed = 1 - 1 / (1 + math.exp(2 / 3 * math.log(0.1 / 1.1) - log_alpha))
        opened = 1 / (1 + math.exp(2 / 3 * math.log(1.1 / 0.1) - log_alpha))
        assert (z == 0).mean() == pytest.approx(closed, abs=5e-3)
        assert (z == 1).mean() == pytest.approx(opened, abs=5e-3)
        assert z.min() >= 0
        assert z.max() <= 1
        assert open_probability(np.array([log_alpha]))[0] == pytest.approx(1 - closed)


def test_expected_gates_are_monotone_and_reach_both_ends():
    z = expected(np.linspace(-6, 6, 101))
    assert z[0] == 0
    assert z[-1] == 1
    assert (np.diff(z) >= 0).all()


def test_the_slope_of_a_sample_is_the_derivative_that_autograd_finds():
    uniform = torch.linspace(0.02, 0.98, 9).double()
    a = torch.linspace(-3, 3, 9).double().requires_grad_()
    s = torch.sigmoid((uniform.logit() + a) / (2 / 3))
    reference = (s * 1.2 - 0.1).clamp(0, 1)
    z, slope = sample(a.detach().numpy(), uniform.logit().numpy())
    np.testing.assert_allclose(z, reference.detach().numpy(), rtol=1e-12)
    (expect,) = torch.autograd.grad(reference.sum(), a)
    np.testing.assert_allclose(slope, expect.numpy(), rtol=1e-9)


def test_gating_inputs_equals_gating_weights():
    """A batch smaller than the layer takes the other way through; outputs and gradients agree."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 3))
    x = torch.randn(100, 6)
    space = trace(model, x[:2])
    axis = Gating(model, list(space.widths.values()), space.consumers)._axes[0]
    assert axis.is_cheaper_on_input(4)
    assert not axis.is_cheaper_on_input(100)
    results, gradients = [], []
    for batch in (x[:4], x):
        torch.manual_seed(1)
        with Gates(space).attached(gradients.append):
            model.zero_grad()
            output = model(batch)[:4]
            output.sum().backward()
            torch.optim.SGD(model.parameters(), lr=0.0).step()
            results.append((output.detach(), gradients[-1], *(p.grad.clone() for p in model.parameters())))
    for small, large in zip(*results, strict=True):
        np.testing.assert_allclose(small, large, atol=1e-5)
    assert not model[2]._forward_pre_hooks


def digits_of(n=None):
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x[:n]).float() / 16, torch.from_numpy(y[:n])


def controller_for(pressure, steps=100):
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    space = trace(model, torch.randn(2, 6))
    budget = {r: c / 4 for r, c in space.cost(space.widths).items()}
    gates = Gates(space)
    return (
        gates,
        BudgetController(gates.log_alpha, space.widths, space.cost, budget, steps=steps, pressure=pressure),
        space,
        budget,
    )


def of_kinds(kinds, space, budget, steps, pressure="cost"):
    gates = kinds[0](space)
    holds = gates if kinds[1] is DeviceController else gates.log_alpha
    return gates, kinds[1](holds, space.widths, space.cost, budget, steps=steps, pressure=pressure)


def test_gates_on_a_device_make_the_steps_of_those_on_the_cpu():
    """The same noise, gates, prices and logits, as far as float32 goes; also from a checkpoint on."""
    digits, recipe = digits_of(200), Recipe(epochs=6, batch_size=50, lr=0.05)
    logits, prices = [], []
    for kinds in ((Gates, BudgetController), (DeviceGates, DeviceController)):
        torch.manual_seed(0)
        space = trace(nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)), digits[0][:2])
        budget = {r: c / 16 for r, c in space.cost(space.widths).items()}
        gates, controller = of_kinds(
            kinds, space, budget, steps=48
        )  # so few that each has a price of its own
        states = []
        for _ in range(2):
            with gates.attached(controller.step):
                train(space.model, digits, recipe, seed=0)
            states.append((copy.deepcopy(gates.state_dict()), copy.deepcopy(controller.state_dict())))
            logits.append(gates.log_alpha.copy())
            prices.append(controller.price.value)
        assert controller.taken == 48
        again = of_kinds(kinds, space, budget, steps=48)
        for part, state in zip(again, states[0], strict=True):
            part.load_state_dict(state)
        assert again[0].state_dict()["noise"][-1].equal(states[0][0]["noise"][-1])
        gradient = np.linspace(-1, 1, 12, dtype=np.float32)
        for part in (controller, again[1]):
            part.load_state_dict(states[0][1])
        gates.load_state_dict(states[0][0])
        for part in (controller, again[1]):
            part.step(torch.from_numpy(gradient) if kinds[0] is DeviceGates else gradient)
        assert gates.state_dict()["log_alpha"].equal(again[0].state_dict()["log_alpha"])
    np.testing.assert_allclose(logits[:2], logits[2:], atol=2e-4)
    np.testing.assert_allclose(prices[:2], prices[2:], rtol=1e-3)
    assert prices[1] > 0 and np.ptp(logits[1]) > 0.01


@pytest.mark.parametrize("pressure", ["neurons", "cost"])
def test_the_penalty_gradient_is_the_gradient_of_the_penalty(pressure):
    """The gradient written by hand against autograd on ``price * log E[.]``."""
    torch.manual_seed(0)
    gates, controller, space, budget = controller_for(pressure)
    log_alpha = np.random.default_rng(0).normal(size=len(gates.log_alpha))
    controller.price.taken = 50  # the target is well below the cost by now, so the price is not 0
    gradient = controller.penalty_gradient(log_alpha)
    assert controller.price.value > 0
    a = torch.from_numpy(log_alpha).requires_grad_()
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
    (controller.price.value * objective).backward()
    np.testing.assert_allclose(gradient, a.grad.numpy(), rtol=1e-6)


def test_the_price_is_zero_within_the_target_and_rises_above_it():
    gates, controller, _, _ = controller_for("neurons")
    gates.log_alpha.fill(-4.0)
    controller.step(np.zeros_like(gates.log_alpha))
    assert controller.price.value == 0
    gates.log_alpha.fill(START)
    prices = []
    for _ in range(60):
        controller.penalty_gradient(gates.log_alpha)
        prices.append(controller.price.value)
    assert prices[-1] > prices[10] > 0


@pytest.mark.parametrize(
    ("pressure", "kinds"),
    [
        ("neurons", (Gates, BudgetController)),
        ("cost", (Gates, BudgetController)),
        ("cost", (DeviceGates, DeviceController)),
    ],
)
def test_a_measure_ends_at_the_budget_and_still_classifies(pressure, kinds):
    """A real gated training, four times over budget: the expected cost follows its target down."""
    digits = digits_of()
    y = digits[1]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    space = trace(model, digits[0][:2])
    budget = {r: c / 4 for r, c in space.cost(space.widths).items()}
    recipe = Recipe(epochs=20, batch_size=64, lr=0.1)
    steps = recipe.epochs * (len(y) // recipe.batch_size)
    gates, controller = of_kinds(kinds, space, budget, round(CLOSING * steps), pressure)
    with gates.attached(controller.step):
        train(model, digits, recipe, seed=0)
    assert controller.taken == steps

    units = [part.sum() for part in split(open_probability(gates.log_alpha), list(space.widths.values()))]
    cost = space.cost(dict(zip(space.widths, units, strict=True)))
    assert 0.7 < max(cost[r] / limit for r, limit in budget.items()) < 1.1

    ones = dict.fromkeys(space.widths, 1)
    keep = cut(gates.log_alpha, space.widths, Constraints(space.cost, budget, ones, ones))
    gates.mask = np.concatenate(list(keep.values()))
    with gates.attached():
        masked = evaluate(model, digits, recipe)
    assert masked.accuracy > 0.9
    compacted = evaluate(space.compact(keep), digits, recipe)
    getattr(gates, "logits", gates.log_alpha)[:] = 10.0  # every gate that the cut left is exactly 1
    with gates.attached():
        assert evaluate(model, digits, recipe).loss == pytest.approx(compacted.loss, abs=1e-5)


def test_what_gates_cannot_do_is_refused():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(4, 6)
    gates = Gates(trace(model, x))
    with gates.attached(lambda gradient: None):
        with torch.autocast("cpu", torch.float16), pytest.raises(TrainingError, match="bfloat16"):
            model(x)
        with torch.autocast("cpu", torch.bfloat16):
            model(x).sum().backward()


def chain(widths):
    sizes = [5, *widths.values(), 3]
    return {"macs": sum(a * b for a, b in zip(sizes, sizes[1:], strict=False))}


@dear
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

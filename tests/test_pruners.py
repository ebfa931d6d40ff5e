"""Pruners: their scores against brute force, their proximal step against its closed form, their budgets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import dear
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, outputs, randomise
from scipy.linalg import hadamard
from scipy.optimize import minimize
from torch import nn

from widthsearch import Budget, Recipe, Study
from widthsearch.driver.prepare import make_plan
from widthsearch.driver.questions import make_pruner_plan
from widthsearch.maths.rule import Constraints
from widthsearch.plans.plan import Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.report.pruners import winner
from widthsearch.space import trace
from widthsearch.training.controller import cut
from widthsearch.training.pruners.group_l1 import GroupL1, shrunk
from widthsearch.training.pruners.groups import Groups
from widthsearch.training.pruners.ranking import Aim, scores
from widthsearch.training.pruners.saliency import fisher_diagonal, obd, taylor
from widthsearch.training.pruners.sweep import (
    OUTPUTS_KEEP,
    Weights,
    gradually,
    prune_units,
    prune_weights,
    sweep,
)
from widthsearch.training.recipe_loop import RecipeLoop
from widthsearch.training.trial import TrialRunner, build_space

cross_entropy = nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def one_thread():
    """As in a study; on networks this small more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def half_square(output, target):
    return (output - target).square().mean() / 2


def at_the_minimum_of_a_quadratic():
    """Least squares with orthogonal inputs of unlike sizes and residuals +1 and -1 that no input explains.

    So the weights are at the minimum, and the Fisher diagonal is that of the Hessian: mean (r x_k)^2 = mean x_k^2.
    """
    h = torch.from_numpy(hadamard(8)).float()
    net = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.3, -2.0, 1.1, 0.02, -0.7, 0.5]]))
    x = h[:, 1:7] * torch.tensor([0.5, 0.1, 2.0, 9.0, 1.0, 0.3])
    return net, x, (net(x) + h[:, 7:]).detach()


def test_obd_is_the_change_of_the_loss_where_that_is_quadratic():
    net, x, y = at_the_minimum_of_a_quadratic()
    diagonal = fisher_diagonal(net, [(x[:3], y[:3]), (x[3:], y[3:])], half_square)
    torch.testing.assert_close(diagonal["weight"][0], x.square().mean(0))
    found = obd(net, diagonal)["weight"][0]
    with torch.no_grad():
        before = half_square(net(x), y)
        for k in range(6):
            kept = net.weight.clone()
            net.weight[0, k] = 0
            assert found[k].item() == pytest.approx((half_square(net(x), y) - before).item(), rel=1e-4)
            net.weight.copy_(kept)


class ReadsValues(nn.Module):
    """Python looks at a value: vmap cannot."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(x) * (2.0 if x.sum().item() > 0 else 0.5)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.unused = nn.Linear(5, 6), nn.Linear(3, 6), nn.Linear(2, 2)
        self.out = nn.Linear(6, 4)

    def forward(self, left, right):
        return self.out(torch.relu(self.a(left) + self.b(right)))


FISHER = {
    "conv": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(5, 4, 3, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(12, 4),
        ),
        torch.randn(9, 2, 10, generator=torch.Generator().manual_seed(1)),
    ),
    "values": (ReadsValues, torch.randn(9, 5, generator=torch.Generator().manual_seed(1))),
    "two inputs": (TwoInputs, (torch.linspace(-1, 2, 45).view(9, 5).sin(), torch.linspace(0, 3, 27).view(9, 3).cos())),
    "lstm": (lambda: LastOf(nn.LSTM(3, 4, batch_first=True)), torch.linspace(-2, 2, 9 * 5 * 3).view(9, 5, 3).sin()),
}  # fmt: skip


class LastOf(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


@pytest.mark.parametrize("name", FISHER)
def test_the_fisher_diagonal_is_the_mean_of_squared_gradients_sample_by_sample(name):
    make, x = FISHER[name]
    torch.manual_seed(0)
    net, y = make().eval(), torch.arange(9) % 4
    by_hand = {n: torch.zeros_like(w) for n, w in net.named_parameters()}
    part = (lambda a, b: tuple(t[a:b] for t in x)) if isinstance(x, tuple) else (lambda a, b: x[a:b])
    for i in range(9):
        net.zero_grad()
        inputs = part(i, i + 1)
        cross_entropy(net(*inputs) if isinstance(x, tuple) else net(inputs), y[i : i + 1]).backward()
        for n, w in net.named_parameters():
            by_hand[n] += 0 if w.grad is None else w.grad.square() / 9
    found = fisher_diagonal(
        net, [(part(0, 4), y[:4]), (part(4, 9), y[4:])], cross_entropy
    )  # batches unlike in size
    assert found.keys() == by_hand.keys()
    for n, expected in by_hand.items():
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-9)
    assert all(float(t.max()) > 0 for n, t in found.items() if "unused" not in n)


def test_taylor_is_the_squared_change_of_the_loss_where_that_is_linear_in_each_unit():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(48, 7), nn.Linear(7, 3)
    )
    space = trace(net, torch.randn(2, 2, 10))
    torch.nn.init.normal_(net[1].bias)  # a removed unit must not leave its shift behind
    data = [(torch.randn(5, 2, 10), torch.randn(5, 3)) for _ in range(2)]

    def loss(output, target):
        return (output * target).mean()

    found = taylor(space, data, loss)
    net.eval()
    with torch.no_grad():
        for unit in range(13):
            keep = {v: np.ones(w, dtype=bool) for v, w in space.widths.items()}
            keep["0" if unit < 6 else "3"][unit % 6 if unit < 6 else unit - 6] = False
            without = space.compact(keep).eval()
            change = [loss(without(x), y) - loss(net(x), y) for x, y in data]
            expected = float(np.mean([float(c) ** 2 for c in change]))
            assert found[unit] == pytest.approx(expected, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), space.model.parameters(), strict=True))


# Groups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_units_whose_group_is_zero_are_gone(name):
    make, example, *_ = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(make()).eval()
    space = trace(model, example)
    if space.statistics:
        pytest.skip("a statistic over units sees those that nothing reads")
    rng = np.random.default_rng(0)
    keep = {v: rng.random(w) > 0.4 for v, w in space.widths.items()}
    for k in keep.values():
        k[0] = True
    compacted = space.compact(keep).eval()
    groups = Groups(space)
    assert (groups.norms() > 0).all()
    kept = torch.from_numpy(np.concatenate(list(keep.values())))
    groups.scale_(kept.float())
    assert torch.equal(groups.norms() > 0, kept)
    with torch.no_grad():
        assert (outputs(model, example) - outputs(compacted, example)).abs().max() < 1e-5


def test_groups_are_norm_scales_where_units_have_them_and_what_reads_them_elsewhere():
    net = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 2)
    )  # fmt: skip
    space = trace(net, torch.randn(2, 4))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -2.0, 3.0]))
    read = net[5].weight.detach().norm(dim=0)
    expected = torch.cat([torch.tensor([0.5, 2.0, 3.0]), read])
    torch.testing.assert_close(Groups(space, scales=True).norms(), expected)
    torch.testing.assert_close(Groups(space).norms(), torch.cat([net[3].weight.detach().norm(dim=0), read]))
    squares = {n: w.detach().square() for n, w in net.named_parameters()}
    torch.testing.assert_close(Groups(space).total(squares)[3:], read.square())


# Group-L1 ------------------------------------------------------------------------------------------------


@dear
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=4), st.floats(0.01, 4))
def test_the_proximal_step_minimises_what_it_should(values, threshold):
    v = np.array(values)
    norm = torch.tensor([float(np.linalg.norm(v))], dtype=torch.float64)
    x = v * float(shrunk(norm, torch.tensor([threshold], dtype=torch.float64)))

    def objective(w):
        return 0.5 * np.sum((w - v) ** 2) + threshold * np.linalg.norm(w)

    best = min(minimize(objective, start, method="Nelder-Mead").fun for start in (v, 0.5 * v, 0 * v + 1e-9))
    assert objective(x) <= best + 1e-7
    assert (not x.any()) == (float(norm) <= threshold)  # exactly 0, and only then


def test_the_proximal_step_of_nothing_is_nothing():
    zero = shrunk(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert torch.isfinite(zero).all()
    assert zero[1] == 0


def blobs(n=600, classes=4, features=12):
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(classes, features, generator=generator)
    y = torch.arange(n) % classes
    return centres[y] + torch.randn(n, features, generator=generator), y


def network(norm=True):
    def layer(i, o):
        return [nn.Linear(i, o), *([nn.BatchNorm1d(o)] if norm else []), nn.ReLU()]

    return nn.Sequential(*layer(12, 24), *layer(24, 20), nn.Linear(20, 4))


def study_of(model=network, **settings):
    x, y = blobs()
    recipe = settings.pop("recipe", Recipe(epochs=4, batch_size=32, lr=0.1))
    return Study(
        model=model, data=lambda: ((x[:400], y[:400]), (x[400:], y[400:])), recipe=recipe,
        **{"budget": Budget(macs="0.5x", params="any"), "over": 2.0, **settings},
    )  # fmt: skip


def parts_of(study, **options):
    """The pruner plan, an over-wide space with fresh weights and the loop of a study."""
    data = study.data()
    space = build_space(study, data)
    plan = make_pruner_plan(study, make_plan(study, space), **options)
    torch.manual_seed(0)
    return plan, space.at(plan.plan.over_wide_seed), RecipeLoop(study.recipe, data)


@pytest.mark.parametrize("norm", [True, False])
def test_group_l1_ends_with_exact_zeros_near_the_budget(norm):
    _, space, loop = parts_of(study_of(lambda: network(norm), recipe=Recipe(epochs=8, batch_size=16, lr=0.1)))
    limits = {r: c / 4 for r, c in space.cost(space.widths).items()}
    l1 = GroupL1(space, space.cost, limits, steps=loop.closing, pressure="cost")
    loop.fit(space.model, 0, after_step=l1.after_step)
    assert l1.price.taken == loop.steps
    scores = l1.scores()
    parts = np.split(scores > 0, np.cumsum(list(space.widths.values()))[:-1])
    spent = space.cost({v: max(1, int(open_.sum())) for v, open_ in zip(space.widths, parts, strict=True)})
    assert 0.4 < max(spent[r] / limits[r] for r in limits) < 1.5
    ones = dict.fromkeys(space.widths, 1)
    keep = cut(scores, space.widths, Constraints(space.cost, limits, ones, ones))
    net = space.compact(keep)
    loop.fit(net, 1)
    assert loop.evaluate(net, "validation").accuracy > 0.9


def test_group_l1_lets_go_when_the_budget_is_met():
    _, space, _ = parts_of(study_of())
    full = space.cost(space.widths)
    l1 = GroupL1(space, space.cost, {r: 2 * c for r, c in full.items()}, steps=10, pressure="cost")
    before = l1.groups.norms()
    for _ in range(10):
        l1.after_step(0.1)
    assert torch.equal(l1.groups.norms(), before)


# Sweeps --------------------------------------------------------------------------------------------------


def test_a_level_is_reached_by_equal_factors_in_its_epochs():
    for epochs in range(2, 30):
        steps = gradually(0.5, 0.125, epochs)
        shares, after = zip(*steps, strict=True)
        assert sum(after) == epochs and min(after) >= 1
        assert shares[-1] == 0.125
        factors = np.diff(np.log([0.5, *shares]))
        assert np.allclose(factors, factors[0])
        assert after[-1] >= epochs / 2  # the other half is for retraining


def test_removed_weights_stay_zero_and_outputs_keep_their_best():
    _, space, loop = parts_of(study_of(recipe=Recipe(epochs=2, batch_size=32, lr=0.1, momentum=0.9)))
    loop.fit(space.model, 0)
    weights = Weights(space)
    total = sum(w.numel() for w in space.model.parameters())
    gone = {n: torch.zeros_like(m, dtype=torch.bool) for n, m in weights.masks.items()}
    for level in (0.5, 0.1, 0.02):
        prune_weights(weights, loop, level, 0)
        for name, w in space.model.named_parameters():
            zero = weights.masks[name] == 0
            assert not w.detach()[zero].any()
            assert (zero | ~gone[name]).all()  # what was removed once never comes back
            gone[name] = zero
        assert weights.removed() == pytest.approx(1 - int(level * total) / total)
        head = weights.masks["6.weight"]
        assert (head.sum(1) >= OUTPUTS_KEEP).all()


def test_keep_best_keeps_the_largest_saliencies():
    _, space, _ = parts_of(study_of())
    weights = Weights(space)
    saliency = {n: torch.rand_like(w) for n, w in weights.weights.items()}
    weights.keep_best(saliency, 0.3)
    flat = torch.cat([s.flatten() for s in saliency.values()])
    mask = torch.cat([m.flatten() for m in weights.masks.values()]).bool()
    best = torch.zeros_like(mask)
    best[flat.topk(int(0.3 * len(flat))).indices] = True
    assert (mask != best).sum() <= 2 * 4 * OUTPUTS_KEEP  # of the four classes
    assert mask.sum() == best.sum()


@pytest.mark.parametrize("pruner", ["l0", "l1", "taylor", "obd-neurons"])
def test_a_level_removes_units_for_real_and_keeps_to_its_macs(pruner):
    plan, space, loop = parts_of(study_of())
    loop.fit(space.model, 0)
    left, samples = prune_units(pruner, plan, space, loop, 0.25, 1)
    assert sum(p.numel() for p in left.model.parameters()) == space.cost.at(left.widths)["params"]
    assert 0.15 < plan.share(left.widths) <= 0.25
    assert samples == 4 * 384  # the recipe's epochs, of whole batches
    assert loop.evaluate(left.model, "validation").accuracy > 0.9


def test_all_pruners_start_from_one_network_and_see_as_many_samples():
    study = study_of(seeds=1)
    data = study.data()
    runner = TrialRunner(
        study, make_pruner_plan(study, make_plan(study, build_space(study, data)), levels=["1/2", "1/8"])
    )
    found = {}
    for slot in runner._plans.slots():
        outcome = runner.run(slot)
        found[slot.branch.arm] = outcome
        start, *rest = outcome["levels"]
        assert start["weights_removed"] == start["neurons_removed"] == start["macs_saved"] == 0
        assert [row["level"] for row in rest] == [0.5, 0.125]
        for row in rest:
            if slot.branch.arm == "obd":
                assert row["macs_saved"] == row["neurons_removed"] == 0
                assert row["weights_removed"] == pytest.approx(1 - row["level"], abs=1e-3)
            else:
                assert row["macs_saved"] >= 1 - row["level"]
                assert row["weights_removed"] > row["neurons_removed"] > 0  # neurons are not weights
    assert len({outcome["levels"][0]["val_loss"] for outcome in found.values()}) == 1
    whole = 3 * found["obd"]["macs"] * 384 * 4 * 3  # three times the recipe's epochs, all of them dense
    assert found["obd"]["training_macs"] == whole
    assert all(o["training_macs"] < whole for pruner, o in found.items() if pruner != "obd")


def test_time_saved_is_measured():
    """Eight times fewer MACs in layers that are nothing but arithmetic take less time; the same ones do not."""
    wide = study_of(lambda: nn.Sequential(nn.Linear(12, 700), nn.ReLU(), nn.Linear(700, 700), nn.ReLU(), nn.Linear(700, 4)),
                    recipe=Recipe(epochs=1, batch_size=128))  # fmt: skip
    plan, space, loop = parts_of(wide, levels=["1/8"])
    for pruner, low, high in (("taylor", 0.3, 0.95), ("obd", -0.3, 0.3)):
        levels, _ = sweep(pruner, plan, space.at(plan.plan.over_wide_seed), loop, 0)
        assert low < levels[-1]["time_saved"] < high


# Measures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruner", ["l0", "taylor"])
def test_a_measure_finds_the_layer_that_is_too_wide(pruner):
    """Of two layers one has 44 units that are copies of 4: more of that one goes."""

    def model():
        return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 4))

    def init(net):
        with torch.no_grad():
            net[2].weight.copy_(
                net[2].weight[:4].repeat(-(-len(net[2].weight) // 4), 1)[: len(net[2].weight)]
            )
            net[2].bias.zero_()
            net[4].weight[:, 4:].mul_(1e-3)

    study = study_of(
        model,
        init=init,
        replicas=1,
        pruner=pruner,
        pressure="neurons",
        recipe=Recipe(epochs=6, batch_size=32, lr=0.05),
    )
    data = study.data()
    plan = make_plan(study, build_space(study, data))
    assert plan.pruner == pruner
    found = TrialRunner(study, SearchPlan(plan)).run(Slot("measure", 0, 0, plan.over_wide(plan.widths)))
    assert plan.constraints().allow(found["kept"])
    assert found["prune_ratio"]["2"] > found["prune_ratio"]["0"]
    assert found["accuracy"] > 0.5


def test_under_the_pressure_of_cost_a_score_is_per_mac():
    plan, space, loop = parts_of(study_of())
    loop.fit(space.model, 0)
    constraints = plan.constraints(0.5)
    neurons = scores("taylor", space, loop, Aim(space.cost, constraints.budget, "neurons"), 0)
    cost = scores("taylor", space, loop, Aim(space.cost, constraints.budget, "cost"), 0)
    counts = np.array(list(space.widths.values()))
    value, gradient = space.cost.gradient("macs", counts.astype(float))
    np.testing.assert_allclose(cost, neurons / counts.sum() / np.repeat(gradient / value, counts), rtol=1e-4)


# The answer ----------------------------------------------------------------------------------------------


def run_with(shares, accuracies):
    rows = [(0.0, 0.9), *zip(shares, accuracies, strict=True)]
    return [{"weights_removed": s, "macs_saved": s, "val_accuracy": a, "val_loss": 1 - a} for s, a in rows]


def test_the_winner_is_read_off_at_equal_shares():
    runs = {
        "a": {0: run_with([0.5, 0.8], [0.9, 0.6]), 1: run_with([0.5, 0.8], [0.9, 0.6])},
        "b": {0: run_with([0.4, 0.75], [0.8, 0.75]), 1: run_with([0.4, 0.75], [0.8, 0.76])},
        "none": {0: run_with([0, 0], [0.99, 0.99]), 1: run_with([0, 0], [0.99, 0.99])},
    }
    found = winner(runs, [0.5, 0.25], "macs_saved")
    assert found["at"] == [0.5, 0.75]
    assert found["mean"].keys() == {"a", "b"}  # what saves nothing is not compared
    assert found["mean"]["a"] == pytest.approx((0.9 + 0.65) / 2)
    at_half = 0.8 + 0.1 / 0.35 * (0.755 - 0.8)
    assert found["mean"]["b"] == pytest.approx((at_half + 0.755) / 2)
    assert (found["pruner"], found["next"]) == ("a", "b")
    assert found["gain"]["mean"] == pytest.approx(found["mean"]["a"] - found["mean"]["b"])


def test_without_accuracy_the_smaller_loss_wins_and_one_pruner_wins_nothing():
    runs = {"a": {0: run_with([0.5], [0.9])}, "b": {0: run_with([0.5], [0.8])}}
    for of in runs.values():
        for row in of[0]:
            row["val_accuracy"] = None
    found = winner(runs, [0.5], "weights_removed")
    assert (found["pruner"], found["quality"], found["gain"]) == ("a", "val_loss", None)
    assert found["mean"] == pytest.approx({"a": 0.1, "b": 0.2})
    assert winner({"a": runs["a"], "b": {}}, [0.5], "weights_removed") is None

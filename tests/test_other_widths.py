"""What a search with other widths would break on: sizes that a network computes itself, and routing by weights."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import images, vectors
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study, UsageError
from widthsearch.driver.prepare import make_plan, prepare
from widthsearch.plans.kinds import SearchPlan
from widthsearch.plans.plan import Slot
from widthsearch.space import trace
from widthsearch.space.rehearsal import wider_widths
from widthsearch.space.tangles import told_apart
from widthsearch.study.file import StudyFile
from widthsearch.training.recipe_loop import make_optimizer
from widthsearch.training.trial import TrialRunner

# ---------------------------------------------------------------- a network that divides its units by itself


class HeadsBySlices(nn.Module):
    def __init__(self, d: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.e = nn.Linear(5, d)
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))
        self.o = nn.Linear(d, 3)
        self.h, self.hd = heads, d // heads

    def forward(self, x: Tensor) -> Any:
        x = self.e(x)
        q, k, v = self.q(x), self.k(x), self.v(x)
        out = []
        for i in range(self.h):
            part = slice(i * self.hd, (i + 1) * self.hd)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / self.hd**0.5
            out.append(scores.softmax(-1) @ v[..., part])
        return self.o(torch.cat(out, -1)).mean(1)


class ShiftInTime(nn.Module):
    """The Temporal Shift Module: an eighth of the channels comes from the next frame, one from the one before."""

    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, c, 3, padding=1)
        self.b = nn.Conv2d(c, c, 3, padding=1)
        self.o = nn.Linear(c, 2)

    def forward(self, x: Tensor) -> Any:
        b, t = x.shape[:2]
        x = F.relu(self.a(x.flatten(0, 1))).unflatten(0, (b, t))
        f = x.shape[2] // 8
        out = torch.zeros_like(x)
        out[:, :-1, :f] = x[:, 1:, :f]
        out[:, 1:, f : 2 * f] = x[:, :-1, f : 2 * f]
        out[:, :, 2 * f :] = x[:, :, 2 * f :]
        return self.o(self.b(out.flatten(0, 1)).mean((2, 3))).view(b, t, 2).mean(1)


class InThree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.cat([z * k for k, z in enumerate(torch.tensor_split(self.a(x), 3, 1), 1)], 1))


def test_a_size_that_does_not_grow_with_its_units_is_left_out() -> None:
    space = trace(HeadsBySlices(), vectors(7, 5))
    assert space.widths == {"e": 24}
    assert [(f.name, f.width, f.reason) for f in space.frozen][0] == (
        "q",
        6,
        "a search with other widths of it fails: "
        "the network's code divides units by itself: made with q: 13, it has q: 6",
    )
    assert space.at({"e": 96}).widths == {"e": 96}


@pytest.mark.parametrize(
    ("model", "example", "widths"),
    [(ShiftInTime(), (torch.randn(2, 4, 3, 6, 6),), {"b": 16}), (InThree(), vectors(8), {})],
    ids=["shift in time", "tensor_split"],
)
def test_parts_of_computed_sizes_are_left_out(
    model: nn.Module, example: tuple[Any, ...], widths: dict[str, int]
) -> None:
    space = trace(model, example)
    assert space.widths == widths
    assert [f.name for f in space.frozen] == ["a", "a#2", "a#3"]
    for frozen in space.frozen:
        assert "fails: the network's code divides units by itself: made with a" in frozen.reason
        assert "{" not in frozen.reason


def test_a_network_whose_heads_do_not_follow_is_measured() -> None:
    x, y = torch.randn(48, 7, 5), torch.arange(48) % 3
    study = Study(
        model=HeadsBySlices,
        data=lambda: ((x[:32], y[:32]), (x[32:], y[32:])),
        budget=Budget(macs="0.8x", params="any"),
        recipe=Recipe(epochs=1, batch_size=16, lr=0.05),
    )
    plan = prepare(StudyFile(study, Path(__file__), "study")).plan
    found = TrialRunner(study, SearchPlan(plan)).run(Slot("measure", 1, 0, plan.over_wide_seed))
    assert math.isfinite(found["val_loss"])


def test_the_rehearsed_widths_are_wider_and_tell_equal_variables_apart() -> None:
    widths = {"a": 2, "b": 2, "c": 2, "d": 40, "e": 40}
    found = wider_widths(widths, ["a", "b", "c", "d"], random.Random(0))
    assert found["e"] == 40
    assert all(widths[name] < found[name] <= max(5, 2.5 * widths[name]) for name in "abcd")
    assert len({found[name] for name in "abc"}) == 3


# ---------------------------------------------------------------- ties that equal random widths would hide


class Heads(nn.Module):
    def __init__(self, size: int, heads: int = 4) -> None:
        super().__init__()
        self.h, self.hd, self.scale = heads, size, size**-0.5
        self.e = nn.Linear(6, 8)
        self.q, self.k, self.v = (nn.Linear(8, heads * size) for _ in range(3))
        self.o = nn.Linear(heads * size, 3)

    def forward(self, x: Tensor) -> Any:
        b = len(x)
        x = self.e(x)
        q, k, v = (f(x).view(b, -1, self.h, self.hd).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v
        return self.o(x.transpose(1, 2).reshape(b, -1, self.h * self.hd))


class NonLocal(nn.Module):
    def __init__(self, inter: int) -> None:
        super().__init__()
        self.inter = inter
        self.i = nn.Conv2d(3, 10, 1)
        self.g, self.t, self.p = (nn.Conv2d(10, inter, 1) for _ in range(3))
        self.w, self.o = nn.Conv2d(inter, 10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.i(x)
        b = len(x)
        g, t, p = (f(x).view(b, self.inter, -1) for f in (self.g, self.t, self.p))
        y = (t.transpose(1, 2) @ p / 16) @ g.transpose(1, 2)
        y = self.w(y.transpose(1, 2).reshape(b, self.inter, *x.shape[2:]))
        return self.o((x + y).mean((2, 3)))


@pytest.mark.parametrize("size", range(3, 13))
def test_heads_of_any_size_are_tied(size: int) -> None:
    space = trace(Heads(size), vectors(5, 6), keep_heads=True)
    assert space.widths == {"e": 8, "q": size}
    assert space.frozen == ()


@pytest.mark.parametrize("inter", [3, 4, 5, 6, 7, 8, 9, 11])
def test_views_by_one_size_are_tied_at_any(inter: int) -> None:
    space = trace(NonLocal(inter), images(3, 4))
    assert space.widths == {"i": 10, "g": inter}
    assert space.frozen == ()


def test_equal_variables_are_told_apart_as_long_as_there_are_choices() -> None:
    assert told_apart([5, 5, 6, 5, 5], [7, 7, 7, 7, 9], lambda own: range(3, 12, 2)) == [7, 9, 7, 3, 11]
    assert told_apart([4, 4, 4], [3, 3, 3], lambda own: (3, 5)) == [3, 5, 3]


# ---------------------------------------------------------------- which layers run depends on the weights


class Experts(nn.Module):
    def __init__(self, d: int = 16, h: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.f, self.i, self.gate = nn.Linear(8, 20), nn.Linear(20, d), nn.Linear(d, experts)
        self.ex = nn.ModuleList(
            nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, d)) for _ in range(experts)
        )
        self.o = nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.i(self.f(x).relu())
        w, chosen = torch.topk(self.gate(x), 2)
        w, out = w.softmax(1), torch.zeros_like(x)
        for k, expert in enumerate(self.ex):
            b, n = torch.where(chosen == k)
            if b.numel() == 0:
                continue
            out[b] += w[b, n, None] * expert(x[b])
        return self.o(x + out)


class Sometimes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 9), nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.c(x + self.b(x) if x.mean() > 0 else x)


DECIDE = "the values of the weights decide"


@pytest.mark.parametrize("seed", range(3))
def test_layers_that_may_not_run_keep_their_widths(seed: int) -> None:
    torch.manual_seed(seed)
    space = trace(Experts(), vectors(8))
    assert space.widths == {"f": 20}
    frozen = {f.name: f.reason for f in space.frozen}
    assert frozen["i"].startswith("whether ex.")
    assert frozen["i"].endswith(
        "runs depends on the values of the weights; with a larger Study(example=...) all layers may run always"
    )
    for name in {"f", "i", "gate", "o"}.symmetric_difference(frozen) - {"f", "o"}:
        assert frozen[name].startswith("whether ex.") or DECIDE in frozen[name]
    for width in range(2, 30):
        torch.manual_seed(width)
        assert space.at({"f": width}).widths == {"f": width}


class NeedsPositive(nn.Module):
    """Runs with its own weights, and not with most fresh ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 32), nn.Linear(32, 24), nn.Linear(24, 4)
        self.c = nn.Parameter(torch.tensor([0.9, 0.1, 0.7]))

    def forward(self, x: Tensor) -> Any:
        prior = torch.distributions.Dirichlet(self.c).log_prob(torch.ones(3) / 3)
        return self.o(self.b(self.a(x).relu()).relu()) * prior


def test_fresh_weights_with_which_the_network_does_not_run_end_no_trace() -> None:
    torch.manual_seed(0)
    assert trace(NeedsPositive(), vectors(6)).widths.items() <= {"a": 32, "b": 24}.items()


def test_experts_that_all_run_have_a_cost_that_the_weights_decide() -> None:
    torch.manual_seed(0)
    space = trace(Experts(), (torch.randn(32, 8),))
    assert space.widths == {"f": 20, "i": 16}
    reason = f"{DECIDE} on which samples its layers run: its cost is not known"
    assert {f.name: f.reason for f in space.frozen if f.name != "gate"} == {
        f"ex.{k}.0": reason for k in range(4)
    }
    readers = {axis.parameter for axis in space.consumers}
    for seed in range(12):  # with most of these weights an expert does not run: it is gated all the same
        torch.manual_seed(seed)
        there = space.at({"f": 5, "i": 9})
        assert {axis.parameter for axis in there.consumers} == readers


@pytest.mark.parametrize("seed", range(4))
def test_where_the_weights_decide_the_whole_cost_nothing_is_searched(seed: int) -> None:
    torch.manual_seed(seed)
    space = trace(Sometimes(), vectors(8))
    assert space.widths == {}
    assert [f.name for f in space.frozen if "values of the weights" in f.reason] == ["a"]


def test_a_layer_that_first_runs_at_a_later_step_is_trained_as_by_the_plain_optimizer() -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            return self.b(x) if steps else x

    recipe = Recipe(epochs=1, batch_size=2, lr=0.1, momentum=0.9)
    torch.manual_seed(0)
    nets = [Later()]
    nets.append(copy.deepcopy(nets[0]))
    weights = [list(net.parameters()) for net in nets]
    decay = recipe.weight_decay
    plain = torch.optim.SGD(weights[1], lr=0.1, momentum=0.9, nesterov=True, weight_decay=decay, fused=False)
    ours, x = make_optimizer(weights[0], recipe), torch.randn(5, 2, 4)
    for steps in range(5):
        for net, optimizer in zip(nets, (ours, plain), strict=True):
            net.zero_grad(set_to_none=True)
            net(x[steps]).square().mean().backward()
            optimizer.step()
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b)


def test_a_budget_too_small_names_what_keeps_its_width() -> None:
    torch.manual_seed(0)
    space = trace(Experts(), (torch.randn(32, 8),))
    nothing = (torch.empty(0), torch.empty(0))
    study = Study(model=Experts, data=lambda: (nothing, nothing), budget=Budget(params="0.01x"))
    kept = r"with what keeps its width: ex\.0\.0, ex\.1\.0, ex\.2\.0, ex\.3\.0 and 1 more"
    with pytest.raises(UsageError, match=rf"the minimum widths alone cost macs=\d+, params=\d+ \({kept}\)"):
        make_plan(study, space)


# ---------------------------------------------------------------- the widths of what is left out


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.up = nn.Linear(8, 128), nn.ConvTranspose2d(32, 3, 3)

    def forward(self, x: Tensor) -> Any:
        return self.up(self.i(x).view(-1, 32, 2, 2))


class ShuffledGroups(nn.Module):
    def __init__(self, c: int = 24, groups: int = 3) -> None:
        super().__init__()
        self.g = groups
        self.a = nn.Conv2d(3, c, 3, padding=1)
        self.b, self.c = nn.Conv2d(c, c, 1, groups=groups), nn.Conv2d(c, c, 1, groups=groups)
        self.o = nn.Linear(c, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x).relu())
        x = x.unflatten(1, (self.g, -1)).transpose(1, 2).flatten(1, 2)
        return self.o(self.c(x).mean((2, 3)))


def test_what_a_literal_view_freezes_has_the_width_of_its_channels() -> None:
    space = trace(Decoder(), vectors(8))
    assert [(f.name, f.width) for f in space.frozen] == [("i", 32)]


def test_what_only_lives_or_dies_together_has_the_width_of_its_layer() -> None:
    space = trace(ShuffledGroups(), images())
    assert [(f.name, f.width) for f in space.frozen] == [("b", 24)]

"""The width space: which variables there are, what they cost, and the model at other widths."""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactness import counted_macs, parameter_count, random_widths
from networks import (
    NETWORKS,
    BasicBlock,
    Between,
    Filter,
    LiteralView,
    Network,
    ResNet,
    conv1d,
    images,
    mlp,
    outputs,
    randomise,
    vectors,
)
from torch import Tensor, nn

from widthsearch.errors import UsageError
from widthsearch.space import WidthSpace, trace

ALL = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


@pytest.fixture(autouse=True)
def one_thread_and_fixed_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@functools.cache
def space_of(network: Network) -> WidthSpace:
    """One trace for all the tests that only look."""
    return trace(network.factory(), network.example)


@ALL
def test_finds_exactly_the_variables_in_order_of_execution(network: Network) -> None:
    space = space_of(network)
    assert tuple(space.widths) == network.variables
    assert [f.name for f in space.frozen if "vocabulary" not in f.reason] == []


@ALL
def test_cost_is_torchs_own_count_at_any_widths(network: Network) -> None:
    space = space_of(network)
    for widths in (space.widths, *(random_widths(space, seed) for seed in range(3))):
        resized = space.resize(widths)
        assert space.cost.at(widths) == {
            "macs": counted_macs(resized, network.example),
            "params": parameter_count(resized),
        }


@ALL
def test_resized_models_train_and_load_each_others_weights(network: Network) -> None:
    space = space_of(network)
    widths = random_widths(space, 5, least=2)
    first, second = space.resize(widths), space.resize(widths)
    result = outputs(first.train(), network.example)
    assert result.shape == outputs(copy.deepcopy(space.model), network.example).shape
    result.square().mean().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in first.parameters())
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(outputs(first.eval(), network.example), outputs(second.eval(), network.example))


@pytest.mark.sample(7)
@ALL
def test_compact_is_the_model_whose_removed_units_nobody_reads(network: Network) -> None:
    model = randomise(network.factory()).eval()
    space = trace(model, network.example)
    numbers = np.random.default_rng(0)
    keep = {name: numbers.random(width) < 0.6 for name, width in space.widths.items()}
    for mask in keep.values():
        mask[0], mask[1] = True, False
    kept = np.concatenate(list(keep.values()))
    zeroed = copy.deepcopy(model)
    parameters = dict(zeroed.named_parameters())
    for axis in space.consumers:
        dead = np.flatnonzero((axis.unit >= 0) & ~kept[axis.unit])
        with torch.no_grad():
            parameters[axis.parameter].index_fill_(axis.dim, torch.as_tensor(dead), 0.0)
    compacted = space.compact(keep)
    with torch.no_grad():
        got, expected = outputs(compacted, network.example), outputs(zeroed, network.example)
        untouched = outputs(model, network.example)
    assert (got - expected).abs().max() < 1e-5
    assert (untouched - expected).abs().max() > 1e-5  # or the comparison says nothing
    kept_widths = {name: int(mask.sum()) for name, mask in keep.items()}
    assert parameter_count(compacted) == space.cost.at(kept_widths)["params"]
    assert not compacted.training


@ALL
def test_resized_module_says_and_holds_what_a_fresh_one_does(network: Network) -> None:
    space = space_of(network)
    if not network.takes_widths:
        assert repr(space.resize(space.widths)) == repr(network.factory())
        return
    widths = random_widths(space, 7, least=2)
    resized, built = space.resize(widths), network.factory(*widths.values())
    assert repr(resized) == repr(built)
    shapes = {name: tensor.shape for name, tensor in built.state_dict().items()}
    assert {name: tensor.shape for name, tensor in resized.state_dict().items()} == shapes


@ALL
def test_at_sees_the_same_space_at_other_widths(network: Network) -> None:
    space = space_of(network)
    widths = random_widths(space, 3, least=2)
    there = space.at(widths)
    assert list(there.widths.items()) == list(widths.items())
    assert [(a.parameter, a.dim) for a in there.consumers] == [(a.parameter, a.dim) for a in space.consumers]
    assert there.cost.at(random_widths(space, 4)) == space.cost.at(random_widths(space, 4))
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]), strict=False))
    parameters = dict(there.model.named_parameters())
    read = np.concatenate([axis.unit for axis in there.consumers])
    for name, start in starts.items():
        assert set(range(start, start + widths[name])) <= set(read.tolist())
    for axis in there.consumers:
        assert len(axis.unit) == parameters[axis.parameter].shape[axis.dim]


@ALL
def test_trace_leaves_model_and_random_numbers_alone(network: Network) -> None:
    model = network.factory().train()
    before = copy.deepcopy(model.state_dict())
    python, legacy, state = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    space = trace(model, network.example)
    assert random.getstate() == python
    assert str(np.random.get_state()) == legacy
    assert torch.equal(torch.get_rng_state(), state)
    assert space.model is model
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_consumers_of_a_flattened_map_repeat_each_channel() -> None:
    space = trace(NETWORKS["lenet"].factory(), NETWORKS["lenet"].example)
    axis = next(a for a in space.consumers if a.parameter == "fc1.weight")
    assert axis.unit.tolist() == np.repeat(np.arange(6, 14), 16).tolist()


def test_consumers_of_a_concatenation_mark_constants() -> None:
    class WithInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Any:
            return self.b(torch.cat([x, self.a(x)], 1))

    space = trace(WithInput(), vectors(3))
    assert [a.unit.tolist() for a in space.consumers] == [[-1, -1, -1, 0, 1, 2, 3]]


# ---------------------------------------------------------------- initialisation


def test_resize_follows_the_models_own_initialisation() -> None:
    model = ResNet((32, 48, 64), blocks=1)
    nn.init.normal_(model.fc.weight, std=0.3)
    space = trace(model, images())
    widths = {name: 2 * width for name, width in space.widths.items()}
    resized = space.resize(widths)
    for name, module in resized.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            own = model.get_parameter(f"{name}.weight").detach()
            expected = float(own.std()) * (own[0].numel() / weight[0].numel()) ** 0.5
            assert float(weight.std()) == pytest.approx(expected, rel=0.1), name
        if isinstance(module, BasicBlock):
            assert not module.bn2.weight.any(), name
    assert float(resized.get_parameter("fc.weight").detach().std()) == pytest.approx(0.3 / 2**0.5, rel=0.15)


def test_default_initialisation_is_reset_parameters_to_the_last_bit() -> None:
    space = trace(conv1d(), vectors(4, 16))
    widths = {"0": 11, "4": 5, "9": 9}
    resized = space.resize(widths)
    torch.manual_seed(1)
    again = space.resize(widths)
    torch.manual_seed(1)
    built = conv1d(*widths.values())
    assert not torch.equal(resized.get_parameter("0.weight"), again.get_parameter("0.weight"))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), built.parameters(), strict=True))


def test_at_keeps_the_initialisation_of_the_original() -> None:
    model = mlp(64, 48)
    nn.init.normal_(model.get_parameter("3.weight"), std=1.0)
    space = trace(model, vectors(10))
    there = space.at({"0": 60, "3": 50}, model=mlp(60, 50))
    assert float(there.resize(there.widths).get_parameter("3.weight").detach().std()) == pytest.approx(
        (64 / 60) ** 0.5, rel=0.1
    )


def test_used_statistics_start_anew_and_requires_grad_stays() -> None:
    model = randomise(conv1d())
    model.get_parameter("4.weight").requires_grad_(False)
    space = trace(model, vectors(4, 16))
    resized = space.resize({"0": 11, "4": 5, "9": 9})
    assert torch.equal(resized.get_buffer("1.running_mean"), torch.zeros(11))
    assert torch.equal(resized.get_buffer("1.running_var"), torch.ones(11))
    assert not resized.get_parameter("4.weight").requires_grad
    assert resized.get_parameter("0.weight").requires_grad


# ---------------------------------------------------------------- what is frozen, and why


FROZEN: dict[str, tuple[nn.Module, str]] = {
    "softmax": (Between(nn.Softmax(dim=1)), "softmax in 'something'"),
    "of all units": (
        Between(lambda x: x * x.prod(1, keepdim=True)),
        "prod in the model's own forward: reduces",
    ),
    "index": (Between(lambda x: x[:, [3, 1, 2, 0]], 4), "index in the model's own forward: picks"),
    "flip": (Between(lambda x: x.flip(1)), "flip in the model's own forward: mixes or reorders"),
    "cumsum": (Between(lambda x: x.cumsum(1)), "cumsum in the model's own forward"),
    "roll": (Between(lambda x: torch.roll(x, 1, 1)), "roll in the model's own forward: mixes or reorders"),
    "no rule": (Between(lambda x: x.renorm(2, 1, 1.0)), "renorm in the model's own forward: no rule"),
    "crop": (
        Between(lambda x: F.pad(x, (0, 0, 0, 0, -1, -1)), 6),
        "constant_pad_nd in the model's own forward: takes a part of these units",
    ),
    "constant size": (Between(lambda x: x * torch.arange(8.0).view(8, 1, 1)), "tied to a constant size (8)"),
    "buffer": (Between(Filter()), "something.table is not trained"),
    "product": (Between(lambda x: torch.einsum("bchw,bchw->bhw", x, x.tanh())[:, None], 1), "einsum"),
}


@pytest.mark.parametrize(("model", "reason"), FROZEN.values(), ids=FROZEN.keys())
def test_freezes_what_it_cannot_follow_and_says_why(model: nn.Module, reason: str) -> None:
    space = trace(model, images())
    found = {f.name: f for f in space.frozen}
    assert "first" in found
    if reason != "einsum":  # its own operations are torch's affair
        assert reason in found["first"].reason
    assert found["first"].width == 8
    assert "first" not in space.widths
    assert "last" in space.widths
    widths = random_widths(space, 1)
    resized = space.resize(widths)
    assert space.cost.at(widths) == {
        "macs": counted_macs(resized, images()),
        "params": parameter_count(resized),
    }


def test_a_literal_view_is_found_by_trying() -> None:
    space = trace(LiteralView(), images(1))
    assert tuple(space.widths) == ("conv1", "fc1")
    assert [(f.name, f.width) for f in space.frozen] == [("conv2", 8)]
    assert "the forward pass breaks in the model's own forward: RuntimeError: shape '[-1, 128]'" in (
        space.frozen[0].reason
    )
    assert tuple(space.at({"conv1": 5, "fc1": 9}).widths) == ("conv1", "fc1")
    assert tuple(trace(LiteralView(), images(1), verify=False).widths) == ("conv1", "conv2", "fc1")


def test_widths_that_only_move_together_are_found_by_trying() -> None:
    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            assert x.shape[1] == 8, "not eight"
            return self.c(self.b(x))

    space = trace(Coupled(), vectors(5))
    assert tuple(space.widths) == ("b",)
    assert space.frozen[0].reason.endswith("AssertionError: not eight")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), "attention"),
        (nn.LSTM(8, 6, batch_first=True), "recurrent"),
    ],
    ids=["attention", "lstm"],
)
def test_attention_and_recurrence_are_frozen_but_counted(module: nn.Module, name: str) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.inside = nn.Linear(3, 8), module

        def forward(self, x: Tensor) -> Any:
            y = self.inside(self.before(x))
            return y[0] if isinstance(y, tuple) else y

    space = trace(Around(), vectors(5, 3))
    assert space.frozen or space.widths
    widths = random_widths(space, 2)
    resized = space.resize(widths)
    assert space.cost.at(widths)["params"] == parameter_count(resized)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert space.cost.at(widths)["macs"] == counted_macs(resized, vectors(5, 3))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def test_residual_to_the_input_and_the_output_are_no_variables() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

        def forward(self, x: Tensor) -> Any:
            return x + self.down(F.relu(self.up(x)))

    space = trace(Residual(), vectors(6))
    assert space.widths == {"up": 9}
    assert space.frozen == ()


# ---------------------------------------------------------------- wrong use


def test_a_model_that_does_not_run_is_a_usage_error_in_one_line() -> None:
    with pytest.raises(UsageError, match="does not run on the example: RuntimeError: mat1 and mat2") as error:
        trace(mlp(), vectors(11))
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="without any tensor"):
        trace(nn.Linear(3, 2).requires_grad_(False).apply(lambda m: setattr(m, "forward", len)), vectors(3))


class Force(nn.Module):
    """What a potential network derives by its input."""

    def __init__(self, *, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self.energy = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad() if self.enabled else nullcontext():
            x = x.requires_grad_()
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def test_a_forward_that_takes_derivatives_is_told_to_enable_gradients() -> None:
    example = vectors(3)[0]
    with pytest.raises(UsageError, match="runs on the example, but not without gradients") as error:
        trace(Force(enabled=False), example)
    assert "torch.enable_grad()" in str(error.value)
    assert "\n" not in str(error.value)
    broken = Force(enabled=False)
    broken.energy.register_forward_hook(lambda _, args, energy: energy.detach())
    with pytest.raises(UsageError, match="^Force does not run on the example: RuntimeError"):
        trace(broken, example)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a scalar of a tensor with a gradient
        assert trace(Force(enabled=True), example).widths == {"energy.0": 8, "energy.2": 6}


def test_wrong_widths_and_masks_are_refused() -> None:
    space = trace(mlp(), vectors(10))
    with pytest.raises(UsageError, match=r"missing: \['3'\], unknown: \['x'\]"):
        space.resize({"0": 3, "x": 4})
    with pytest.raises(UsageError, match="width of 3 must be a whole number of at least 1 .*, not 0"):
        space.resize({"0": 3, "3": 0})
    with pytest.raises(ValueError, match="below 2 cannot be traced: 3"):
        space.at({"0": 3, "3": 1})
    with pytest.raises(ValueError, match="the model has the widths"):
        space.at({"0": 3, "3": 4}, model=mlp(3, 5))
    everything = np.ones(16, dtype=bool)
    with pytest.raises(ValueError, match="at least one of them true"):
        space.compact({"0": everything, "3": np.zeros(12, dtype=bool)})
    with pytest.raises(ValueError, match="exactly the variables"):
        space.compact({"0": everything})

"""Initial values that are more than a draw: what resized networks keep of them, and what is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness import costs_are_torchs, half_of_each, removal
from networks import mlp, vectors
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study
from widthsearch.driver.prepare import prepare
from widthsearch.plans.plan import Slot
from widthsearch.plans.search import SearchPlan
from widthsearch.space import WidthSpace, trace
from widthsearch.study.file import StudyFile
from widthsearch.training.pruners.groups import Groups
from widthsearch.training.pruners.saliency import fisher_diagonal, obd
from widthsearch.training.recipe_loop import train
from widthsearch.training.trial import TrialRunner

BATCH = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """An LSTM with the ones of Jozefowicz et al. 2015 in the biases of its forget gate."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTM(5, width, batch_first=True), nn.Linear(width, 2)
        for bias in (self.cell.bias_ih_l0, self.cell.bias_hh_l0):
            nn.init.zeros_(bias)
        nn.init.ones_(self.cell.bias_ih_l0[width : 2 * width])

    def forward(self, x: Tensor) -> Any:
        return self.last(self.cell(x)[0])


class Conditional(nn.Module):
    """A scale around one and a shift of zero per class, side by side in one embedding."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 2)
        self.norm, self.classes = nn.BatchNorm1d(width, affine=False), nn.Embedding(4, 2 * width)
        nn.init.normal_(self.classes.weight[:, :width], 1.0, 0.02)
        nn.init.zeros_(self.classes.weight[:, width:])

    def forward(self, x: Tensor, y: Tensor) -> Any:
        scale, shift = self.classes(y).chunk(2, dim=1)
        return self.last(self.norm(self.first(x)) * scale + shift)


class Tables(nn.Module):
    """Decays that all units share, an identity of the input's size, one of a width, steps, a prior."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 2)
        self.decays = nn.Parameter(torch.arange(1.0, 5.0, dtype=torch.float64).log().repeat(width, 1))
        self.mixing = nn.Parameter(torch.eye(5))
        self.steps = nn.Parameter(torch.linspace(0.1, 1.0, 5))
        self.hidden = nn.Parameter(torch.eye(width))
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([0.0, -3.0]))

    def forward(self, x: Tensor) -> Any:
        h = self.first(x @ self.mixing * self.steps + x) @ self.hidden
        return self.last((h[..., None] * torch.ones(4) * self.decays.exp().float()).sum(-1))


def traced(model: nn.Module, example: Any) -> WidthSpace:
    return trace(model, example)


@pytest.mark.parametrize("width", [8, 11, 5])
def test_the_gates_of_a_fused_layer_are_filled_one_by_one(width: int) -> None:
    space = traced(Recurrent(), torch.randn(2, 4, 5))
    cell = space.resize(dict.fromkeys(space.widths, width)).get_submodule("cell")
    zeros, ones = torch.zeros(width), torch.ones(width)
    assert torch.equal(cell.get_parameter("bias_ih_l0"), torch.cat([zeros, ones, zeros, zeros]))
    assert torch.equal(cell.get_parameter("bias_hh_l0"), torch.zeros(4 * width))
    assert space.lost == ()


def test_the_gates_keep_their_values_in_the_space_of_another_width_and_where_it_is_fixed() -> None:
    space = traced(Recurrent(), torch.randn(2, 4, 5))
    there = space.at(dict.fromkeys(space.widths, 6))
    again = there.resize(dict.fromkeys(space.widths, 7)).get_parameter("cell.bias_ih_l0")
    assert again.tolist() == [0.0] * 7 + [1.0] * 7 + [0.0] * 14
    fixed = space.without(dict.fromkeys(space.widths, "fixed"))
    assert torch.equal(
        fixed.resize({}).get_parameter("cell.bias_ih_l0"), space.model.get_parameter("cell.bias_ih_l0")
    )


def test_the_halves_of_an_embedding_are_drawn_one_by_one() -> None:
    space = traced(Conditional(), (BATCH, torch.tensor([0, 1])))
    (name,) = space.widths
    scale, shift = space.resize({name: 100}).get_parameter("classes.weight").detach().chunk(2, dim=1)
    assert not shift.any()
    assert float(scale.mean()) == pytest.approx(1.0, abs=0.005)
    assert float(scale.std()) == pytest.approx(0.02, rel=0.2)
    assert space.lost == ()


def test_rows_repeat_and_sizes_without_a_width_keep_their_values() -> None:
    model = Tables()
    space = traced(model, BATCH)
    assert "hidden" in space.widths
    assert space.lost == ("hidden",)
    resized = space.resize({name: width + 3 for name, width in space.widths.items()})
    assert torch.equal(resized.get_parameter("decays"), model.decays[:1].expand(11, 4))
    for name in ("mixing", "steps", "last.bias"):
        assert torch.equal(resized.get_parameter(name), model.get_parameter(name)), name
    assert resized.get_parameter("hidden").detach().unique().numel() == 121  # noise, which is said


def test_a_pattern_is_kept_where_its_widths_are_fixed() -> None:
    space = traced(Tables(), BATCH)
    fixed = space.without({name: "fixed" for name in ("first", "hidden") if name in space.widths})
    assert fixed.lost == ()
    resized = fixed.resize(dict(fixed.widths))
    assert torch.equal(resized.get_parameter("hidden"), torch.eye(8))


def test_what_is_a_pattern_in_part_is_drawn_by_every_network() -> None:
    """Rows of zeros in a table whose size no width changes: copies of the rest would be the same draw."""
    model = nn.Sequential(nn.Embedding(20, 24), nn.Sigmoid(), nn.Linear(24, 16), nn.Linear(16, 3))
    table = model[0].weight
    nn.init.normal_(table, std=0.5)
    with torch.no_grad():
        table[:3] = 0.0
    space = trace(model, torch.arange(6)).without({"0": "kept"})
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        tables.append(space.resize(space.widths)[0].weight)
    assert not torch.equal(*tables)
    assert "0.weight" in space.lost


def test_a_mean_that_no_reset_gives_is_kept() -> None:
    model = mlp(64, 48)
    nn.init.normal_(model.get_parameter("0.bias"), 1.0, 0.01)
    space = traced(model, vectors(10))
    bias = space.resize({"0": 100, "3": 48}).get_parameter("0.bias").detach()
    assert float(bias.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(bias.std()) == pytest.approx(0.01, rel=0.4)


def with_padding() -> nn.Module:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.last = nn.Embedding(3, 8, padding_idx=0), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.last(self.words(x))

    return Words()


USUAL: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (mlp, vectors(10)),
    "a row of zeros": (with_padding, torch.tensor([[1, 2]])),
    "gates": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)),
        torch.randn(2, 3, 5),
    ),
}


@pytest.mark.parametrize(("make", "example"), USUAL.values(), ids=USUAL.keys())
def test_usual_initial_values_have_no_pattern(make: Callable[[], nn.Module], example: Any) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        space = traced(make(), example)
        assert space.lost == ()
        assert not space._initialisation.patterns


@pytest.mark.parametrize("own", [None, lambda model: None])
def test_what_is_lost_is_said_before_anything_is_trained(own: Any) -> None:
    x, y = torch.randn(40, 5), torch.arange(40) % 2
    study = Study(
        model=Tables,
        data=lambda: ((x, y), (x, y)),
        budget=Budget(macs="0.5x"),
        recipe=Recipe(epochs=1, batch_size=8, lr=0.1),
        init=own,
    )
    notes = [n for n in prepare(StudyFile(study, Path(__file__), "study")).notes if "pattern" in n]
    expected = (
        "initial values with a pattern that other widths do not define: hidden; every training starts there "
        "with random numbers of about the same spread: set them in Study(init=...)"
    )
    assert notes == ([expected] if own is None else [])


# ---------------------------------------------------------------- complex numbers


class Spectral(nn.Module):
    """The layer of a Fourier neural operator (Li et al. 2020)."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, width, modes, dtype=torch.cfloat) / width)

    def forward(self, x: Tensor) -> Tensor:
        modes = self.weight.shape[-1]
        kept = torch.einsum("bix,iox->box", torch.fft.rfft(x)[..., :modes], self.weight)
        padded = nn.functional.pad(kept, (0, x.shape[-1] // 2 + 1 - modes))
        return torch.fft.irfft(padded, n=x.shape[-1])


class Operator(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, width, 1), nn.Conv1d(width, 1, 1)
        self.spectral = nn.ModuleList(Spectral(width, 4) for _ in range(2))
        self.local = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for spectral, local in zip(self.spectral, self.local, strict=True):
            x = nn.functional.gelu(spectral(x) + local(x))
        return self.last(x)


def test_a_network_with_complex_weights_is_searched() -> None:
    example = torch.randn(2, 2, 16)
    space = traced(Operator().eval(), example)
    assert space.widths == {"first": 12, "spectral.0": 12, "spectral.1": 12}
    assert space.frozen == ()
    assert costs_are_torchs(space, example)
    wide = space.resize(dict.fromkeys(space.widths, 24))
    weight = wide.get_parameter("spectral.0.weight").detach()
    own = space.model.get_parameter("spectral.0.weight").detach()
    for part, of in ((weight.real, own.real), (weight.imag, own.imag)):
        assert float(part.mean()) == pytest.approx(float(of.mean()), rel=0.05)
        assert float(part.std()) == pytest.approx(float(of.std()), rel=0.05)
    with torch.no_grad():
        assert removal(space, example, half_of_each(space)).error < 1e-5


def test_the_two_parts_of_complex_weights_are_filled_one_by_one() -> None:
    class Phases(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)
            self.phases = nn.Parameter(torch.complex(torch.full((8,), -0.5), torch.randn(8)))

        def forward(self, x: Tensor) -> Any:
            return self.last((self.first(x) * self.phases.exp()).real)

    space = traced(Phases(), BATCH)
    phases = space.resize({"first": 200}).get_parameter("phases").detach()
    assert (phases.real == -0.5).all()
    assert 0.5 < float(phases.imag.std()) < 2.0


def test_complex_weights_are_averaged_and_scored_by_their_magnitude() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(24, 2, 16), torch.randn(24, 1, 16)
    space = traced(Operator().eval(), x[:2])
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05, loss=nn.functional.mse_loss, ema=0.9)
    last = space.resize(space.widths)
    plain = space.resize(space.widths)
    plain.load_state_dict(last.state_dict())
    train(last, (x, y), recipe, seed=0)
    train(plain, (x, y), replace(recipe, ema=0.0), seed=0)
    name = "spectral.0.weight"
    averaged, own = last.get_parameter(name).detach(), plain.get_parameter(name).detach()
    assert averaged.isfinite().all()
    assert not torch.equal(averaged, own)  # the average lags behind

    groups = Groups(space)
    reading = {(axis.parameter, axis.dim) for axis in space.consumers}
    squares = torch.zeros(12)
    for parameter, dim in reading:
        weight = space.model.get_parameter(parameter).detach()
        if space.unit_axes()[parameter, dim][0] == 0:  # of the first variable
            squares += weight.abs().square().transpose(0, dim).flatten(1).sum(1)
    torch.testing.assert_close(groups.norms()[:12], squares.sqrt())

    loss = nn.functional.mse_loss
    net = space.model
    found = obd(net, fisher_diagonal(net, [(x, y)], loss))[name]
    expected = torch.zeros(found.shape)
    for one, target in zip(x, y, strict=True):
        net.zero_grad()
        loss(net(one[None]), target[None]).backward()  # type: ignore[no-untyped-call]
        slope, weight = net.get_parameter(name).grad, net.get_parameter(name).detach()
        assert slope is not None
        expected += ((slope.real * weight.real) ** 2 + (slope.imag * weight.imag) ** 2) / 2 / len(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_networks_with_complex_weights_are_measured_and_trained_alone_and_together(optimizer: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(48, 2, 16), torch.randn(48, 1, 16)
    loss = nn.functional.mse_loss
    study = Study(
        model=Operator,
        data=lambda: ((x, y), (x, y)),
        budget=Budget(macs="0.5x"),
        recipe=Recipe(
            epochs=2, batch_size=16, lr=0.01, loss=loss, optimizer=optimizer, clip_grad_norm=1.0, ema=0.9
        ),
        pack="always",
    )
    plan = prepare(StudyFile(study, Path(__file__), "study")).plan
    assert plan.pack
    runner = TrialRunner(study, SearchPlan(plan))
    measured = runner.run(Slot("measure", 0, 0, plan.over_wide(plan.widths)))
    assert plan.constraints().allow(measured["kept"])
    slots = [Slot("baseline", 0, i, plan.baseline) for i in range(2)]
    for together, slot in zip(runner.run_all(slots), slots, strict=True):
        assert together["val_loss"] == pytest.approx(runner.run(slot)["val_loss"], rel=1e-3)

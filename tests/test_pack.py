"""Networks that are trained as one batched training come out as each alone, whatever happens to the others."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    MODEL,
    command,
    complete,
    custom_loss,
    interrupt,
    setting,
    snapshot,
    trials,
    write_study,
)
from networks import NETWORKS
from test_checkpoint import Killed, outcome, plan_for, tensors
from torch import Tensor, nn

from widthsearch import Budget, Recipe, Study
from widthsearch.plans.plan import Run, Slot, Together
from widthsearch.plans.search import SearchPlan
from widthsearch.space import trace
from widthsearch.space.copies import named_tensors
from widthsearch.training.checkpoint import Checkpoint
from widthsearch.training.controller import BudgetController
from widthsearch.training.gates import Gates
from widthsearch.training.pack import Pack, train_pack, why_alone
from widthsearch.training.recipe_loop import RecipeLoop, seed_everything
from widthsearch.training.trial import TrialRunner

PLAIN = Recipe(epochs=3, batch_size=16, lr=0.05)
ALL = Recipe(
    epochs=3,
    batch_size=16,
    lr=0.05,
    weight_decay=0.05,
    schedule="cosine",
    warmup=0.4,
    clip_grad_norm=0.5,
    ema=0.9,
)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.AdaptiveAvgPool1d(4),
        nn.Flatten(), nn.Linear(24, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip


STUDY = Study(
    model=network, data=tensors, budget=Budget(params="0.5x", macs="any"), recipe=PLAIN, measure_length=1
)


@functools.cache
def runner(folder: str | None = None, study: Study = STUDY) -> TrialRunner:
    plan = SearchPlan(replace(plan_for(study), pack=True))
    return TrialRunner(study, plan, None if folder is None else (folder, "this study"))


def slots_of(kind: Any, study: Study = STUDY) -> list[Slot]:
    plan = plan_for(study)
    widths = plan.over_wide(plan.widths) if kind == "measure" else plan.baseline
    return [Slot(kind, 0, k, widths) for k in range(3)]


@pytest.mark.parametrize("recipe", [PLAIN, ALL], ids=["plain", "all parts"])
@pytest.mark.parametrize("kind", ["score", "report"])
def test_each_network_comes_out_as_alone(kind: Any, recipe: Recipe) -> None:
    """The same seeds, batches and gates; what differs is the order of float32 sums."""
    study = replace(STUDY, recipe=recipe)
    slots = slots_of(kind, study)
    together, alone = runner(study=study).run_all(slots), [runner(study=study).run(slot) for slot in slots]
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-3)
        assert one["training_macs"] == other["training_macs"]
    assert len({one["val_loss"] for one in together}) == 3  # by their own seeds


def test_the_gates_of_each_replica_move_as_alone() -> None:
    """With their own noise and price; at the speed of a long training (a short one throws them about)."""
    ends: list[list[Tensor]] = []
    loop = RecipeLoop(PLAIN, tensors())
    for together in (True, False):
        members = []
        for seed in (1, 2):
            seed_everything(seed)
            space = trace(network(), tensors()[0][0][:2])
            gates, budget = Gates(space), {r: c / 16 for r, c in space.cost.at(space.widths).items()}
            given = (gates.log_alpha, space.widths, space.cost, budget)
            members.append((space, gates, BudgetController(*given, steps=330)))
        if together:
            gated = [(gates, controller) for _, gates, controller in members]
            train_pack(Pack([space.model for space, *_ in members], (1, 2), members[0][0], gated), loop)
        else:
            for seed, (space, gates, controller) in zip((1, 2), members, strict=True):
                with gates.attached(controller.step):
                    loop.fit(space.model, seed)
        assert all(controller.taken == loop.steps for *_, controller in members)
        ends.append([torch.from_numpy(gates.log_alpha) for _, gates, _ in members])
    # (Alone, the gradient of the number of open units through LayerNorm's eps is left out.)
    torch.testing.assert_close(ends[0], ends[1], atol=0.02, rtol=0)
    assert (ends[0][0] - ends[0][1]).abs().max() > 0.1  # their own noise


def test_a_last_epoch_in_part_ends_with_its_steps() -> None:
    """The gates count the steps of the optimizer, whoever trains."""
    loop = RecipeLoop(PLAIN, tensors()).of_epochs(PLAIN.epochs - 0.5)
    assert loop.steps < RecipeLoop(PLAIN, tensors()).steps
    space = trace(network(), tensors()[0][0][:2])
    gates, budget = Gates(space), {r: c / 16 for r, c in space.cost.at(space.widths).items()}
    controller = BudgetController(gates.log_alpha, space.widths, space.cost, budget, steps=loop.closing)
    train_pack(Pack([space.model], (1,), space, [(gates, controller)]), loop)
    assert controller.taken == loop.steps


def test_a_network_that_is_lost_does_not_touch_the_others() -> None:
    loop, seeds = RecipeLoop(PLAIN, tensors()), (1, 2, 3)

    def nets() -> list[nn.Module]:
        torch.manual_seed(0)
        return [network() for _ in seeds]

    whole, spoiled = nets(), nets()
    with torch.no_grad():
        next(spoiled[1].parameters()).fill_(math.nan)
    good = train_pack(Pack(whole, seeds), loop)
    bad = train_pack(Pack(spoiled, seeds), loop)
    assert math.isnan(bad[1]) and [bad[0], bad[2]] == [good[0], good[2]]
    for i in (0, 2):
        for name, tensor in named_tensors(whole[i]).items():
            assert torch.equal(tensor, named_tensors(spoiled[i])[name])


@pytest.mark.parametrize("kind", ["score", "measure"])
def test_a_pack_that_was_killed_goes_on_from_its_checkpoint(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit; and a pack of others starts again."""
    slots, real = slots_of(kind), Checkpoint.save

    def save(self: Checkpoint, epochs: int, parts: Any) -> None:
        real(self, epochs, parts)
        if epochs == 2:
            raise Killed

    folder = str(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", save)
        patched.setattr("widthsearch.training.checkpoint.WRITING_SHARE", 1e9)
        assert "Killed" in runner(folder).run_all(slots)[0]["error"]
    begun: list[int] = []
    restore = Checkpoint.restore
    monkeypatch.setattr(
        Checkpoint, "restore", lambda self, parts: begun.append(restore(self, parts)) or begun[-1]
    )
    undisturbed = runner().run_all(slots)
    resumed = runner(folder).run_all(slots)
    assert begun == [2] and [*map(outcome, resumed)] == [*map(outcome, undisturbed)]
    fewer = runner(folder).run_all(slots[1:])  # the file's name is that of its last slot
    assert begun == [2, 0] and "another training" in fewer[0]["warnings"][0]


# Which trainings make a pack -----------------------------------------------------------------------------


def test_a_pack_is_what_a_phase_trains_of_one_network() -> None:
    plan = SearchPlan(replace(plan_for(STUDY), pack=True))
    slot = plan.next_step([])
    assert isinstance(slot, Slot)
    whole, open_ = plan.together(slot, [])
    assert len(plan.plan.selecting) >= 2 == len(whole)
    assert whole == open_ == [replace(slot, replica=k) for k in range(2)]
    done = Run(whole[0].key, "complete", slot.widths, value=1.0)
    # The same networks share its steps when the driver was killed between two results.
    assert plan.together(whole[1], [done]) == (whole, whole[1:])
    lost = [replace(done, state="died"), Run(whole[1].key, "failed", slot.widths, error="loss is nan")]
    assert plan.together(whole[0], lost) == (whole, whole)
    assert plan.together(whole[1], lost) == ([whole[1]], [whole[1]])
    assert SearchPlan(plan_for(STUDY)).together(slot, []) == Together([slot], [slot])


@pytest.fixture
def packed(working_folder: None, tmp_path: Path) -> Path:
    return write_study(tmp_path, setting('pack="always"'), name="packed")


def test_a_search_with_packs_finds_what_it_finds_without(packed: Path, tmp_path: Path) -> None:
    assert command("launch", packed).code == 0
    assert command("launch", write_study(tmp_path)).code == 0
    together, alone = (complete(trials(name=name)) for name in ("packed", "tiny"))
    assert together.keys() == alone.keys()
    for key, (widths, loss, *_) in together.items():
        assert widths == alone[key][0] and loss == pytest.approx(alone[key][1], rel=1e-4)


@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_stopped_anywhere_and_resumed_it_ends_the_same(packed: Path, stop_at: int) -> None:
    assert command("launch", packed, "--name", "whole").code == 0
    interrupt(packed, stop_at, name="packed")
    assert command("resume", "packed").code == 0
    assert complete(trials(name="packed")) == complete(trials(name="whole"))


def test_a_loss_that_is_not_finite_fails_its_own_training(working_folder: None, tmp_path: Path) -> None:
    """It is tried again alone, and given up; its neighbours are told as ever."""
    edits = custom_loss("output = output * torch.where(output[0, 0] > 0.1, torch.nan, 1.0)")
    file = write_study(tmp_path, *edits, setting('pack="always"'))
    command("launch", file, "--name", "tiny")
    starts = [t for t in trials() if t.user_attrs["kind"] == "baseline"]
    states = {t.state.name for t in starts}
    assert states == {"COMPLETE", "FAIL"}
    assert all("nan" in t.user_attrs["error"] for t in starts if t.state.name == "FAIL")


@pytest.mark.nightly
def test_packs_on_ray(packed: Path, tmp_path: Path) -> None:
    assert command("launch", packed, "--name", "whole").code == 0
    assert command("launch", packed, "--workers", "2").code == 0
    assert complete(trials(name="packed")) == complete(trials(name="whole"))


# What cannot be --------------------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset[Any]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i % len(self.x)], torch.tensor(0.0)


@pytest.mark.parametrize("name", ["unet", "tokens"])
def test_networks_of_all_sorts_can_be_trained_together(name: str) -> None:
    make, example, *_ = NETWORKS[name]
    seed_everything(0)
    samples = Samples(*example)
    recipe = Recipe(loss=lambda output, _: output.square().mean(), batch_size=4, lr=0.01)
    assert why_alone(trace(make(), example), recipe, samples) is None


def test_what_cannot_be_trained_together_is_said(working_folder: None, tmp_path: Path) -> None:
    dropout = (MODEL, "return nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 3))")
    file = write_study(tmp_path, dropout, setting('pack="always"'))
    line = "trained one by one, for all Study(pack=...): it draws random numbers while it trains (dropout)"
    assert line in " ".join(command("widths", file).out.split())
    auto = write_study(tmp_path, dropout, setting('pack="auto"'), name="auto")
    assert "one by one" not in command("widths", auto).out  # no GPU
    launched = command("launch", file)
    assert launched.code == 0 and line in " ".join((launched.out + launched.err).split())
    _, found = snapshot()
    assert {t.state.name for t in found} == {"COMPLETE"}
    wrong = write_study(tmp_path, setting("pack=True"), name="wrong")
    assert "Study(pack=True): must be one of never, auto, always" in command("launch", wrong).err

"""Warm-up, clipped gradients and averaged weights: what each does to a training of a recipe."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from widthsearch import Recipe
from widthsearch.training.recipe_loop import make_optimizer, make_schedule, train

STEPS = 20
RECIPE = Recipe(epochs=5, batch_size=8, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trained(recipe: Recipe, after_step: Any = None) -> nn.Module:
    made = net()
    train(made, data(), recipe, seed=0, after_step=lambda lr: after_step and after_step(made))
    return made


def rates(recipe: Recipe) -> list[float]:
    optimizer = make_optimizer(list(nn.Linear(2, 2).parameters()), recipe)
    schedule = make_schedule(optimizer, recipe, STEPS)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return found


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_rises_to_what_the_schedule_says(schedule: Any) -> None:
    recipe = replace(RECIPE, schedule=schedule)
    without, found = rates(recipe), rates(replace(recipe, warmup=0.2))
    factors = [1 / 5, 2 / 5, 3 / 5, 4 / 5] + [1.0] * (STEPS - 4)
    assert found == pytest.approx([f * lr for f, lr in zip(factors, without, strict=True)])


def test_clipped_gradients_are_no_longer_than_that() -> None:
    steps: list[Tensor] = []
    before = net().state_dict()

    def after_step(made: nn.Module) -> None:
        nonlocal before
        now = copy.deepcopy(made.state_dict())
        weights = [name for name, _ in made.named_parameters()]
        steps.append(torch.cat([(now[n] - before[n]).flatten() for n in weights]).norm() / RECIPE.lr)
        before = now

    trained(RECIPE, after_step)
    assert max(steps) > 0.3
    steps.clear()
    before = net().state_dict()
    trained(replace(RECIPE, clip_grad_norm=0.3), after_step)
    assert max(steps) == pytest.approx(0.3, rel=1e-3)


def test_averaged_weights_are_torchs_average_once_the_start_is_forgotten() -> None:
    """With a decay of 1/11, the least that there is, the first steps count as all others do."""
    averaged = AveragedModel(net(), multi_avg_fn=get_ema_multi_avg_fn(1 / 11), use_buffers=True)
    averaged.update_parameters(net())  # torch's begins with the first weights it is given
    plain = trained(RECIPE, averaged.update_parameters)
    found = trained(replace(RECIPE, ema=1 / 11))
    for name, tensor in found.state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, averaged.module.state_dict()[name], atol=1e-6), name
    assert not torch.allclose(found[0].weight, plain[0].weight, atol=1e-3)


def test_a_short_training_with_a_long_average_forgets_its_start() -> None:
    found = trained(replace(RECIPE, epochs=50, ema=0.9999))
    x, y = data()
    start = F.cross_entropy(net().eval()(x), y)
    assert F.cross_entropy(found.eval()(x), y) < start / 3


def test_what_is_not_finite_is_not_averaged() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, float("-inf")]))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.mask[:3]

    made = Masked()
    train(made, data(), replace(RECIPE, ema=0.9), seed=0)
    assert made.mask.tolist() == [0, 0, 0, float("-inf")]
    assert all(bool(p.isfinite().all()) for p in made.parameters())

"""Networks that a benchmark trains at once, padded with zeros, are those that a worker trains one after the other."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from widthsearch import Recipe
from widthsearch.space import trace
from widthsearch.training.recipe_loop import RecipeLoop, seed_everything

sys.path.append(str(Path(__file__).parent / "benchmarks"))
from fleet import Fleet, entry_of, fleet_of  # noqa: E402


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.inner = nn.Sequential(
            nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, bias=False), nn.BatchNorm2d(6)
        )
        self.outer = nn.Conv2d(6, 4, 3, padding=1)
        self.skip = nn.Conv2d(4, 4, 1, 2, bias=False)
        self.top = nn.Sequential(
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5, affine=False)
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(self.outer(F.relu(self.inner(x))) + self.skip(x[..., 1:-1, 1:-1]))
        return self.head(F.relu(self.top(x)))


def data(n, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 11, 11, generator=g), torch.randint(0, 3, (n,), generator=g)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_a_fleet_trains_each_network_as_it_is_trained_alone(schedule):
    seed_everything(0)
    splits = (data(200, 1), data(90, 2), data(70, 3))
    space = trace(Residual(), splits[0][0][:2])
    recipe = Recipe(epochs=3, batch_size=32, lr=0.02, schedule=schedule, device="cpu")
    narrow = dict.fromkeys(space.widths, 2)
    some = [(dict(space.widths), 5), (narrow, 5), ({**narrow, "inner.2": 9}, 6), ({**narrow, "stem": 7}, 7)]
    some = [({v: widths[v] for v in space.widths}, seed) for widths, seed in some]
    found = Fleet(space, recipe, splits, torch.device("cpu")).train(
        [entry_of(space, widths, seed) for widths, seed in some], test=True
    )
    loop = RecipeLoop(recipe, splits)
    for (widths, seed), outcome in zip(some, found, strict=True):
        seed_everything(seed)
        net = space.resize(widths)
        loop.fit(net, seed)
        for split, name in (("validation", "val"), ("test", "test")):
            alone = loop.evaluate(net, split)
            assert outcome[f"{name}_loss"] == pytest.approx(alone.loss, rel=1e-4)
        assert outcome["accuracy"] == pytest.approx(loop.evaluate(net, "validation").accuracy, abs=0.02)


def test_networks_that_do_not_stay_padded_are_refused():
    with pytest.raises(ValueError, match="Sigmoid"):
        fleet_of(nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="Conv1d"):
        fleet_of(nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)))

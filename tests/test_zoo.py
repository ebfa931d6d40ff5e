"""Public networks: whole, exact, counted as torch counts, left alone, and as docs/networks.md says."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from widthsearch.space import trace

# One of every kind, quick to trace; all others are traced at night (and by `python tests/zoo.py`, which makes the table).
FAMILIES = [
    "resnet18", "mobilenetv2_100", "regnety_004", "googlenet (torchvision)", "shufflenet_v2_x0_5 (torchvision)",
    "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "edgenext_xx_small",
    "LSTM, 2 layers", "GRU, 2 layers, both directions", "GPT-2", "Llama", "T5 encoder", "Mamba",
]  # fmt: skip
OTHERS = [name for name in zoo.ZOO if name not in FAMILIES]


def published() -> dict[str, list[str]]:
    """The rows of the table in docs/networks.md."""
    return {
        name: [cell.strip() for cell in row.strip("| ").split(" | ")] for name, row in zoo.published().items()
    }


#: Of the families, those that take longest: a dozen are left.
LONG = (
    "edgenext_xx_small",
    "swin_tiny_patch4_window7_224",
    "shufflenet_v2_x0_5 (torchvision)",
    "googlenet (torchvision)",
)


def test_the_table_has_every_network() -> None:
    rows = published()
    assert list(rows) == list(zoo.ZOO)
    assert len(rows) >= 120
    assert sum("**" not in row[2] for row in rows.values()) >= 110  # whole
    assert sum(float(row[2].strip("*%")) < 90 for row in rows.values()) <= 8
    assert all(row[5] == row[6] == "yes" for row in rows.values())  # cost, at other widths


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.nightly if name in {*OTHERS, *LONG} else ()) for name in zoo.ZOO],
)
def test_a_public_network_is_understood(name: str) -> None:
    try:
        row = zoo.row_of(name)
    except ImportError as error:  # a package that is no part of the test environment: see zoo_others.py
        assert name in zoo.ROWS
        pytest.skip(str(error))
    assert row.coverage > zoo.WHOLE or not zoo.ZOO[name].whole
    assert row.error < 1e-5
    assert row.equal
    assert row.searched
    assert published()[name][1:3] == row.markdown().strip("| ").split(" | ")[1:3]


def everything(model: nn.Module) -> list[object]:
    """What a trace must leave as it is: modes, hooks, attributes."""
    return [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks),
         {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple)})
        for name, module in model.named_modules()
    ]  # fmt: skip


@pytest.mark.sample(2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenetv2_100", "vit_tiny_patch16_224", "nn.TransformerEncoder", "T5 encoder"]
)
def test_a_trace_leaves_the_users_model_and_random_numbers_alone(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.ZOO[name].factory().train()
    state, parts = copy.deepcopy(model.state_dict()), everything(model)
    generators = (torch.get_rng_state(), random.getstate(), str(np.random.get_state()))
    trace(model, zoo.ZOO[name].example)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert everything(model) == parts
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (random.getstate(), str(np.random.get_state())) == generators[1:]

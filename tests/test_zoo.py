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

# Of every family that must be whole, those that trace quickly; `python tests/zoo.py` runs them all.
FAMILIES = [
    "vgg11_bn", "resnet18", "wide_resnet50_2", "resnext50_32x4d", "mobilenetv2_100", "mobilenetv3_small_100",
    "efficientnet_b0", "densenet121", "inception_v3", "shufflenet_v2_x0_5 (torchvision)", "regnety_004",
    "convnext_atto", "ghostnet_100", "res2net50_26w_4s", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "pvt_v2_b0", "U-Net (tests/networks.py)", "Conv1d net (tests/networks.py)",
    "LSTM, 2 layers", "GRU, 2 layers, both directions", "nn.TransformerEncoder", "BERT", "GPT-2", "Llama", "Qwen3",
    "T5 encoder",
]  # fmt: skip


def published() -> dict[str, list[str]]:
    """The rows of the table in docs/networks.md."""
    text = zoo.PAGE.read_text().partition(zoo.BEGIN)[2].partition(zoo.END)[0]
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.strip().splitlines()[2:]
    ]
    return {row[0]: row for row in rows}


def test_the_table_has_every_network() -> None:
    assert list(published()) == list(zoo.ZOO)
    assert sum("**" not in row[2] for row in published().values()) >= 40  # whole


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_public_network_is_understood(name: str) -> None:
    row = zoo.row_of(name)
    assert row.coverage > zoo.WHOLE or not zoo.ZOO[name].whole
    assert row.error < 1e-5
    assert row.equal
    assert published()[name][1:3] == row.markdown().strip("| ").split(" | ")[1:3]


def everything(model: nn.Module) -> list[object]:
    """What a trace must leave as it is: modes, hooks, attributes."""
    return [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks),
         {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple)})
        for name, module in model.named_modules()
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenetv2_100", "vit_tiny_patch16_224", "nn.TransformerEncoder", "GPT-2", "T5 encoder"]
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

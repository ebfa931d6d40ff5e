"""What widths.md tells a person to type: every row is true, and nothing is missing."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from exactness import random_widths
from networks import NETWORKS, Network, images, outputs, vectors
from test_attention import SEQUENCE, SelfAttention, TorchsOwn
from torch import Tensor, nn

from widthsearch import resize
from widthsearch.export.edits import Edit, edits, markdown
from widthsearch.space import trace


class GroupNormed(nn.Module):
    """Groups of channels, in a convolution and in a norm, and a layer of the user's own made from torch's."""

    class Normed(nn.BatchNorm2d):
        def __init__(self, channels: int) -> None:
            super().__init__(channels)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12)
        self.grouped, self.own = nn.Conv2d(12, 24, 3, groups=3), self.Normed(24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.own(self.grouped(self.norm(self.first(x)))).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Linear(6, 8), nn.LSTM(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.lstm(self.embed(x))[0])


CASES = {
    **NETWORKS,
    "groups": Network(GroupNormed, images(), ()),
    "attention": Network(lambda: SelfAttention("stated scale", heads=4), SEQUENCE, ()),
    "torch's attention": Network(lambda: TorchsOwn(), SEQUENCE, ()),
    "lstm": Network(Recurrent, vectors(5, 6), ()),
}
ALL = pytest.mark.parametrize("network", CASES.values(), ids=CASES)


def change(network: Network, seed: int = 3) -> tuple[nn.Module, nn.Module, list[Edit]]:
    """A network, itself at random other widths, and what differs."""
    torch.manual_seed(0)
    model = network.factory().eval()
    space = trace(model, network.example)
    new = resize(model, random_widths(space, seed, least=2), network.example).eval()
    return model, new, edits(model, new)


@pytest.mark.sample(6)
@ALL
def test_every_row_is_true(network: Network) -> None:
    old, new, found = change(network)
    assert found
    for edit in found:
        for model, value in ((old, edit.old), (new, edit.new)):
            module = model.get_submodule(edit.module)
            assert type(module).__name__ == edit.kind
            there = getattr(module, edit.name)
            assert (tuple(there.shape) if edit.what == "shape" else there) == value, edit.path
        assert edit.old != edit.new


def made_anew(layer: nn.Module, arguments: dict[str, Any]) -> nn.Module:
    """A layer of torch's from its constructor: the arguments it had, but for these."""
    kind = nn.RNNBase if isinstance(layer, nn.LSTM) else type(layer)
    names = [n for n in inspect.signature(kind).parameters if n not in ("mode", "kdim", "vdim")]
    had = {n: getattr(layer, n) for n in names if n in vars(layer)}
    if "bias" in names and not isinstance(layer, nn.LSTM):
        had["bias"] = (
            getattr(layer, "in_proj_bias" if isinstance(layer, nn.MultiheadAttention) else "bias") is not None
        )
    return type(layer)(**{**had, **arguments})


def typed(old: nn.Module, found: list[Edit]) -> nn.Module:
    """The network as it is once somebody has typed what the table says, and nothing else."""
    net = copy.deepcopy(old)
    for name in dict.fromkeys(e.module for e in found):
        module, own = net.get_submodule(name), [e for e in found if e.module == name]
        if type(module).__module__.startswith("torch.nn."):
            assert {e.what for e in own} == {"argument"}
            net.set_submodule(name, made_anew(module, {e.name: e.new for e in own}))
            continue
        for e in own:
            if e.what != "shape":
                setattr(module, e.name, e.new)
            elif isinstance(getattr(module, e.name), nn.Parameter):
                setattr(module, e.name, nn.Parameter(torch.zeros(e.new)))
            else:
                setattr(module, e.name, torch.zeros(e.new))
        if isinstance(module, nn.BatchNorm2d):  # the user's own, made from torch's
            net.set_submodule(name, type(module)(module.num_features))
    return net.eval()


@pytest.mark.sample(6)
@ALL
def test_what_the_table_says_suffices(network: Network) -> None:
    """Layers made from their typed arguments take the weights of the resized network, and do what it does."""
    old, new, found = change(network)
    net = typed(old, found)
    net.load_state_dict(new.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(outputs(net, network.example), outputs(new, network.example))
    with pytest.raises(RuntimeError):  # not a row too many
        typed(old, found[1:]).load_state_dict(new.state_dict(), strict=True)


def test_nothing_that_follows_by_itself_is_in_the_table() -> None:
    _, _, found = change(CASES["torch's attention"], seed=5)
    assert {e.path for e in found} == {
        *("embed.out_features", "attention.embed_dim", "attention.num_heads", "out.in_features")
    }
    _, _, found = change(CASES["groups"])
    assert {(e.path, e.what) for e in found if e.module == "own"} == {("own.num_features", "attribute")}


def test_a_network_at_its_own_widths_needs_no_typing() -> None:
    torch.manual_seed(0)
    model = NETWORKS["resnet"].factory()
    assert edits(model, resize(model, {}, NETWORKS["resnet"].example)) == []
    assert markdown([]) == ""


def test_the_table_reads_as_it_should() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 4, 5))
    found = edits(model, resize(model, {"0": 41}, torch.zeros(2, 3, 4, 4)))
    assert [(e.path, e.old, e.new) for e in found] == [
        ("0.out_channels", 64, 41),
        ("3.in_features", 64 * 4, 41 * 4),
    ]
    assert "| `0` | Conv2d | `out_channels` | 64 | 41 |" in markdown(found).splitlines()

"""Random small networks, put together from blocks of many kinds: whatever is found in them must be true."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactness import counted_macs, parameter_count, random_widths, removal
from examples import fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, randomise, vectors
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from widthsearch.space import WidthSpace, trace

few = settings(fuzz, max_examples=fuzz.max_examples // 3)  # one costs a second: a trace rehearses a search


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Block(NamedTuple):
    """A block to be built: ``kind`` names its class; ``width`` and ``variant`` mean what that class says."""

    kind: str
    width: int = 4
    variant: int = 0


# Blocks over a feature map (N, C, H, W): built from C and the block, they say the ``channels`` they make ----


def norm(c: int, variant: int) -> nn.Module:
    kinds = [nn.BatchNorm2d(c), nn.GroupNorm(1, c), nn.GroupNorm(2 if c % 2 == 0 else 1, c), nn.Identity()]
    return kinds[variant % 4]


def activation(variant: int) -> nn.Module:
    return [nn.ReLU(inplace=True), nn.GELU(), nn.SiLU()][variant % 3]


class Conv(nn.Sequential):
    def __init__(self, c: int, block: Block, kernel: int = 3) -> None:
        self.channels = block.width
        conv = nn.Conv2d(c, block.width, kernel, padding=kernel // 2, bias=block.variant % 4 == 3)
        super().__init__(conv, norm(block.width, block.variant), activation(block.variant))


class Separable(nn.Sequential):
    """Depthwise, with a multiplier of 1 or 2, then pointwise."""

    def __init__(self, c: int, block: Block) -> None:
        self.channels, hidden = block.width, c * (1 + block.variant % 2)
        deep = nn.Conv2d(c, hidden, 3, padding=1, groups=c)
        super().__init__(deep, norm(hidden, block.variant), activation(block.variant), Conv(hidden, block, 1))


class Residual(nn.Module):
    """The identity or a projection, beside two convolutions."""

    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.channels = block.width if block.variant % 2 else c
        self.first = Conv(c, block)
        self.second = nn.Sequential(
            nn.Conv2d(block.width, self.channels, 3, padding=1), norm(self.channels, block.variant)
        )
        self.shortcut = nn.Conv2d(c, self.channels, 1) if block.variant % 2 else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class Concatenation(nn.Module):
    """What came in beside something new (as in DenseNet), or two new branches."""

    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.left: nn.Module = Conv(c, Block("", 6, block.variant)) if block.variant % 2 else nn.Identity()
        self.right = Conv(c, block, 1)
        self.channels = (6 if block.variant % 2 else c) + block.width

    def forward(self, x: Tensor) -> Any:
        return torch.cat([self.left(x), self.right(x)], 1)


class Halves(nn.Module):
    """Two halves of the channels, one transformed, together again: their sum, product, or side by side."""

    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.variant = block.variant
        self.branch = Conv(c // 2, Block("", c // 2, block.variant))
        self.channels = c // 2 if block.variant < 2 else c

    def forward(self, x: Tensor) -> Any:
        a, b = x.chunk(2, 1) if self.variant % 2 else torch.split(x, x.shape[1] // 2, dim=1)
        a = self.branch(a)
        if self.variant == 0:
            return a + b
        return a * b.sigmoid() if self.variant == 1 else torch.cat([a, b], 1)


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.channels = c
        self.down, self.up = nn.Linear(c, block.width), nn.Linear(block.width, c)

    def forward(self, x: Tensor) -> Any:
        scale = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return x * scale[:, :, None, None]


class Grouped(nn.Module):
    """A grouped convolution that reads what a pointwise one made."""

    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.channels = block.width
        self.pointwise = Conv(c, block, 1)
        self.grouped = nn.Conv2d(
            block.width, block.width, 3, padding=1, groups=2 + 2 * (block.width % 4 == 0)
        )

    def forward(self, x: Tensor) -> Any:
        return self.grouped(self.pointwise(x)).relu()


class Pool(nn.Module):
    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.channels, self.variant = c, block.variant

    def forward(self, x: Tensor) -> Any:
        pool = [F.max_pool2d, F.avg_pool2d][self.variant % 2]
        return pool(x, 2, ceil_mode=True)


class Twice(nn.Module):
    """One module, called two times."""

    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.channels, self.twice = c, Conv(c, Block("", c, block.variant))

    def forward(self, x: Tensor) -> Any:
        return self.twice(self.twice(x))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        middle, spread = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - middle) / (spread + 1e-3), self.bias, padding=1)


class Computed(nn.Module):
    """A convolution whose weight is computed, before a size that is only compared."""

    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.channels = block.width
        conv = (Standardised if block.variant == 2 else nn.Conv2d)(c, block.width, 3, padding=1)
        self.conv = [weight_norm, spectral_norm, nn.Sequential, nn.Sequential][block.variant % 4](conv)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x)
        assert x.shape[1] == self.channels
        return x.relu()


class Unfolded(nn.Module):
    """A convolution written with im2col."""

    def __init__(self, c: int, block: Block) -> None:
        super().__init__()
        self.channels, self.weight = block.width, nn.Linear(9 * c, block.width)

    def forward(self, x: Tensor) -> Any:
        columns = self.weight(F.unfold(x, 3, padding=1).transpose(1, 2))
        return columns.transpose(1, 2).unflatten(2, x.shape[2:]).relu()


MAPS: dict[str, Callable[[int, Block], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        Conv, Separable, Residual, Concatenation, Halves, SqueezeExcite, Grouped, Pool, Twice, Computed, Unfolded,
    )
}  # fmt: skip


class Images(nn.Module):
    """Blocks over a feature map, then a head: flattened or averaged, with or without a hidden layer."""

    def __init__(self, blocks: list[Block], head: int) -> None:
        super().__init__()
        self.head = head
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList()
        c, size = 8, 6
        for block in blocks:
            if block.kind == "Halves" and (c % 2 or c < 4):
                continue
            built = MAPS[block.kind](c, block)
            self.blocks.append(built)
            c = int(built.channels)  # type: ignore[arg-type]
            size = (size + 1) // 2 if block.kind == "Pool" else size
        c *= size**2 if head % 2 else 1
        self.hidden = nn.Linear(c, 10) if head > 1 else nn.Identity()
        self.out = nn.Linear(10 if head > 1 else c, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = x.flatten(1) if self.head % 2 else x.mean((2, 3))
        return self.out(F.relu(self.hidden(x)))


# Blocks over a sequence (N, T, D) that keep D ---------------------------------------------------------------


class Perceptron(nn.Module):
    """A normalised MLP beside the residual stream: norm before or after, plain or gated."""

    def __init__(self, d: int, block: Block) -> None:
        super().__init__()
        self.variant = block.variant
        self.norm = nn.LayerNorm(d) if block.variant < 3 else nn.RMSNorm(d)
        self.up = nn.Linear(d, 2 * block.width if block.variant == 1 else block.width)
        self.down = nn.Linear(block.width, d)

    def forward(self, x: Tensor) -> Any:
        y = self.up(x if self.variant == 2 else self.norm(x))
        if self.variant == 1:
            a, b = y.chunk(2, -1)
            y = a * F.silu(b)
        y = x + self.down(F.gelu(y))
        return self.norm(y) if self.variant == 2 else y


class Attention(nn.Module):
    """Two heads; q, k and v from one layer or from three, or torch's own module."""

    def __init__(self, d: int, block: Block) -> None:
        super().__init__()
        self.variant, self.heads, self.size = block.variant, 2, block.width
        inner = self.heads * self.size
        self.norm = nn.LayerNorm(d)
        if block.variant == 0:
            self.qkv = nn.Linear(d, 3 * inner)
        elif block.variant == 3:
            self.attention = nn.MultiheadAttention(d, 2, batch_first=True)
        else:
            self.q, self.k, self.v = nn.Linear(d, inner), nn.Linear(d, inner), nn.Linear(d, inner)
        self.proj = nn.Linear(d if block.variant == 3 else inner, d)

    def forward(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        y = self.norm(x)
        if self.variant == 3:
            return x + self.proj(self.attention(y, y, y, need_weights=False)[0])
        if self.variant == 0:
            q, k, v = self.qkv(y).view(n, t, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (
                f(y).view(n, t, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
        if self.variant == 1:
            z = (q @ k.transpose(-2, -1) / self.size**0.5).softmax(-1) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(z.transpose(1, 2).reshape(n, t, -1))


class Mixer(nn.Module):
    """A convolution over time."""

    def __init__(self, d: int, block: Block) -> None:
        super().__init__()
        self.conv = nn.Conv1d(d, d, 3, padding=1, groups=d if block.variant % 2 else 1)

    def forward(self, x: Tensor) -> Any:
        return x + self.conv(x.transpose(1, 2)).transpose(1, 2)


class Repeated(nn.Module):
    """One residual MLP, called two times."""

    def __init__(self, d: int, block: Block) -> None:
        super().__init__()
        self.inner = Perceptron(d, block)

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.inner(x))


class Configured(nn.Module):
    """A gated MLP that reads its sizes from a config, one for all blocks, through a closure."""

    def __init__(self, d: int, block: Block) -> None:
        super().__init__()
        self.config = {"sizes": {"inner": block.width}}
        self.up, self.down = nn.Linear(d, 2 * block.width), nn.Linear(block.width, d)
        up = self.up
        self.raised = lambda x: up(x)

    def forward(self, x: Tensor) -> Any:
        inner = self.config["sizes"]["inner"]
        a, b = self.raised(x).split([inner, inner], -1)
        return x + self.down(a * b.sigmoid())


class Indexed(nn.Module):
    """Steps by number: picked, put back, added to those before."""

    def __init__(self, d: int, block: Block) -> None:
        super().__init__()
        self.variant, self.inner = block.variant, Perceptron(d, block)

    def forward(self, x: Tensor) -> Any:
        steps = torch.tensor([3, 0, 2], device=x.device)
        each = steps[None, :, None].expand(len(x), -1, x.shape[-1])
        y = self.inner(x[:, steps] if self.variant % 2 else x.gather(1, each))
        if self.variant < 2:
            return x.index_add(1, steps, y)
        return x.index_put((slice_of(x), steps), y) if self.variant == 2 else x.scatter_add(1, each, y)


def slice_of(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)[:, None]


class Tables(nn.Module):
    """A fixed table that is the same for all units, then attention over a learned number of queries."""

    def __init__(self, d: int, block: Block) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer("table", torch.arange(5.0)[:, None].repeat(1, d).sin())
        self.queries = nn.Parameter(torch.randn(5, block.width))
        self.key, self.value = nn.Linear(d, block.width), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Any:
        x = x + self.table
        return x + (self.queries @ self.key(x).transpose(1, 2)).softmax(-1) @ self.value(x)


SEQUENCES: dict[str, Callable[[int, Block], nn.Module]] = {
    kind.__name__: kind for kind in (Perceptron, Attention, Mixer, Repeated, Configured, Indexed, Tables)
}


class Sequences(nn.Module):
    """Blocks over a sequence, then a head: for every step, for their mean, for all of them."""

    def __init__(self, blocks: list[Block], head: int) -> None:
        super().__init__()
        self.head = head
        self.embed = nn.Linear(6, 8)
        self.blocks = nn.Sequential(*(SEQUENCES[block.kind](8, block) for block in blocks))
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(5 * 8 if head == 2 else 8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.blocks(self.embed(x)))
        return self.out([x, x.mean(1), x.flatten(1)][self.head])


# What must hold ---------------------------------------------------------------------------------------------


def lists_of(kinds: dict[str, Callable[[int, Block], nn.Module]]) -> st.SearchStrategy[list[Block]]:
    block = st.builds(Block, st.sampled_from(list(kinds)), st.sampled_from([4, 6, 8, 12]), st.integers(0, 3))
    return st.lists(block, min_size=1, max_size=4)


def state_of(model: nn.Module) -> Any:
    """What a trace must leave as it was."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return tensors, torch.get_rng_state(), [m.training for m in model.modules()], hooks, repr(model)


def assert_same_state(before: Any, after: Any) -> None:
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert torch.equal(before[1], after[1])
    assert before[2:] == after[2:]


def assert_resizes(space: WidthSpace, example: tuple[Tensor, ...], seed: int) -> None:
    """The cost is torch's own count; the network runs, trains, and takes weights of its own size."""
    widths = random_widths(space, seed)
    resized, twin = space.resize(widths), space.resize(widths)
    assert space.cost.at(widths) == {
        "macs": counted_macs(resized, example),
        "params": parameter_count(resized),
    }
    shape = copy.deepcopy(space.model).eval()(*example).shape
    output = resized.train()(*example)
    assert output.shape == shape
    output.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in resized.parameters())
    twin.load_state_dict(resized.state_dict())
    with torch.no_grad():
        assert torch.equal(resized.eval()(*example), twin.eval()(*example))
    assert resized(*example).shape == shape


def assert_closed_is_compact(space: WidthSpace, example: tuple[Tensor, ...], seed: int) -> None:
    numbers = np.random.default_rng(seed)
    keep = {v: numbers.permutation(w) >= numbers.integers(max(1, w - 1)) for v, w in space.widths.items()}
    assert removal(space, example, keep).error <= 1e-5


def assert_nothing_is_lost(space: WidthSpace) -> None:
    """The units of each layer follow a variable (their own, or that of a layer before), or are frozen with a reason."""
    wider = dict(space.resize({name: width + 1 for name, width in space.widths.items()}).named_modules())
    frozen = {f.width for f in space.frozen}
    for name, module in space.model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and name != "out":
            units = module.weight.shape[0]
            assert wider[name].weight.shape[0] > units or units in frozen, name  # type: ignore[union-attr, operator]


def check(model: nn.Module, example: tuple[Tensor, ...], seed: int) -> WidthSpace:
    randomise(model).train()
    before = state_of(model)
    space = trace(model, example)
    assert_same_state(before, state_of(model))
    assert_nothing_is_lost(space)
    for step in range(2):
        assert_resizes(space, example, seed + step)
    model.eval()
    if space.widths:
        assert_closed_is_compact(space, example, seed)
    return space


@few
@given(lists_of(MAPS), st.integers(0, 3), st.integers(0, 99))
def test_a_random_network_over_images_is_whole(blocks: list[Block], head: int, seed: int) -> None:
    torch.manual_seed(0)
    space = check(Images(blocks, head), images(size=6), seed)
    assert space.frozen == ()


@few
@given(lists_of(SEQUENCES), st.integers(0, 2), st.integers(0, 99))
def test_a_random_network_over_sequences_is_whole(blocks: list[Block], head: int, seed: int) -> None:
    torch.manual_seed(0)
    space = check(Sequences(blocks, head), vectors(5, 6), seed)
    assert all(f.name.endswith("queries") for f in space.frozen)  # as many as steps

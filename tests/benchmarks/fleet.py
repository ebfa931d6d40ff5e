"""Many narrow networks of one study trained at once, as one padded network: made for GPUs, runs on CPUs too.

A narrow network is the wide one with zeros where it has no units, and the zeros stay: a padded unit puts out 0,
nothing reads it, so neither it nor what leads to it has a gradient.  (That holds for convolutions, linear layers,
BatchNorm and ReLU; others are refused.)  So M networks of different widths are M sets of weights of one shape.
Each keeps the seed, the initialisation and the order of batches that it would have alone; what differs from
training one after the other is the order of float32 sums.  On a GPU a step is captured once as a CUDA graph and
replayed, since such networks are far too small to keep it busy otherwise.

Layouts: weights (M, *shape), activations (M, C, B, *positions): to BatchNorm that is M * C channels.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from widthsearch.space import WidthSpace
from widthsearch.study.data import size_of
from widthsearch.study.recipe import Recipe
from widthsearch.study.study import Data
from widthsearch.training.batches import batches
from widthsearch.training.recipe_loop import RecipeLoop, make_optimizer, make_schedule, seed_everything

Arrays = dict[str, NDArray[np.float32]]  # parameters by name
CAPTURE = threading.Lock()  # fleets of several threads share a GPU
EVALUATION_SAMPLES = 2**16  # of all networks of a fleet together, at once


@dataclass(frozen=True)
class Entry:
    """One network to be trained: its widths, its seed, and its fresh weights."""

    widths: dict[str, int]
    seed: int
    weights: Arrays
    macs: float


def entry_of(space: WidthSpace, widths: dict[str, int], seed: int) -> Entry:
    """The network that a worker would begin with (`TrialRunner.run`)."""
    seed_everything(seed)
    net = space.resize(widths)
    weights = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    return Entry(widths, seed, weights, space.cost.at(widths)["macs"])


class _Conv(nn.Module):
    """A convolution of every network with its own kernel: columns of patches, and one batched product."""

    def __init__(self, of: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        plain = of.groups == 1 and of.padding_mode == "zeros" and all(d == 1 for d in of.dilation)
        if not plain or isinstance(of.padding, str):
            raise ValueError(f"{of} cannot be trained in a fleet")
        self.kernel, self.stride, self.padding = of.kernel_size, of.stride, of.padding
        self.weight = nn.Parameter(torch.empty(0))  # (M, out, in, *kernel)
        self.bias = nn.Parameter(torch.empty(0)) if of.bias is not None else None  # (M, out)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            x = F.pad(x, [p for pad in reversed(self.padding) for p in (pad, pad)])
        for dim, (size, stride) in enumerate(zip(self.kernel, self.stride, strict=True)):
            x = x.unfold(3 + dim, size, stride)  # (M, in, B, *positions, *kernel)
        n = len(self.kernel)
        positions = x.shape[3 : 3 + n]
        x = x.permute(0, 1, *range(3 + n, 3 + 2 * n), 2, *range(3, 3 + n))
        columns = x.reshape(
            x.shape[0], x.shape[1] * math.prod(self.kernel), -1
        )  # (M, in * kernel, B * positions)
        return _product(self.weight.flatten(2), columns, self.bias).unflatten(2, (-1, *positions))


class _Linear(nn.Module):
    def __init__(self, of: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0))  # (M, out, in)
        self.bias = nn.Parameter(torch.empty(0)) if of.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        return _product(self.weight, x, self.bias)


def _product(weight: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """(M, out, in), (M, in, B) -> (M, out, B)"""
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias.unsqueeze(2), weight, x)


class _BatchNorm(nn.Module):
    """BatchNorm over M * C channels: each network's statistics are its own."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, of: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        if of.momentum is None or not of.track_running_stats:
            raise ValueError(f"{of} cannot be trained in a fleet")
        self.eps, self.momentum = of.eps, of.momentum
        self.weight = nn.Parameter(torch.empty(0)) if of.affine else None  # (M, C)
        self.bias = nn.Parameter(torch.empty(0)) if of.affine else None
        self.channels = of.num_features

    def begin(self, networks: int, device: torch.device) -> None:
        self.register_buffer("running_mean", torch.zeros(networks * self.channels, device=device))
        self.register_buffer("running_var", torch.ones(networks * self.channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.flatten() for p in (self.weight, self.bias))
        channels = x.reshape(1, len(self.running_mean), -1)
        statistics = (self.running_mean, self.running_var)
        y = F.batch_norm(channels, *statistics, weight, bias, self.training, self.momentum, self.eps)
        return y.view(x.shape)


class _Flatten(nn.Module):
    def __init__(self, of: nn.Flatten) -> None:
        super().__init__()
        if (of.start_dim, of.end_dim) != (1, -1):
            raise ValueError(f"{of} cannot be trained in a fleet")

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(2, -1).flatten(1, -2)  # (M, C * positions, B)


class _Pool(nn.Module):
    """A pooling of the positions, which are the last dimensions in a fleet as well."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.of(x.flatten(0, 1))
        return y.unflatten(0, x.shape[:2])


FLEET: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Conv1d: _Conv, nn.Conv2d: _Conv, nn.Linear: _Linear, nn.BatchNorm1d: _BatchNorm, nn.BatchNorm2d: _BatchNorm,
    nn.Flatten: _Flatten, nn.MaxPool2d: _Pool, nn.AdaptiveAvgPool1d: _Pool, nn.AdaptiveAvgPool2d: _Pool,
    nn.ReLU: lambda of: of, nn.Identity: lambda of: of,
}  # fmt: skip


def fleet_of(net: nn.Module) -> nn.Module:
    """The network with a fleet's modules in the place of its own; its code may add and call F.relu."""
    net = copy.deepcopy(net)
    for name, module in list(net.named_modules()):
        if type(module) in FLEET:
            parent = net.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], FLEET[type(module)](module))
        elif not list(module.children()):
            raise ValueError(f"{name}, {type(module).__name__}, cannot be trained in a fleet")
    return net


def padded(arrays: Sequence[NDArray[np.float32]]) -> Tensor:
    """(M, *shape of the largest), zeros behind each."""
    shape = np.max([a.shape for a in arrays], axis=0) if arrays[0].ndim else ()
    out = np.zeros((len(arrays), *shape), np.float32)
    for row, a in zip(out, arrays, strict=True):
        row[tuple(slice(n) for n in a.shape)] = a
    return torch.from_numpy(out)


@dataclass
class Fleet:
    """Trains lists of entries of one study by its recipe, on its data."""

    space: WidthSpace
    recipe: Recipe
    data: Data
    device: torch.device
    largest: float = (
        4e10  # multiply-accumulates of a step, padding included: beyond that an uneven list is split
    )
    _orders: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.recipe.loss is not None or self.recipe.optimizer != "sgd" or self.recipe.label_smoothing:
            raise ValueError("a fleet trains by SGD on cross-entropy without smoothing alone")
        loop = RecipeLoop(replace(self.recipe, device=str(self.device)), self.data)
        self.splits, self.steps = loop.splits, loop.steps
        self.samples = size_of(self.splits["train"])

    def lists(self, entries: list[int], of: Sequence[Entry]) -> list[list[int]]:
        """Indices in lists that are worth padding to one shape: split where widths differ most."""
        widths = np.array([list(of[i].widths.values()) for i in entries], float)
        largest = dict(zip(self.space.widths, widths.max(0).astype(int).tolist(), strict=True))
        padded_macs = self.space.cost.at(largest)["macs"] * len(entries)
        true = sum(of[i].macs for i in entries)
        step = 3 * padded_macs * self.recipe.batch_size
        if len(entries) == 1 or step < self.largest or padded_macs < 2 * true:
            return [entries]
        spread = np.log(widths).std(0)
        column = widths[:, int(spread.argmax())]
        order = [entries[i] for i in np.argsort(column, kind="stable")]
        middle = len(order) // 2
        return self.lists(order[:middle], of) + self.lists(order[middle:], of)

    def train(self, entries: Sequence[Entry], *, test: bool = False) -> list[dict[str, Any]]:
        """Train each; ``val_loss`` (None if it is not finite), ``accuracy``, and those of the test split."""
        outcomes: list[dict[str, Any]] = [{} for _ in entries]
        for chosen in self.lists(list(range(len(entries))), entries):
            for i, outcome in zip(chosen, self._train([entries[i] for i in chosen], test), strict=True):
                outcomes[i] = outcome
        return outcomes

    def _train(self, entries: Sequence[Entry], test: bool) -> list[dict[str, Any]]:
        net = self._network(entries)
        # (steps, M, B): the samples of every batch.
        orders = torch.stack([self._order(e.seed) for e in entries], 1).to(self.device, non_blocking=True)
        if self.device.type == "cuda":
            self._replay(net, orders)
        else:
            step, _ = self._step(net, orders)
            for _ in range(self.steps):
                step()
        found = self._evaluate(net, "validation")
        keys = {"val_loss": found[0], "accuracy": found[1]}
        if test and "test" in self.splits:
            keys["test_loss"], keys["test_accuracy"] = self._evaluate(net, "test")
        out = [dict(zip(keys, values, strict=True)) for values in zip(*keys.values(), strict=True)]
        return [o if math.isfinite(o["val_loss"]) else o | {"val_loss": None} for o in out]

    def _network(self, entries: Sequence[Entry]) -> nn.Module:
        widest = {v: max(e.widths[v] for e in entries) for v in self.space.widths}
        net = fleet_of(self.space.resize(widest))
        weights = {name: padded([e.weights[name] for e in entries]) for name in entries[0].weights}
        for module_name, module in net.named_modules():
            for name, p in module.named_parameters(recurse=False):
                full = f"{module_name}.{name}"
                p.data = weights[full].to(self.device)
            if isinstance(module, _BatchNorm):
                module.begin(len(entries), self.device)
        return net.train()

    def _order(self, seed: int) -> Tensor:
        """(steps, B): the samples of every batch of a training with this seed."""
        if seed not in self._orders:
            generator, all_ = torch.Generator().manual_seed(seed), torch.arange(self.samples)
            self._orders[seed] = torch.stack(
                [
                    batch
                    for _ in range(self.recipe.epochs)
                    for batch, _ in batches((all_, all_), self.recipe, generator)
                ]
            )
        return self._orders[seed]

    def _rates(self) -> Tensor:
        """The learning rate of every step, by the recipe's own schedule."""
        optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], self.recipe)
        schedule = make_schedule(optimizer, self.recipe, self.steps)
        rates = []
        for _ in range(self.steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            if schedule is not None:
                optimizer.step()
                schedule.step()
        return torch.tensor(rates, device=self.device)

    def _step(self, net: nn.Module, orders: Tensor) -> tuple[Callable[[], None], list[Tensor]]:
        """One step of SGD with Nesterov's momentum (torch's formula), of all networks; and its state."""
        x, y = self.splits["train"]
        rates, momentum, decay = self._rates(), self.recipe.momentum, self.recipe.weight_decay
        done = torch.zeros((), dtype=torch.int64, device=self.device)
        weights = list(net.parameters())
        velocity = [torch.zeros_like(w) for w in weights]  # a first step from 0 is torch's

        def step() -> None:
            batch = orders.index_select(0, done.view(1)).squeeze(0)  # (M, B)
            output = net(x[batch].transpose(1, 2))  # (M, classes, B)
            # The mean over a network's batch, summed over networks: each has its own gradient.
            loss = F.cross_entropy(output, y[batch], reduction="sum")
            grads = list(torch.autograd.grad(loss / batch.shape[1], weights))
            with torch.no_grad():
                rate = rates.index_select(0, done.view(1))
                torch._foreach_add_(grads, weights, alpha=decay)
                torch._foreach_mul_(velocity, momentum)
                torch._foreach_add_(velocity, grads)
                if momentum:
                    torch._foreach_add_(grads, velocity, alpha=momentum)
                torch._foreach_mul_(grads, -rate.squeeze())
                torch._foreach_add_(weights, grads)
                done.add_(1)

        return step, [done, *velocity]

    def _replay(self, net: nn.Module, orders: Tensor) -> None:
        """All steps on a GPU: one is captured, then replayed."""
        step, state = self._step(net, orders)
        changed = [*net.parameters(), *net.buffers(), *state]
        before = [t.detach().clone() for t in changed]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            with CAPTURE:
                if (
                    torch.cuda.memory_reserved()
                    > 0.5 * torch.cuda.get_device_properties(self.device).total_memory
                ):
                    torch.cuda.empty_cache()  # lists of all sizes leave it in pieces
                step()  # libraries initialise themselves before anything is captured
                graph = torch.cuda.CUDAGraph()
                # (torch.cuda.graph() would wait for all streams first.)
                graph.capture_begin(capture_error_mode="thread_local")
                step()
                graph.capture_end()
            with torch.no_grad():
                torch._foreach_copy_(changed, before)
            for _ in range(self.steps):
                graph.replay()
        torch.cuda.current_stream().wait_stream(stream)

    @torch.no_grad()
    def _evaluate(self, net: nn.Module, split: str) -> tuple[list[float], list[float]]:
        """Mean loss and accuracy of every network."""
        net.eval()
        x, y = self.splits[split]
        networks = next(net.parameters()).shape[0]
        size = max(1, EVALUATION_SAMPLES // networks)
        loss = torch.zeros(networks, dtype=torch.float64, device=self.device)
        good = torch.zeros_like(loss)
        for start in range(0, len(x), size):
            part, target = x[start : start + size], y[start : start + size]
            output = net(part.expand(networks, *part.shape).transpose(1, 2))  # (M, classes, B)
            wanted = target.expand(networks, -1)
            loss += F.cross_entropy(output, wanted, reduction="none").double().sum(1)
            good += (output.argmax(1) == wanted).double().sum(1)
        net.train()
        return (loss / len(x)).tolist(), (good / len(x)).tolist()

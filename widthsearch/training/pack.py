"""Networks of equal widths trained as one: their weights stacked, one batched step for all of them.

Small networks leave a GPU idle most of the time.  The seeds of one network, or the gated trainings of one
measure, are the same computation with other numbers: ``torch.vmap`` makes one kernel of each of their
operations.  Each network keeps its own seed, batches, gates and statistics; only the order of float32 sums is
another one than alone.  Shapes: M networks; a stacked weight is (M, *shape), a batch (M, B, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map
from torch.utils.data import IterableDataset, Subset

from widthsearch.errors import describe_error
from widthsearch.space import Gating, WidthSpace
from widthsearch.space.copies import arguments, copy_with, named_tensors
from widthsearch.space.initialise import isolated_random_numbers
from widthsearch.study.data import size_of
from widthsearch.study.recipe import Recipe
from widthsearch.study.study import Split
from widthsearch.training.averaging import MovingAverage
from widthsearch.training.batches import batches_of_epoch, epochs_of
from widthsearch.training.checkpoint import Checkpoint, GeneratorState, NetworkState, Stateful
from widthsearch.training.controller import BudgetController, Price
from widthsearch.training.device import autocast
from widthsearch.training.gates import Gates, Pending
from widthsearch.training.losses import loss_function
from widthsearch.training.recipe_loop import (
    RecipeLoop,
    make_optimizer,
    make_schedule,
    moved,
    seed_everything,
)

#: The gates of a measure's training, and their controller.
Gated = tuple[Gates, BudgetController]
#: Relative to the largest number of a tensor: what two steps in another order of float32 sums may differ by.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Pack:
    """Networks of equal shapes, each with its seed; of a measure, the width space and gates of each."""

    nets: Sequence[nn.Module]
    seeds: Sequence[int]
    space: WidthSpace | None = None  # of the first network, where they are gated
    gated: Sequence[Gated] = ()


def train_pack(pack: Pack, loop: RecipeLoop, checkpoint: Checkpoint | None = None) -> list[float]:
    """Train all networks in place by the loop's recipe; the last training loss of each, also if not finite.

    A loss that is not finite stays in its network: nothing is summed over networks.  With a ``checkpoint``
    they go on from there together.  (Training steps as in ``recipe_loop.train``, which has the reasons.)
    """
    recipe, split, device = loop.recipe, loop.splits["train"], loop.device
    for net in pack.nets:
        net.to(device).train()
    stacked = _stacked(pack.nets)
    weights = [w for w in stacked.parameters() if w.requires_grad]
    optimizer = make_optimizer(weights, recipe)
    schedule = make_schedule(optimizer, recipe, loop.steps)
    average = MovingAverage(stacked, recipe.ema) if recipe.ema else None
    orders = [torch.Generator().manual_seed(seed) for seed in pack.seeds]
    optional = {"schedule": schedule, "average": average}
    parts: dict[str, Stateful] = {
        "network": NetworkState(stacked),
        "optimizer": optimizer,
        **{f"order {i}": GeneratorState(order) for i, order in enumerate(orders)},
        **{f"gates {i}": gates for i, (gates, _) in enumerate(pack.gated)},
        **{f"controller {i}": controller for i, (_, controller) in enumerate(pack.gated)},
        **{name: part for name, part in optional.items() if part is not None},
    }
    done = checkpoint.restore(parts) if checkpoint is not None else 0
    losses = torch.zeros(len(pack.nets))
    with _step_of(pack, stacked, loss_function(recipe, training=True)) as forward:
        for epoch in range(done, epochs_of(split, recipe, loop.steps)):
            of_each = (batches_of_epoch(split, recipe, order, epoch, loop.steps) for order in orders)
            for batch in zip(*of_each, strict=True):
                x, y = (moved(_stack(part), device) for part in zip(*batch, strict=True))
                optimizer.zero_grad(set_to_none=True)
                with autocast(recipe, device):
                    losses = forward(x, y)
                losses.sum().backward()  # type: ignore[no-untyped-call]
                if recipe.clip_grad_norm is not None:
                    _clip(weights, recipe.clip_grad_norm)
                optimizer.step()
                forward.settle()
                if schedule is not None:
                    schedule.step()
                if average is not None:
                    average.step()
            if not losses.isfinite().any():
                break
            if checkpoint is not None:
                checkpoint.save(epoch + 1, parts)
    if average is not None:
        average.settle()
    _unstack(stacked, pack.nets)
    return losses.tolist()


class _Forward:
    """The losses of one batch per network, (M,), and the gates' steps after it."""

    def __init__(self, pack: Pack, stacked: nn.Module, loss_of: Callable[[Any, Any], Tensor]) -> None:
        self._pack, self._stacked, self._loss_of = pack, stacked, loss_of
        weight = next(stacked.parameters())
        self._pending = [Pending(weight, controller.step) for _, controller in pack.gated]
        self.z = weight.new_zeros(0)  # the gates of the network that runs now, (U,)

    def __call__(self, x: Any, y: Any) -> Tensor:
        gates = [
            own.values(training=True, pending=pending)
            for (own, _), pending in zip(self._pack.gated, self._pending, strict=True)
        ]
        tensors = named_tensors(self._stacked)
        return vmap(self._loss, in_dims=(0, 0 if gates else None, 0, 0), randomness="error")(
            tensors, torch.stack(gates) if gates else None, x, y
        )

    def _loss(self, tensors: Mapping[str, Tensor], z: Tensor | None, x: Any, y: Any) -> Tensor:
        if z is not None:
            self.z = z
        return self._loss_of(functional_call(self._pack.nets[0], dict(tensors), *arguments(x)), y)

    def settle(self) -> None:
        """After the optimizer's step: that of the gates."""
        for pending in self._pending:
            pending.hand_over()


@contextmanager
def _step_of(pack: Pack, stacked: nn.Module, loss_of: Callable[[Any, Any], Tensor]) -> Iterator[_Forward]:
    """The forward pass of all networks, gated if they are; nothing stays on the first one, which runs it."""
    forward = _Forward(pack, stacked, loss_of)
    if pack.space is None:
        yield forward
        return
    net, space = pack.nets[0], pack.space
    gating = Gating(net, list(space.widths.values()), space.consumers, space.statistics)
    handles = [
        net.register_forward_pre_hook(
            lambda _, args, kwargs: gating.put(forward.z, (args, kwargs)), with_kwargs=True
        ),
        net.register_forward_hook(lambda *_: gating.take_off(), always_call=True),
    ]
    try:
        yield forward
        for gates, _ in pack.gated:
            gates.settle()
    finally:
        for handle in handles:
            handle.remove()
        gating.remove()


def _stacked(nets: Sequence[nn.Module]) -> nn.Module:
    """A network to hold the stacked weights and buffers, (M, *shape); it is never run."""
    tensors = [named_tensors(net) for net in nets]
    return copy_with(nets[0], {name: torch.stack([t[name].detach() for t in tensors]) for name in tensors[0]})


@torch.no_grad()
def _unstack(stacked: nn.Module, nets: Sequence[nn.Module]) -> None:
    tensors = named_tensors(stacked)
    for i, net in enumerate(nets):
        for name, own in named_tensors(net).items():
            own.copy_(tensors[name][i])


def _stack(batches: Sequence[Any]) -> Any:
    """M batches as one, (M, B, ...)."""
    return tree_map(lambda *t: torch.stack(t), *batches)


def _clip(weights: Sequence[Tensor], longest: float) -> None:
    """Each network's gradient to that length, as ``torch.nn.utils.clip_grad_norm_`` does it for one."""
    gradients = [w.grad for w in weights if w.grad is not None]
    length = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # (M,)
    factor = (longest / (length + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))


def why_alone(space: WidthSpace, recipe: Recipe, split: Split) -> str | None:
    """Why networks of this width space cannot be trained as one by a recipe; ``None`` if they can.

    Two of them with gates make two steps together, and each alone: all tensors must come out equal.
    """
    few = _rehearsing(recipe, split)
    try:
        with isolated_random_numbers():
            ends = [_rehearsed(space, few, together=t) for t in (True, False)]
    except Exception as error:
        if "called random operation" in str(error):
            return "it draws random numbers while it trains (dropout)"
        return describe_error(error)
    for name, one in ends[0].items():
        other = ends[1][name]
        if not torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * float(other.abs().max())):
            return f"{name} comes out differently"
    return None


def _rehearsing(recipe: Recipe, split: Split) -> RecipeLoop:
    """The recipe on the CPU, for two steps on a few samples."""
    size = min(recipe.batch_size, 4)
    stream = isinstance(split, IterableDataset)
    # AdamW would make a whole step of a gradient that is nothing but rounding.
    plain: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "num_workers": 0, "device": "cpu"}
    plain |= {"optimizer": "sgd", "lr": 0.01}
    recipe = replace(recipe, epochs=1, batch_size=size, steps_per_epoch=2 if stream else None, **plain)
    if isinstance(split, tuple):
        split = (split[0][: 2 * size], split[1][: 2 * size])
    elif not stream:
        split = Subset(split, range(min(2 * size, size_of(split))))
    return RecipeLoop(recipe, (split, split))


def _rehearsed(space: WidthSpace, loop: RecipeLoop, *, together: bool) -> dict[str, Tensor]:
    """What two networks and their gates are after two steps, by name."""
    spaces, gated, seeds = [], [], (1, 2)
    for seed in seeds:
        seed_everything(seed)
        own = space.at(space.widths)
        gates, budget = Gates(own), {"macs": own.cost.at(own.widths)["macs"] / 2}
        # As if in the middle of a long training: so few steps would throw the logits about.
        steps = Price.REFERENCE_STEPS
        spaces.append(own)
        gated.append((gates, BudgetController(gates.log_alpha, own.widths, own.cost, budget, steps=steps)))
    if together:
        train_pack(Pack([own.model for own in spaces], seeds, spaces[0], gated), loop)
    else:
        for seed, own, (gates, controller) in zip(seeds, spaces, gated, strict=True):
            with gates.attached(controller.step):
                loop.fit(own.model, seed)
    ends = {f"{n} {i}": t for i, own in enumerate(spaces) for n, t in named_tensors(own.model).items()}
    logits = {f"gates {i}": torch.from_numpy(gates.log_alpha) for i, (gates, _) in enumerate(gated)}
    precise = {
        name: torch.promote_types(tensor.dtype, torch.float64) for name, tensor in (ends | logits).items()
    }
    return {name: tensor.detach().to(precise[name]) for name, tensor in (ends | logits).items()}

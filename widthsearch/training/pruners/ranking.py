"""Every pruner of units as one function: a network trained under its pressure, and a score per unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from widthsearch.maths.cost import Cost
from widthsearch.plans.plan import Plan
from widthsearch.space import WidthSpace
from widthsearch.training.batches import batches
from widthsearch.training.checkpoint import Checkpoint
from widthsearch.training.controller import BudgetController, per_unit
from widthsearch.training.device_gates import DeviceController, DeviceGates
from widthsearch.training.distributed import with_mean_gradient
from widthsearch.training.gates import Gates, Vector
from widthsearch.training.losses import loss_function
from widthsearch.training.own_loop import OwnLoop
from widthsearch.training.pruners.group_l1 import GroupL1
from widthsearch.training.pruners.groups import Groups
from widthsearch.training.pruners.saliency import fisher_diagonal, obd, taylor
from widthsearch.training.pruners.sensitivity import sensitivity
from widthsearch.training.recipe_loop import CLOSING, RecipeLoop, moved

#: Batches of the training split that derivatives are taken on.  (They are not counted as trained on.)
SCORING_BATCHES = 16


@dataclass(frozen=True)
class Aim:
    """What is pruned for: a budget per resource, and what an open unit pays for (see ``Study.pressure``)."""

    cost: Cost
    budget: Mapping[str, float]
    pressure: str

    @classmethod
    def of(cls, plan: Plan) -> Aim:
        """What the measures of a search aim at."""
        return cls(plan.cost, plan.budget, plan.pressure)


@contextmanager
def gated(
    space: WidthSpace, loop: RecipeLoop | OwnLoop, aim: Aim, seed: int, checkpoint: Checkpoint | None = None
) -> Iterator[tuple[Gates, BudgetController, int]]:
    """Train the space's network and its gates; they are on it for as long as the context lasts.

    Gives the gates, their controller and the samples seen.
    """
    gates, controller = gates_on(space, loop, aim)
    if checkpoint is not None:
        checkpoint.parts.update(gates=gates, controller=controller)
    with gates.attached(with_mean_gradient(controller.step)):
        samples = loop.fit(space.model, seed, checkpoint)
        gates.settle()
        yield gates, controller, samples


def gates_on(space: WidthSpace, loop: RecipeLoop | OwnLoop, aim: Aim) -> tuple[Gates, BudgetController]:
    """Where the network is trained, if that is known: an own loop moves it later, to wherever it likes."""
    aimed: Any = {"budget": aim.budget, "steps": loop.closing, "pressure": aim.pressure}
    if isinstance(loop, RecipeLoop) and loop.device.type == "cuda":
        space.model.to(loop.device)
        on_device = DeviceGates(space)
        return on_device, DeviceController(on_device, space.widths, aim.cost, **aimed)
    gates = Gates(space)
    return gates, BudgetController(gates.log_alpha, space.widths, aim.cost, **aimed)


def train_under(
    pruner: str,
    space: WidthSpace,
    loop: RecipeLoop | OwnLoop,
    aim: Aim,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[Vector, int]:
    """Train the space's network by the loop, under the pressure of ``l0`` or ``l1``, which come to ``aim``.

    Other pruners have none while it trains.  Returns the score of each unit, (U,), and the samples seen.
    """
    if pruner == "l0":
        with gated(space, loop, aim, seed, checkpoint) as (gates, _, samples):
            return gates.log_alpha, samples
    if isinstance(loop, OwnLoop):
        raise ValueError(f"{pruner} cannot prune in an own training loop")
    if pruner == "l1":
        space.model.to(loop.device)
        # Groups lag behind their target: they need the rest of the steps.
        closing = round(CLOSING * loop.steps)
        l1 = GroupL1(space, aim.cost, aim.budget, steps=closing, pressure=aim.pressure)
        if checkpoint is not None:
            checkpoint.parts.update(l1=l1)
        samples = loop.fit(space.model, seed, checkpoint, l1.after_step)
        return l1.scores(), samples
    samples = loop.fit(space.model, seed, checkpoint)
    return scores(pruner, space, loop, aim, seed), samples


def scores(pruner: str, space: WidthSpace, loop: RecipeLoop, aim: Aim, seed: int) -> Vector:
    """The scores of ``taylor``, ``obd-neurons`` or ``sensitivity`` on a trained network, (U,).

    Under the pressure of cost those of units are per MAC or parameter that the unit adds, of the scarcest
    resource: a unit may be dear because it costs much.  Sensitivities of layers are not: their units go by
    Taylor scores, up to one rise of the error in all layers.
    """
    loss, samples = loss_function(loop.recipe, training=False), scoring_batches(loop, seed)
    if pruner == "sensitivity":
        return sensitivity(space, loop, taylor(space, samples, loss))
    if pruner == "taylor":
        saliency = taylor(space, samples, loss)
    elif pruner == "obd-neurons":
        of_weights = obd(space.model, fisher_diagonal(space.model, samples, loss))
        saliency = Groups(space).total(of_weights).cpu().numpy()
    else:
        raise ValueError(f"{pruner} gives no score without a training of its own")
    counts = np.array(list(space.widths.values()), dtype=np.float64)
    over = {r: aim.cost.values(counts)[r] / limit for r, limit in aim.budget.items()}
    pays = per_unit(aim.cost, max(over, key=lambda r: over[r]), counts, aim.pressure)
    ranked: Vector = saliency / np.repeat(pays, counts.astype(int))
    return ranked


def scoring_batches(loop: RecipeLoop, seed: int) -> Iterator[tuple[Any, Any]]:
    """Some batches of the training split, on the loop's device; which ones depends on the seed."""
    order = torch.Generator().manual_seed(seed)
    shuffled = batches(loop.splits["train"], loop.recipe, order)
    return ((moved(x, loop.device), moved(y, loop.device)) for x, y in islice(shuffled, SCORING_BATCHES))

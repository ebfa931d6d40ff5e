"""One run of a comparison of pruners: an over-wide network goes down the levels, prune and retrain.

All pruners start from the same trained network (of one seed, to the last bit) and have the same number of
epochs: those of the recipe at first, and as many again at each level, the first half to prune in and the
other half for what is left.  ``l0`` and ``l1`` train under their pressure in that first half; the others
prune a little, train a little, and so on.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from widthsearch.plans.pruners import OF_WEIGHTS, PrunerPlan
from widthsearch.space import WidthSpace, call
from widthsearch.training.batches import batches
from widthsearch.training.controller import cut
from widthsearch.training.losses import loss_function
from widthsearch.training.pruners.ranking import Aim, scores, scoring_batches, train_under
from widthsearch.training.pruners.saliency import fisher_diagonal, obd
from widthsearch.training.recipe_loop import RecipeLoop, moved

PRUNINGS = 4  # steps from one level to the next
OUTPUTS_KEEP = 2  # weights of each output of the network, at least; like units of a variable
TIMED_PAIRS = 200  # of the pruned network and the over-wide one
WARM_UP = 10  # pairs before that


def sweep(
    pruner: str, plan: PrunerPlan, space: WidthSpace, loop: RecipeLoop, seed: int
) -> tuple[list[dict[str, Any]], float]:
    """Train the space's network, which is over-wide, and prune it to each level.

    Returns what is known of each level, the over-wide network first, and the samples seen, in forward passes
    of the over-wide network.
    """
    samples: float = loop.fit(space.model, seed)
    over_wide = copy.deepcopy(space.model)
    levels = [_row(plan, loop, over_wide, space, 1.0, 0.0)]
    weights = Weights(space)
    for k, level in enumerate(plan.levels, start=1):
        if pruner in OF_WEIGHTS:
            samples += prune_weights(weights, loop, level, seed + k)
            removed = weights.removed()
        else:
            share = plan.share(space.widths)
            space, seen = prune_units(pruner, plan, space, loop, level, seed + k)
            samples += share * seen  # (those after the first cut are somewhat cheaper)
            removed = None
        levels.append(_row(plan, loop, over_wide, space, level, removed))
    return levels, samples


def prune_units(
    pruner: str, plan: PrunerPlan, space: WidthSpace, loop: RecipeLoop, level: float, seed: int
) -> tuple[WidthSpace, int]:
    """The space of the network that is left at a level, retrained, and the samples seen."""
    samples = 0
    under_pressure = pruner in ("l0", "l1")
    epochs = level_epochs(loop)
    steps = (
        [(level, epochs - epochs // 2)]
        if under_pressure
        else gradually(plan.share(space.widths), level, epochs)
    )
    for share, after in steps:
        constraints = plan.constraints(share)
        aim = Aim(plan.plan.cost, constraints.budget, plan.plan.pressure)
        if under_pressure:
            ranks, samples = train_under(pruner, space, loop.of_epochs(epochs // 2), aim, seed)
        else:
            ranks = scores(pruner, space, loop, aim, seed)
        keep = cut(ranks, space.widths, constraints)
        net = space.compact(keep)
        samples += loop.of_epochs(after).fit(net, seed)
        space = space.at({v: int(k.sum()) for v, k in keep.items()}, model=net)
    return space, samples


def prune_weights(weights: Weights, loop: RecipeLoop, level: float, seed: int) -> int:
    """Remove single weights by their saliency, step by step, and retrain the others; the samples seen."""
    loss, samples = loss_function(loop.recipe, training=False), 0
    for share, after in gradually(1 - weights.removed(), level, level_epochs(loop)):
        diagonal = fisher_diagonal(weights.net, scoring_batches(loop, seed), loss)
        weights.keep_best(obd(weights.net, diagonal), share)
        samples += loop.of_epochs(after).fit(weights.net, seed, after_step=weights.apply)
    return samples


def level_epochs(loop: RecipeLoop) -> int:
    """Epochs at each level: the recipe's, but two at least, one to prune and one to retrain."""
    return max(2, loop.recipe.epochs)


def gradually(start: float, level: float, epochs: int) -> list[tuple[float, int]]:
    """From a share to a smaller one by equal factors: what is kept after each step, and the epochs after it.

    Half of the epochs are between the steps.  (Scores are those of one unit or weight at a time: the more go
    at once, the less they say.)
    """
    steps = min(PRUNINGS, 1 + epochs // 2)
    between = epochs // 2 // (steps - 1)
    shares = [start ** (1 - i / steps) * level ** (i / steps) for i in range(1, steps)]
    return [*((share, between) for share in shares), (level, epochs - between * (steps - 1))]


class Weights:
    """The weights of a network, biases and norm scales included; those removed are held at 0.

    The outputs of the network keep their best weights whatever the others are, as each variable keeps units:
    the derivatives of a class that is fitted perfectly vanish, and with them all of its saliencies.
    """

    def __init__(self, space: WidthSpace) -> None:
        self.net = space.model
        self.weights = {n: w for n, w in self.net.named_parameters() if w.requires_grad}
        self.masks = {n: torch.ones_like(w) for n, w in self.weights.items()}
        made = space.unit_axes()
        rows = [(axis.parameter, 0 if axis.dim else 1) for axis in space.consumers]
        self._outputs = [row for row in rows if row not in made and row[0] in self.masks]

    def keep_best(self, saliency: Mapping[str, Tensor], share: float) -> None:
        """Keep this share of all weights, those with the largest saliency; removed ones stay removed."""
        ranked = {n: torch.where(mask > 0, saliency[n], -1.0) for n, mask in self.masks.items()}
        for name, dim in self._outputs:
            rows = ranked[name].movedim(dim, 0)
            best = rows.flatten(1).topk(min(OUTPUTS_KEEP, rows[0].numel()), dim=1).indices
            raised = rows.flatten(1).scatter(1, best, math.inf)
            raised = raised.view(rows.shape).movedim(0, dim)
            ranked[name] = torch.where(self.masks[name] > 0, raised, -1.0)
        flat = torch.cat([values.flatten() for values in ranked.values()])
        kept = torch.zeros_like(flat)
        kept[flat.topk(int(share * len(flat))).indices] = 1.0
        parts = torch.split_with_sizes(kept, [mask.numel() for mask in self.masks.values()])
        for mask, part in zip(self.masks.values(), parts, strict=True):
            mask.mul_(part.view_as(mask))
        self.apply()

    @torch.no_grad()
    def apply(self, rate: float = 0.0) -> None:
        """Set the removed weights to 0: after every step of the optimizer."""
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])

    def removed(self) -> float:
        """The share of weights that are removed."""
        total = sum(mask.numel() for mask in self.masks.values())
        return 1 - sum(float(mask.sum()) for mask in self.masks.values()) / total


def _row(
    plan: PrunerPlan,
    loop: RecipeLoop,
    over_wide: nn.Module,
    space: WidthSpace,
    level: float,
    removed: float | None,
) -> dict[str, Any]:
    """What is known of the space's network; ``removed``: the share of weights, where no unit is removed."""
    widths, at_start = space.widths, plan.plan.over_wide_seed
    cost, full = plan.plan.cost.at(widths), plan.plan.cost.at(at_start)
    evaluation = loop.evaluate(space.model, "validation")
    return {
        "level": level,
        "weights_removed": 1 - cost["params"] / full["params"] if removed is None else removed,
        "neurons_removed": 1 - sum(widths.values()) / sum(at_start.values()),
        "macs_saved": 1 - cost["macs"] / full["macs"],
        "time_saved": 1 - relative_time(space.model, over_wide, loop),
        "val_loss": evaluation.loss,
        "val_accuracy": evaluation.accuracy,
        "widths": dict(widths),
    }


@torch.no_grad()
def relative_time(net: nn.Module, reference: nn.Module, loop: RecipeLoop) -> float:
    """How long inference takes on a batch of the recipe's size, relative to another network.

    Medians of single runs, one of each network after the other.  On one thread of a CPU it is the thread's
    own time: what else the machine does does not count.
    """
    x, _ = next(batches(loop.splits["validation"], loop.recipe))
    x = moved(x, loop.device)
    alone = loop.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter

    def seconds(network: nn.Module) -> float:
        start = clock()
        call(network, x)
        if loop.device.type == "cuda":
            torch.cuda.synchronize(loop.device)
        return clock() - start

    own, other = net.eval(), reference.eval()
    pairs = [(seconds(own), seconds(other)) for _ in range(WARM_UP + TIMED_PAIRS)][WARM_UP:]
    return median(pair[0] for pair in pairs) / median(pair[1] for pair in pairs)

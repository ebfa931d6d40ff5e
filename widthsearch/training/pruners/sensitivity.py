"""Sensitivity: how much the loss of a trained network rises when one layer alone is cut, without retraining.

As in FastNAS of NVIDIA's ModelOpt, every layer is cut until its own rise of the loss reaches one level, that
at which the whole network meets the budget: no other widths there have a smaller largest rise.  With rises as
scores of units it is found by the cut by rank of all pruners.  (NetAdapt, Yang et al., ECCV 2018, goes down
to the budget greedily and trains a little in between, which takes many trainings.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from widthsearch.space import WidthSpace
from widthsearch.training.controller import best_units
from widthsearch.training.gates import Vector
from widthsearch.training.recipe_loop import RecipeLoop

LEVELS = 8  # widths per layer at which the loss is evaluated: one unit, 1/8, 2/8... of its units
TIE = 1e-6  # of a rise that many units share: layers that lose nothing are cut by the same share


def rises(kept: Sequence[int], losses: Sequence[float], whole: float, width: int) -> Vector:
    """The rise of the loss once a unit and all worse ones of its layer are gone, best unit first, (width,).

    ``losses``: with so many units ``kept``, in rising order; ``whole``: with all of them.  Linear between;
    a narrower layer is never said to lose less than a wider one.
    """
    narrower = np.maximum.accumulate([0.0, *(loss - whole for loss in reversed(losses))])
    left = np.arange(width)  # units that are left without the unit of this rank
    return np.interp(left, [*kept, width], narrower[::-1]) + TIE * (1 - left / width)


def sensitivity(space: WidthSpace, loop: RecipeLoop, ranked: Vector) -> Vector:
    """The score of each unit of a trained network, (U,): the rise of the validation loss of its layer's cut.

    ``ranked``: what says which units of a layer go first, (U,).  Nothing is trained; the evaluations are not
    counted as trainings, as no evaluation is.
    """
    widths, scores = space.widths, []
    whole = loop.evaluate(space.model, "validation").loss
    parts = np.split(ranked, np.cumsum(list(widths.values()))[:-1])
    for (variable, width), own in zip(widths.items(), parts, strict=True):
        kept = sorted({max(1, width * k // LEVELS) for k in range(LEVELS)} - {width})
        losses = []
        for n in kept:
            net = space.compact(best_units(ranked, widths, {**widths, variable: n}))
            losses.append(loop.evaluate(net, "validation").loss)
        rank = np.argsort(np.argsort(-own, kind="stable"))
        scores.append(rises(kept, losses, whole, width)[rank])
    return np.concatenate(scores)

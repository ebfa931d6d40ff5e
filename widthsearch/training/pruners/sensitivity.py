"""Sensitivity: how much worse a trained network gets when one layer alone is cut, without retraining.

As in FastNAS of NVIDIA's ModelOpt, every layer is cut until its own rise of the error reaches one level, that
at which the whole network meets the budget: no other widths there have a smaller largest rise.  With rises as
scores of units it is found by the cut by rank of all pruners.  (NetAdapt, Yang et al., ECCV 2018, goes down
to the budget greedily and trains a little in between, which takes many trainings.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from widthsearch.space import WidthSpace
from widthsearch.training.controller import best_units
from widthsearch.training.gates import Vector
from widthsearch.training.recipe_loop import RecipeLoop

LEVELS = 8  # widths per layer at which the network is evaluated: one unit, 1/8, 2/8... of its units
TIE = 1e-6  # of a rise that many units share: layers that lose nothing are cut by the same share


def rises(kept: Sequence[int], errors: Sequence[float], whole: float, width: int) -> Vector:
    """The rise of the error once a unit and all worse ones of its layer are gone, best unit first, (width,).

    ``errors``: with so many units ``kept``, in rising order; ``whole``: with all of them.  Linear between;
    a narrower layer is never said to lose less than a wider one.
    """
    narrower = np.maximum.accumulate([0.0, *(error - whole for error in reversed(errors))])
    left = np.arange(width)  # units that are left without the unit of this rank
    return np.interp(left, [*kept, width], narrower[::-1]) + TIE * (1 - left / width)


def sensitivity(space: WidthSpace, loop: RecipeLoop, ranked: Vector) -> Vector:
    """The score of each unit of a trained network, (U,): the rise of the validation error by its layer's cut.

    The error is the share of wrong classes, where there are classes, else the loss.  (The loss of a network
    cut in an early layer goes far beyond that of chance; one whose last layer is cut to nothing has that of
    chance, and would seem the least harm.)  ``ranked``: what says which units of a layer go first, (U,).
    Nothing is trained; the evaluations are not counted as trainings, as no evaluation is.
    """
    widths, scores = space.widths, []

    def error(net: nn.Module) -> float:
        found = loop.evaluate(net, "validation")
        return found.loss if found.accuracy is None or loop.recipe.metric is not None else 1 - found.accuracy

    whole = error(space.model)
    parts = np.split(ranked, np.cumsum(list(widths.values()))[:-1])
    for (variable, width), own in zip(widths.items(), parts, strict=True):
        kept = sorted({max(1, width * k // LEVELS) for k in range(LEVELS)} - {width})
        cuts = (best_units(ranked, widths, {**widths, variable: n}) for n in kept)
        errors = [error(space.compact(cut)) for cut in cuts]
        rank = np.argsort(np.argsort(-own, kind="stable"))
        scores.append(rises(kept, errors, whole, width)[rank])
    return np.concatenate(scores)

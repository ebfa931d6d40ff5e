"""widthsearch: how wide should each layer be?

A study file needs three names from here: ``Study``, ``Budget`` and ``Recipe``.  For work with Optuna:
``GrowShrinkSampler``, and ``Objective`` for its other samplers.  For training scripts of one's own:
``resize(model, widths, example)``, a network at the widths that a search recommends (a dictionary, or the
``widths.json`` of ``widthsearch export``), freshly initialised; ``trace`` and ``WidthSpace`` are what it
stands on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widthsearch.errors import UsageError
    from widthsearch.objective import Objective
    from widthsearch.resized import resize
    from widthsearch.sampler import GrowShrinkSampler
    from widthsearch.space import WidthSpace, trace
    from widthsearch.study import Budget, Recipe, Study

__all__ = [
    "Budget",
    "GrowShrinkSampler",
    "Objective",
    "Recipe",
    "Study",
    "UsageError",
    "WidthSpace",
    "resize",
    "trace",
]

_HOMES = {
    "Budget": "study",
    "GrowShrinkSampler": "sampler",
    "Objective": "objective",
    "Recipe": "study",
    "Study": "study",
    "UsageError": "errors",
    "WidthSpace": "space",
    "resize": "resized",
    "trace": "space",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `widthsearch --help` and `show` need not import torch.
    if name in _HOMES:
        return getattr(import_module(f"widthsearch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'widthsearch' has no attribute {name!r}")

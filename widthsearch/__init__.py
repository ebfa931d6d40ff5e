"""widthsearch: how wide should each layer be?

A study file needs three names from here: ``Study``, ``Budget`` and ``Recipe``.  ``launch``, ``resume`` and
``load`` are the commands in Python: they return a ``Result``.  For training scripts of one's own:
``resize(model, widths, example)``, a network at the widths that a search recommends (a dictionary, or the
``widths.json`` of ``widthsearch export``), freshly initialised; ``trace`` and ``WidthSpace`` are what it
stands on.  For work with Optuna: ``GrowShrinkSampler``, and ``Objective`` for its other samplers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widthsearch.api import Result, launch, load, resume
    from widthsearch.database.sampler import GrowShrinkSampler
    from widthsearch.driver.objective import Objective
    from widthsearch.errors import UsageError
    from widthsearch.export.resized import resize
    from widthsearch.space import WidthSpace, trace
    from widthsearch.study.budget import Budget
    from widthsearch.study.recipe import Recipe
    from widthsearch.study.study import Study

logging.getLogger(__name__).addHandler(logging.NullHandler())  # quiet, unless somebody listens

__all__ = [
    "Budget",
    "GrowShrinkSampler",
    "Objective",
    "Recipe",
    "Result",
    "Study",
    "UsageError",
    "WidthSpace",
    "launch",
    "load",
    "resize",
    "resume",
    "trace",
]

_HOMES = {
    "Budget": "study.budget",
    "GrowShrinkSampler": "database.sampler",
    "Objective": "driver.objective",
    "Recipe": "study.study",
    "Result": "api",
    "Study": "study.study",
    "UsageError": "errors",
    "WidthSpace": "space",
    "launch": "api",
    "load": "api",
    "resume": "api",
    "resize": "export.resized",
    "trace": "space",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `widthsearch --help` and `show` need not import torch.
    if name in _HOMES:
        return getattr(import_module(f"widthsearch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'widthsearch' has no attribute {name!r}")

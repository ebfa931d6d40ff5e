"""The summary of any study, whatever it follows, from the database: what ``show --json`` prints."""

from __future__ import annotations

import math
from typing import Any

import optuna

from widthsearch.comparison import Comparison
from widthsearch.pruner_plan import PrunerPlan
from widthsearch.storage import plan_of
from widthsearch.views.compare_report import summarise_comparison
from widthsearch.views.pruner_report import summarise_pruners
from widthsearch.views.report import summarise


def summary_of(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a study as one JSON object."""
    plan = plan_of(study)
    if isinstance(plan, PrunerPlan):
        return summarise_pruners(study, url)
    return (summarise_comparison if isinstance(plan, Comparison) else summarise)(study, url)


def finite(value: Any) -> Any:
    """With null for the numbers that JSON does not have: a metric of the user's may be anything."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None

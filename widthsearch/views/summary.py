"""The summary of any study (search, comparison, probe), from the database: what ``show --json`` prints."""

from __future__ import annotations

import math
from typing import Any

import optuna

from widthsearch.comparison import Comparison
from widthsearch.probe import Probe
from widthsearch.storage import plan_of
from widthsearch.views.compare_report import summarise_comparison
from widthsearch.views.probe_report import summarise_probe
from widthsearch.views.report import summarise


def summary_of(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a study as one JSON object."""
    match plan_of(study):
        case Comparison():
            return summarise_comparison(study, url)
        case Probe():
            return summarise_probe(study, url)
    return summarise(study, url)


def finite(value: Any) -> Any:
    """With null for the numbers that JSON does not have: a metric of the user's may be anything."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None

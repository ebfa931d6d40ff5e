"""The kinds of study: what a plan in the database is read as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from widthsearch.plans.comparison import Comparison
from widthsearch.plans.plan import FORMAT, StudyKind, StudyPlan
from widthsearch.plans.probe import Probe
from widthsearch.plans.pruners import PrunerPlan
from widthsearch.plans.search import SearchPlan

KINDS: Mapping[StudyKind, type[StudyPlan]] = {
    "search": SearchPlan,
    "comparison": Comparison,
    "probe": Probe,
    "pruners": PrunerPlan,
}


def read_plan(data: Mapping[str, Any]) -> StudyPlan:
    """The inverse of ``to_json()`` of every kind; ``ValueError`` for another format."""
    found = data.get("format", 0)
    if found != FORMAT:
        raise ValueError(f"its plan has format {found}, this version reads format {FORMAT}")
    return KINDS[data["kind"]].from_json(data)

"""The summary of any study, whatever it follows, from the database: what ``show --json`` prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from widthsearch.database.connection import Database
from widthsearch.database.lock import is_driven
from widthsearch.database.records import Family, family_in, family_of, load, plan_of
from widthsearch.plans.plan import StudyKind
from widthsearch.report.comparison import summarise_comparison
from widthsearch.report.probe import summarise_probe
from widthsearch.report.pruners import summarise_pruners
from widthsearch.report.search import summarise

#: How the summary of each kind of study is made.
SUMMARISE: dict[StudyKind, Callable[[optuna.Study, str], dict[str, Any]]] = {
    "search": summarise,
    "comparison": summarise_comparison,
    "probe": summarise_probe,
    "pruners": summarise_pruners,
}


def summary_of(study: optuna.Study, url: str) -> dict[str, Any]:
    """Everything about a study as one JSON object."""
    family = family_in(study.user_attrs)
    summary = SUMMARISE[plan_of(study).kind](study, url)
    return summary if family is None else {**summary, "family": family.name}


def summary_of_family(family: Family, database: Database) -> dict[str, Any]:
    """The summaries of all members; ``finished`` once all of them are."""
    members = [summary_of(load(name, database), database.url) for name in family.members]
    found = {member["status"] for member in members}
    if "running" in found or is_driven(database.url, family.name):
        status = "running"
    elif "interrupted" in found:
        status = "interrupted"
    else:
        status = "failed" if "failed" in found else "finished"
    return {"kind": "family", "family": family.name, "status": status, "members": members}


def summary_of_name(name: str | None, database: Database) -> dict[str, Any]:
    """The summary of a study or a family; without a name, of the latest."""
    family = family_of(name, database.storage)
    if family is not None:
        return summary_of_family(family, database)
    return summary_of(load(name, database), database.url)


def name_of(summary: Mapping[str, Any]) -> str:
    """The name of the study or family."""
    name: str = summary["family" if summary["kind"] == "family" else "study"]
    return name


def finite(value: Any) -> Any:
    """With null for the numbers that JSON does not have: a metric of the user's may be anything."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None

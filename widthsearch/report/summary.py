"""The summary of any study, whatever it follows, from the database: what ``show --json`` prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from widthsearch.database.checks import reading
from widthsearch.database.connection import Database
from widthsearch.database.lock import is_driven
from widthsearch.database.records import Family, family_of, load, plan_of
from widthsearch.plans.plan import StudyKind
from widthsearch.report.comparison import summarise_comparison
from widthsearch.report.decision import family_decision
from widthsearch.report.probe import summarise_probe
from widthsearch.report.pruners import summarise_pruners
from widthsearch.report.search import summarise
from widthsearch.report.types.common import Status
from widthsearch.report.types.kinds import FamilySummary, StudySummary, Summary

#: How the summary of each kind of study is made.
SUMMARISE: dict[StudyKind, Callable[[optuna.Study, str], StudySummary]] = {
    "search": summarise,
    "comparison": summarise_comparison,
    "probe": summarise_probe,
    "pruners": summarise_pruners,
}


def summary_of(study: optuna.Study, url: str) -> StudySummary:
    """Everything about a study as one JSON object; :class:`UsageError` if it holds what no search writes."""
    with reading(study.study_name):
        return SUMMARISE[plan_of(study).kind](study, url)


def summary_of_family(family: Family, database: Database) -> FamilySummary:
    """The summaries of all members; ``finished`` once all of them are."""
    found = [summary_of(load(name, database), database.url) for name in family.members]
    return family_summary(family, found, database.url)


def family_summary(family: Family, found: Sequence[StudySummary], url: str) -> FamilySummary:
    """The same, from the summaries of its members."""
    members = [member for member in found if member["kind"] == "search"]  # they all are
    states = {member["status"] for member in members}
    status: Status = "failed" if "failed" in states else "finished"
    if "running" in states or is_driven(url, family.name):
        status = "running"
    elif "interrupted" in states:
        status = "interrupted"
    return {
        "kind": "family",
        "family": family.name,
        "status": status,
        "decision": family_decision(members, status),
        "members": members,
    }


def summary_of_name(name: str | None, database: Database) -> Summary:
    """The summary of a study or a family; without a name, of the latest."""
    family = family_of(name, database.storage)
    if family is not None:
        return summary_of_family(family, database)
    return summary_of(load(name, database), database.url)


def name_of(summary: Summary) -> str:
    """The name of the study or family."""
    return summary["family"] if summary["kind"] == "family" else summary["study"]


def finite(value: Any) -> Any:
    """With null for the numbers that JSON does not have: a metric of the user's may be anything."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None

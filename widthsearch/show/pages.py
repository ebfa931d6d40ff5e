"""The page and the figure of any summary, by the kind of its study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Group

from widthsearch.errors import UsageError
from widthsearch.report.summary import name_of
from widthsearch.report.types import SearchSummary, Summary
from widthsearch.show.comparison import comparison_figure, comparison_page
from widthsearch.show.family import family_figure, family_page
from widthsearch.show.formats import interval
from widthsearch.show.probe import probe_figure, probe_page
from widthsearch.show.pruners import pruner_figure, pruner_page
from widthsearch.show.search_page import search_page


class Kind(NamedTuple):
    """How a kind of study is shown; each function takes the summary of that kind."""

    name: str
    page: Callable[[Any, int], Group]  # on a terminal of so many columns
    about: Callable[[Any], str]  # in a few words, for a list of studies
    figure: Callable[[Any], Any] | None = None  # none of a search: it has several
    figure_id: str = ""  # under which optuna-dashboard keeps it: another one would not replace it


KINDS = {
    "search": Kind("search", search_page, lambda s: interval(s["gain"])),
    "family": Kind(
        "family",
        lambda s, _: family_page(s),
        lambda s: f"{len(s['members'])} budgets",
        family_figure,
        "widthsearch-members",
    ),
    "probe": Kind(
        "probe",
        lambda s, _: probe_page(s),
        lambda s: f"probes {len(s['starts'])} starts",
        probe_figure,
        "widthsearch-starts",
    ),
    "pruners": Kind(
        "comparison of pruners",
        lambda s, _: pruner_page(s),
        lambda s: f"compares {', '.join(p['pruner'] for p in s['pruners'])}",
        pruner_figure,
        "widthsearch-pruners",
    ),
    "comparison": Kind(
        "comparison",
        lambda s, _: comparison_page(s),
        lambda s: f"compares {', '.join(s['arms'])}",
        comparison_figure,
        "widthsearch-comparison",
    ),
}


def search_only(summary: Summary, wanted: str) -> SearchSummary:
    """The summary, if it is a single search's; else :class:`UsageError`, which says what is ``wanted``."""
    if summary["kind"] != "search":
        raise UsageError(f"study {name_of(summary)!r} is a {KINDS[summary['kind']].name}; {wanted}")
    return summary


def page_of(summary: Summary, columns: int = 120) -> Group:
    """What `show` prints on a terminal of so many columns."""
    return KINDS[summary["kind"]].page(summary, columns)


def figure_of(summary: Summary) -> Any:
    """What ``--plot`` draws; :class:`UsageError` for a search, which has several figures."""
    figure = KINDS[summary["kind"]].figure
    if figure is None:
        raise UsageError(f"--plot: {name_of(summary)!r} is a search; its figures: widthsearch report")
    return figure(summary)

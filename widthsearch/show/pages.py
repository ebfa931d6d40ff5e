"""The page and the figure of any summary, by the kind of its study."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Group

from widthsearch.errors import UsageError
from widthsearch.report.summary import name_of
from widthsearch.report.types.kinds import Summary
from widthsearch.report.types.search import SearchSummary
from widthsearch.show.comparison import comparison_figure, comparison_page
from widthsearch.show.family import family_figure, family_page
from widthsearch.show.probe import probe_figure, probe_page
from widthsearch.show.pruners import pruner_figure, pruner_page
from widthsearch.show.search_page import search_page


class Kind(NamedTuple):
    """How a kind of study is shown; each function takes the summary of that kind."""

    name: str
    page: Callable[[Any], Group]
    figure: Callable[[Any], Any] | None = None  # none of a search: it has several
    figure_id: str = ""  # under which optuna-dashboard keeps it: another one would not replace it


KINDS = {
    "search": Kind("search", search_page),
    "family": Kind("family", family_page, family_figure, "widthsearch-members"),
    "probe": Kind("probe", probe_page, probe_figure, "widthsearch-starts"),
    "pruners": Kind("comparison of pruners", pruner_page, pruner_figure, "widthsearch-pruners"),
    "comparison": Kind("comparison", comparison_page, comparison_figure, "widthsearch-comparison"),
}


def search_only(summary: Summary, wanted: str) -> SearchSummary:
    """The summary, if it is a single search's; else :class:`UsageError`, which says what is ``wanted``."""
    if summary["kind"] != "search":
        raise UsageError(f"study {name_of(summary)!r} is a {KINDS[summary['kind']].name}; {wanted}")
    return summary


def page_of(summary: Summary) -> Group:
    """What `show` prints."""
    return KINDS[summary["kind"]].page(summary)


def figure_of(summary: Summary) -> Any:
    """What ``--plot`` draws; :class:`UsageError` for a search, which has several figures."""
    figure = KINDS[summary["kind"]].figure
    if figure is None:
        raise UsageError(f"--plot: {name_of(summary)!r} is a search; its figures: widthsearch report")
    return figure(summary)

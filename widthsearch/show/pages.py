"""The page and the figure of any summary, by the kind of its study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Group

from widthsearch.errors import UsageError
from widthsearch.report.summary import name_of
from widthsearch.show.compare_page import comparison_page
from widthsearch.show.compare_plots import comparison_figure
from widthsearch.show.family_page import family_page
from widthsearch.show.family_plots import family_figure
from widthsearch.show.probe_page import probe_page
from widthsearch.show.probe_plots import probe_figure
from widthsearch.show.pruner_page import pruner_page
from widthsearch.show.pruner_plots import pruner_figure
from widthsearch.show.search_page import search_page


class Kind(NamedTuple):
    """A kind of study that is no single search."""

    key: str  # that only its summary has
    name: str
    page: Callable[[Mapping[str, Any]], Group]
    figure: Callable[[Mapping[str, Any]], Any]


KINDS = (
    Kind("members", "family", family_page, family_figure),
    Kind("starts", "probe", probe_page, probe_figure),
    Kind("pruners", "comparison of pruners", pruner_page, pruner_figure),
    Kind("comparison", "comparison", comparison_page, comparison_figure),
)


def kind_of(summary: Mapping[str, Any]) -> Kind | None:
    """What kind of study the summary is of; ``None``: a single search."""
    return next((kind for kind in KINDS if kind.key in summary), None)


def search_only(summary: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The summary, if it is a single search's; else :class:`UsageError`, which says what is ``wanted``."""
    if (kind := kind_of(summary)) is not None:
        raise UsageError(f"study {name_of(summary)!r} is a {kind.name}; {wanted}")
    return summary


def page_of(summary: Mapping[str, Any], columns: int = 120) -> Group:
    """What `show` prints on a terminal of so many columns."""
    kind = kind_of(summary)
    return search_page(summary, columns) if kind is None else kind.page(summary)


def figure_of(summary: Mapping[str, Any]) -> Any:
    """What ``--plot`` draws; :class:`UsageError` for a search, which has several figures."""
    if (kind := kind_of(summary)) is None:
        raise UsageError(f"--plot: {summary['study']!r} is a search; its figures: widthsearch report")
    return kind.figure(summary)

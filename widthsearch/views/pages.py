"""The page and the figure of any summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group

from widthsearch.errors import UsageError
from widthsearch.views.compare_page import comparison_page
from widthsearch.views.compare_plots import comparison_figure
from widthsearch.views.family_page import family_page
from widthsearch.views.family_plots import family_figure
from widthsearch.views.probe_page import probe_page
from widthsearch.views.probe_plots import probe_figure
from widthsearch.views.pruner_page import pruner_page
from widthsearch.views.pruner_plots import pruner_figure
from widthsearch.views.search_page import search_page

#: What is no single search, by the key that only its summary has: its page and its figure.
KINDS = {
    "members": (family_page, family_figure),
    "starts": (probe_page, probe_figure),
    "pruners": (pruner_page, pruner_figure),
    "comparison": (comparison_page, comparison_figure),
}


def page_of(summary: Mapping[str, Any], columns: int = 120) -> Group:
    """What `show` prints on a terminal of so many columns."""
    for key, (page, _) in KINDS.items():
        if key in summary:
            return page(summary)
    return search_page(summary, columns)


def figure_of(summary: Mapping[str, Any]) -> Any:
    """What ``--plot`` draws; :class:`UsageError` for a search, which has several figures."""
    for key, (_, figure) in KINDS.items():
        if key in summary:
            return figure(summary)
    raise UsageError(f"--plot: {summary['study']!r} is a search; its figures: widthsearch report")

"""A study's summary, printed as a page or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from widthsearch.cli.console import out

if TYPE_CHECKING:
    import optuna


def check_plot(file: str | None) -> None:
    """Refuse a figure that cannot be drawn before anything is trained for it."""
    if file is not None:
        from widthsearch.views.compare_plots import check

        check(file)


def open_study(name: str | None, storage: str | None) -> tuple[optuna.Study, str]:
    """An existing study, and the URL of its storage; without a name, the latest."""
    from widthsearch.database import open_storage, url_from
    from widthsearch.storage import load

    url = url_from(storage)
    return load(name, open_storage(url, create=False), url), url


def print_summary(study: optuna.Study, url: str, as_json: bool = False, plot: str | None = None) -> None:
    """Print what is known of a study; draw it, too, where a file for the figure is given."""
    from widthsearch.database import command
    from widthsearch.views.summary import finite, summary_of
    from widthsearch.views.tables import show_comparison, show_summary

    summary = summary_of(study, url)
    if plot is not None:
        from widthsearch.views.compare_plots import write_comparison

        write_comparison(summary, plot)
    if as_json:
        print(json.dumps(finite(summary), indent=2, allow_nan=False))
        return
    (show_comparison if "comparison" in summary else show_summary)(out, summary)
    if summary["status"] == "interrupted":
        line = f"go on with: {command('resume', summary['study'], url)}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)

"""A study's summary, printed as a page or as JSON."""

from __future__ import annotations

import json
import shlex
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
    from widthsearch.views.pruner_tables import show_pruners
    from widthsearch.views.summary import finite, summary_of
    from widthsearch.views.tables import show_comparison, show_summary

    summary = summary_of(study, url)
    if plot is not None:
        from widthsearch.views.compare_plots import write, write_comparison
        from widthsearch.views.pruner_plots import pruner_figure

        if "pruners" in summary:
            write(pruner_figure(summary), plot)
        else:
            write_comparison(summary, plot)
    if as_json:
        print(json.dumps(finite(summary), indent=2, allow_nan=False))
        return
    if "pruners" in summary:
        show_pruners(out, summary)
    else:
        (show_comparison if "comparison" in summary else show_summary)(out, summary)
    if summary["status"] == "interrupted":
        line = f"go on with: {command('resume', summary['study'], url)}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def command(verb: str, name: str, url: str) -> str:
    """The command line that does ``verb`` to a study; names the storage unless it is found without."""
    from widthsearch.database import hide_password, url_from

    where = "" if url == url_from(None) else f" --storage {shlex.quote(hide_password(url))}"
    return f"widthsearch {verb} {shlex.quote(name)}{where}"

"""A study's summary, printed as a page or as JSON."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING, Any

from widthsearch.cli.console import out

if TYPE_CHECKING:
    import optuna
    from rich.console import Group

WATCH_SECONDS = 2.0


def check_plot(file: str | None) -> None:
    """Refuse a figure that cannot be drawn before anything is trained for it."""
    if file is not None:
        from widthsearch.views.style import check_figure

        check_figure("--plot", file)


def open_study(name: str | None, storage: str | None) -> tuple[optuna.Study, str]:
    """An existing study, and the URL of its storage; without a name, the latest."""
    from widthsearch.database import open_storage, url_from
    from widthsearch.storage import load

    url = url_from(storage)
    return load(name, open_storage(url, create=False), url), url


def print_summary(study: optuna.Study, url: str, as_json: bool = False, plot: str | None = None) -> None:
    """Print what is known of a study; draw it, too, where a file for the figure is given."""
    from widthsearch.views.summary import finite, summary_of

    summary = summary_of(study, url)
    if plot is not None:
        from widthsearch.views.compare_plots import write_comparison

        write_comparison(summary, plot)
    if as_json:
        print(json.dumps(finite(summary), indent=2, allow_nan=False))
        return
    out.print(page_of(summary))
    for line in _next_lines(summary, url):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def page_of(summary: dict[str, Any]) -> Group:
    """The page of a summary, for the terminal."""
    from widthsearch.views.compare_page import comparison_page
    from widthsearch.views.search_page import search_page

    return comparison_page(summary) if "comparison" in summary else search_page(summary, out.width)


def watch(study: optuna.Study, url: str) -> None:
    """Show the page, redrawn every few seconds, as long as the search runs; then print it once more."""
    from rich.live import Live

    from widthsearch.views.summary import summary_of

    if out.is_terminal:
        with Live(console=out, screen=True, auto_refresh=False) as live:
            while (summary := summary_of(study, url))["status"] == "running":
                live.update(page_of(summary), refresh=True)
                time.sleep(WATCH_SECONDS)
    print_summary(study, url)


def _next_lines(summary: dict[str, Any], url: str) -> list[str]:
    """What one may want to do next with this study."""
    name = summary["study"]
    if summary["status"] == "interrupted":
        return [f"go on with:  {command('resume', name, url)}"]
    if summary["status"] != "finished" or "comparison" in summary:
        return []
    target = file_name(name)
    return [
        f"as a page:   {command('report', name, url)} -o {target}.html",
        f"the network: {command('export', name, url)} -o {target}",
    ]


def file_name(study: str) -> str:
    """A study's name as that of a file, which needs no quotes either."""
    return "".join(c if c.isascii() and c.isalnum() or c in "-_." else "_" for c in study)


def command(verb: str, name: str, url: str) -> str:
    """The command line that does ``verb`` to a study; names the storage unless it is found without."""
    from widthsearch.database import hide_password, url_from

    where = "" if url == url_from(None) else f" --storage {shlex.quote(hide_password(url))}"
    return f"widthsearch {verb} {shlex.quote(name)}{where}"

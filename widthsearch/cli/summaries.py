"""A study's summary, or a family's, printed as a page or as JSON."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from widthsearch.driver.backend import out

if TYPE_CHECKING:
    import optuna

    from widthsearch.report.types import Summary

WATCH_SECONDS = 2.0


def check_plot(file: str | None) -> None:
    """Refuse a figure that cannot be drawn before anything is trained for it."""
    if file is not None:
        from widthsearch.show.style import check_figure

        check_figure("--plot", file)


def open_study(name: str | None, storage: str | None) -> tuple[optuna.Study, str]:
    """An existing study, and the URL of its storage; without a name, the latest."""
    from widthsearch.database.connection import open_storage, url_from
    from widthsearch.database.records import load

    url = url_from(storage)
    return load(name, open_storage(url, create=False), url), url


def print_named(
    name: str | None, url: str, as_json: bool = False, plot: str | None = None, *, patient: bool = False
) -> None:
    """Print what is known of a study or a family, of the latest without a name; draw it into ``plot``."""
    from widthsearch.database.connection import open_storage
    from widthsearch.report.summary import finite, summary_of_name
    from widthsearch.show.pages import figure_of, page_of
    from widthsearch.show.style import write_figure

    summary = summary_of_name(name, open_storage(url, create=False, patient=patient), url)
    if plot is not None:
        write_figure(figure_of(summary), plot)
    if as_json:
        print(json.dumps(finite(summary), indent=2, allow_nan=False))
        return
    out.print(page_of(summary, out.width), crop=False)
    for line in _next_lines(summary, url):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def watch(name: str | None, url: str) -> None:
    """Show the page, redrawn every few seconds, as long as the search runs; then print it once more."""
    from rich.live import Live

    from widthsearch.database.connection import open_storage
    from widthsearch.report.summary import summary_of_name
    from widthsearch.show.pages import page_of

    storage = open_storage(url, create=False)
    if out.is_terminal:
        with Live(console=out, screen=True, auto_refresh=False) as live:
            while (summary := summary_of_name(name, storage, url))["status"] == "running":
                live.update(page_of(summary, out.width), refresh=True)
                time.sleep(WATCH_SECONDS)
    print_named(name, url)


def _next_lines(summary: Summary, url: str) -> list[str]:
    """What one may want to do next with this study."""
    from widthsearch.database.connection import command
    from widthsearch.database.records import slug
    from widthsearch.report.summary import name_of

    name = name_of(summary)
    if summary["status"] == "interrupted":
        return [f"go on with:  {command('resume', name, url)}"]
    if summary["status"] != "finished" or summary["kind"] != "search":
        return []
    target = slug(name)
    return [
        f"as a page:   {command('report', name, url)} -o {target}.html",
        f"the network: {command('export', name, url)} -o {target}",
    ]

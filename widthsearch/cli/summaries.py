"""A study's summary, or a family's, printed as a page or as JSON."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from widthsearch.show.console import out, say

if TYPE_CHECKING:
    import optuna

    from widthsearch.database.connection import Database
    from widthsearch.report.types.kinds import Summary

WATCH_SECONDS = 2.0


def check_plot(file: str | None) -> None:
    """Refuse a figure that cannot be drawn before anything is trained for it."""
    if file is not None:
        from widthsearch.show.style import check_figure

        check_figure("--plot", file)


def opened(storage: str | None) -> Database:
    """The database that an option names."""
    from widthsearch.database.connection import Database, url_from

    return Database.open(url_from(storage))


def open_study(name: str | None, storage: str | None) -> tuple[optuna.Study, Database]:
    """An existing study, and its database; without a name, the latest."""
    from widthsearch.database.records import load

    database = opened(storage)
    return load(name, database), database


def print_named(name: str | None, database: Database, as_json: bool = False, plot: str | None = None) -> None:
    """Print what is known of a study or a family, of the latest without a name; draw it into ``plot``."""
    from widthsearch.database.checks import reading
    from widthsearch.report.summary import finite, name_of, summary_of_name
    from widthsearch.show.pages import page_of

    summary = summary_of_name(name, database)
    if plot is not None:
        from widthsearch.show.page import figure_page
        from widthsearch.show.style import write_file

        write_file(figure_page(summary).encode(errors="backslashreplace"), plot)
    if as_json:
        print(json.dumps(finite(summary), indent=2, allow_nan=False))
        return
    with reading(name_of(summary)):
        page = page_of(summary)
    out.print(page, crop=False)
    for line in _next_lines(summary, database):
        say(line)


def watch(name: str | None, database: Database) -> None:
    """Show the page, redrawn every few seconds, as long as the search runs; then print it once more."""
    from rich.live import Live

    from widthsearch.report.summary import summary_of_name
    from widthsearch.show.pages import page_of

    if out.is_terminal:
        with Live(console=out, screen=True, auto_refresh=False) as live:
            while (summary := summary_of_name(name, database))["status"] == "running":
                live.update(page_of(summary), refresh=True)
                time.sleep(WATCH_SECONDS)
    print_named(name, database)


def _next_lines(summary: Summary, database: Database) -> list[str]:
    """What one may want to do next with this study."""
    from widthsearch.plans.words import slug
    from widthsearch.report.summary import name_of

    name = name_of(summary)
    if summary["status"] == "interrupted":
        return [f"go on with:  {database.command('resume', name)}"]
    if summary["status"] != "finished" or summary["kind"] != "search":
        return []
    target = slug(name)
    target = f"./{target}" if target.startswith("-") else target
    return [
        f"as a page:   {database.command('report', name, '-o', f'{target}.html')}",
        f"the network: {database.command('export', name, '-o', target)}",
    ]

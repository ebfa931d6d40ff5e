"""Pages for a browser: `report` writes one, `dashboard` serves optuna-dashboard with our tables in it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from widthsearch.cli.options import Name, Storage, app, one_line_errors
from widthsearch.driver.backend import out
from widthsearch.errors import UsageError


@app.command()
@one_line_errors
def report(
    name: Name = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="The .html file; default: NAME.html.", show_default=False),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write everything about a study as one HTML page that needs no network."""
    from widthsearch.database.connection import open_storage, url_from
    from widthsearch.database.records import slug
    from widthsearch.report.summary import name_of, summary_of_name
    from widthsearch.show.page import report_page
    from widthsearch.show.style import check_figure, write_file

    if output is not None:
        check_figure("-o", output)
    url = url_from(storage)
    opened = open_storage(url, create=False)
    summary = summary_of_name(name, opened, url)
    file = output or f"{slug(name_of(summary))}.html"
    check_figure("-o", file)
    write_file(report_page(summary, opened, url).encode(), file)
    out.print(file, markup=False, highlight=False, soft_wrap=True)


@app.command()
@one_line_errors
def dashboard(
    storage: Storage = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: any free one.")] = 8080,
) -> None:
    """Start optuna-dashboard, with the tables and figures of all studies in it."""
    if any(find_spec(package) is None for package in ("optuna_dashboard", "plotly")):
        raise UsageError("the dashboard needs an extra: pip install 'widthsearch[dashboard]'")
    from widthsearch.database.connection import open_storage, url_from
    from widthsearch.show.dashboard import serve

    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False, soft_wrap=True)

    url = url_from(storage)
    try:
        serve(open_storage(url, create=False), url, port, say)
    except KeyboardInterrupt:
        out.print("ended")

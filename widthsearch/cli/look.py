"""Commands that only look: show, list, widths, and what is made of that: report, draw, dashboard."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.util import find_spec
from typing import Annotated

import typer

from widthsearch.cli.options import AsJson, Name, Plot, Storage
from widthsearch.cli.summaries import check_plot, open_study, opened, print_named, watch
from widthsearch.errors import UsageError
from widthsearch.show.console import out, say
from widthsearch.stopping import interrupt, listen


def show(
    name: Name = None,
    storage: Storage = None,
    as_json: AsJson = False,
    plot: Plot = None,
    watching: Annotated[bool, typer.Option("--watch", help="Redraw the page until the search ends.")] = False,
) -> None:
    """Show what a study recommends, or what a family, comparison or probe found, while it runs or after."""
    check_plot(plot)
    database = opened(storage)
    if watching and not as_json:
        return watch(name, database)
    return print_named(name, database, as_json, plot)


def list_(storage: Storage = None) -> None:
    """List the studies of a database."""
    from widthsearch.database.checks import reading
    from widthsearch.database.records import load, studies_in
    from widthsearch.report.summary import summary_of
    from widthsearch.show.tables import list_row, show_list

    database = opened(storage)
    rows, unread = [], []
    for name in studies_in(database.storage):
        try:
            summary = summary_of(load(name, database), database.url)
            with reading(name):
                rows.append((summary.get("family"), list_row(summary)))
        except UsageError as error:  # another version's: the others are still to be seen
            unread.append(str(error))
    show_list(out, rows)
    for line in unread:
        say(line)


def widths(
    study: Annotated[str | None, typer.Argument(metavar="STUDY.py[:name]", help="The study file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A network without a study: package.module:function or file.py:function."),
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="Its input's shape, 1,3,224,224 or 1,16:int; repeatable."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="What it may cost, e.g. macs=0.25x,params=0.25x; default: the study's.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which widths of a network can be searched, and what needs no training under a budget.

    That is the network scaled uniformly, and cost-aware widths: wide where that costs little.
    """
    from dataclasses import replace

    from widthsearch.driver import inspection
    from widthsearch.show.tables import show_widths
    from widthsearch.study.budget import Budget
    from widthsearch.study.file import load_study

    if (study is None) == (model is None):
        raise UsageError("give a study file, or --model module:function with --input 1,3,224,224")
    if (model is None) != (not input_):
        raise UsageError("--model and --input go together: --model module:function --input 1,3,224,224")
    given = None if budget is None else Budget.parse(budget)
    if study is not None:
        asked = load_study(study).study
        found = inspection.widths_of_study(asked if given is None else replace(asked, budget=given))
    else:
        found = inspection.widths_of_model(str(model), input_ or [], given)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_widths(out, found)


def report(
    name: Name = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="The .html file; default: NAME.html.", show_default=False),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write everything about a study as one HTML page that needs no network."""
    from widthsearch.database.checks import reading
    from widthsearch.plans.words import slug
    from widthsearch.report.summary import name_of, summary_of_name
    from widthsearch.show.page import report_page
    from widthsearch.show.style import check_figure, write_file

    if output is not None:
        check_figure("-o", output)
    database = opened(storage)
    summary = summary_of_name(name, database)
    file = output or f"{slug(name_of(summary))}.html"
    check_figure("-o", file)
    with reading(name_of(summary)):
        page = report_page(summary, database)
    write_file(page.encode(errors="backslashreplace"), file)
    say(file)


def draw(
    file: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The picture to write: .svg or .png.")
    ],
    name: Name = None,
    storage: Storage = None,
) -> None:
    """Draw the network before (seed, uniform), over-wide and after (best found), layer by layer, to scale."""
    from widthsearch.database.checks import reading
    from widthsearch.report.summary import summary_of
    from widthsearch.show import picture
    from widthsearch.show.drawing import drawn
    from widthsearch.show.pages import search_only

    picture.check(file)
    study, database = open_study(name, storage)
    summary = search_only(summary_of(study, database.url), "draw shows a single search")
    with reading(study.study_name):
        svg = drawn(study, summary)
    picture.write(svg, file)
    say(f"drawn into {file}")


def serve(
    storage: Storage = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; beyond this machine with a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8090,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="The token in it is asked for (header Authorization: Bearer, or a form)."
        ),
    ] = None,
) -> None:
    """Serve a page for a team: all studies, their reports, and /api/studies/NAME.  It only reads."""
    if any(find_spec(package) is None for package in ("starlette", "uvicorn", "plotly")):
        raise UsageError("serve needs an extra: pip install 'widthsearch[serve]'")
    from widthsearch.serve.app import serve, token_in

    token = None if token_file is None else token_in(token_file)
    listen(interrupt)
    with suppress(KeyboardInterrupt):
        serve(opened(storage), host, port, token, say)
    out.print("ended")


def dashboard(
    storage: Storage = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0: any free one.")] = 8080,
) -> None:
    """Start optuna-dashboard, with the tables and figures of all studies in it."""
    if any(find_spec(package) is None for package in ("optuna_dashboard", "plotly")):
        raise UsageError("the dashboard needs an extra: pip install 'widthsearch[dashboard]'")
    from widthsearch.show.dashboard import serve

    listen(interrupt)
    try:
        serve(opened(storage), port, say)
    except KeyboardInterrupt:
        out.print("ended")

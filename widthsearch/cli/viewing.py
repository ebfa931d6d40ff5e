"""Commands that only look: show, list, widths."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from widthsearch.cli.options import AsJson, Name, Plot, Storage, app, one_line_errors
from widthsearch.cli.summaries import check_plot, print_named, watch
from widthsearch.driver.backend import out
from widthsearch.errors import UsageError


@app.command()
@one_line_errors
def show(
    name: Name = None,
    storage: Storage = None,
    as_json: AsJson = False,
    plot: Plot = None,
    watching: Annotated[bool, typer.Option("--watch", help="Redraw the page until the search ends.")] = False,
) -> None:
    """Show what a study recommends, or what a family, comparison or probe found, while it runs or after."""
    from widthsearch.database.connection import url_from

    check_plot(plot)
    if watching and not as_json:
        return watch(name, url_from(storage))
    return print_named(name, url_from(storage), as_json, plot)


@app.command(name="list")
@one_line_errors
def list_(storage: Storage = None) -> None:
    """List the studies of a database."""
    from widthsearch.database.connection import open_storage, url_from
    from widthsearch.database.records import load, study_names
    from widthsearch.errors import UsageError
    from widthsearch.report.summary import summary_of
    from widthsearch.show.tables import show_list

    url = url_from(storage)
    opened = open_storage(url, create=False)
    summaries, unread = [], []
    for name in study_names(opened):
        try:
            summaries.append(summary_of(load(name, opened, url), url))
        except UsageError as error:  # another version's: the others are still to be seen
            unread.append(str(error))
    show_list(out, summaries)
    for line in unread:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
@one_line_errors
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
    from widthsearch.study.study import load_study

    if (study is None) == (model is None):
        raise UsageError("give a study file, or --model module:function with --input 1,3,224,224")
    if (model is None) != (not input_):
        raise UsageError("--model and --input go together: --model module:function --input 1,3,224,224")
    given = None if budget is None else Budget.parse(budget)
    if study is not None:
        asked = load_study(study)[0]
        found = inspection.widths_of_study(asked if given is None else replace(asked, budget=given))
    else:
        found = inspection.widths_of_model(str(model), input_ or [], given)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_widths(out, found)

"""A probe as a page for the terminal and as a figure: from the object that ``show --json`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from widthsearch.plans.words import amounts, counted, joined
from widthsearch.report.probe import end_of
from widthsearch.report.types.kinds import Apart, ProbeSummary, StartFound
from widthsearch.show.console import Line, Name, table
from widthsearch.show.formats import count, interval, opening, plus_minus, spent
from widthsearch.show.style import COLOURS, GREY, layout, nothing_yet

COLUMNS = 4  # panels side by side
DASHES = ("solid", "dash", "dot")  # for starts beyond the colours


def probe_page(s: ProbeSummary) -> Group:
    """The page: where every start leads, how its end fares on the fresh seeds, how far apart all are."""
    plain = end_of(s["starts"][0])
    variables = "-".join(s["starts"][0]["seed"]["widths"])
    lines = [
        f"budget of all starts {amounts(s['budget'])}; widths are {variables}",
        f"back: within a factor {s['within']:g} of what the plain search found",
    ]
    return Group(
        *opening(s),
        *map(Line, lines),
        "",
        _courses(s["starts"], plain and plain["widths"]),
        "",
        _ends(s["starts"]),
        "",
        _spread_table(s),
        "",
        *(Line(f"{', '.join(of)}: {note}") for note, of in _notes(s["starts"]).items()),
        spent(s),
    )


def _notes(starts: Sequence[StartFound]) -> dict[str, list[str]]:
    """What is to be said of starts, and of which."""
    notes: dict[str, list[str]] = {}
    for start in starts:
        if start["same_as"] is not None:
            of = [f"the same proportions as {start['same_as']}, and so the same search"]
        else:
            of = [start["stopped_because"]] if start["stopped_because"] else []
            if start["started_from"] == "cost-aware":
                of.append("cost-aware widths scored better, and were searched from")
        for note in of:
            notes.setdefault(note, []).append(start["start"])
    return notes


def _courses(starts: Sequence[StartFound], wanted: Mapping[str, int] | None) -> Table:
    rows = table("start", "after", "inflated layer", "all layers", "widths", left=(0, 1, 4))
    for s in starts:
        if s["same_as"] is not None:
            continue
        layer = s["layer"]
        for i, widths in enumerate(s["course"]):
            if i == 1 and s["started_from"] == "uniform":
                continue  # it stands there already
            of = f" of {wanted[layer]}" if wanted and layer else ""
            rows.add_row(
                Text(s["start"] if i == 0 else ""),
                ("scaling to the budget", "cost-aware start")[i] if i < 2 else f"round {i - 1}",
                f"{widths[layer]}{of}" if layer else "",
                "" if s["close"] is None else f"{s['close'][i]} of {len(widths)} back",
                Name(joined(widths)),
            )
    return rows


def _ends(starts: Sequence[StartFound]) -> Table:
    headers = ("start", "best found", "back after", "loss, fresh seeds", "n", "gain over plain (95 %)")
    rows = table(*headers, left=range(3), spare=("n", "back after"))
    for s in starts:
        is_plain = starts[0]["start"] in (s["start"], s["same_as"])
        rows.add_row(
            Text(s["start"]),
            Name(joined(end["widths"])) if (end := end_of(s)) else "-",
            "" if is_plain or s["close"] is None else _back(s),
            plus_minus(s["fresh_loss"]),
            count(s["fresh_loss"]),
            "" if is_plain else interval(s["gain_over_plain"]),
        )
    return rows


def _back(start: StartFound) -> str:
    rounds = len(start["rounds"])
    if start["back_after"] is not None:
        return "the start" if start["back_after"] < 0 else f"round {1 + start['back_after']}"
    return f"not in {counted(rounds, 'round')}" if rounds else "-"


def _spread_table(s: ProbeSummary) -> Table:
    """Per variable: how far apart the starts are, and how far apart what they recommend is."""
    before, after = s["spread"]["baseline"], s["spread"]["recommended"]
    chance = s["spread_by_chance"]
    headers = ["width variable", f"{len(s['spread']['of'])} starts", "sd of log2"]
    headers += ["best found", "ratio", "sd of log2", *(["sd by chance"] if chance else [])]
    rows = table(*headers, spare=("ratio",))
    for v, end in after.items():
        ends = (_range(end), f"{end['ratio']:.2f}", _sd(end))
        by_chance = [_sd(chance["recommended"][v])] if chance else []
        rows.add_row(Name(v), _range(before[v]), _sd(before[v]), *ends, *by_chance)
    return rows


def _range(spread: Apart) -> str:
    low, high = spread["smallest"], spread["largest"]
    return str(low) if low == high else f"{low} to {high}"


def _sd(spread: Apart) -> str:
    return "-" if spread["log2_sd"] is None else f"{spread['log2_sd']:.2f}"


def probe_figure(s: ProbeSummary) -> Any:
    """One panel per width variable, log axis, and a line per start.

    From its uniform baseline over the network that it is searched from, and the best one after each round, to
    what it recommends.  Grey: the plain start; thick: the one that this layer was inflated in.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    starts = [start for start in s["starts"] if start["same_as"] is None and start["rounds"]]
    if not starts:
        return nothing_yet(escape(s["study"]), "no start has made a round yet")
    variables = list(starts[0]["seed"]["widths"])
    columns = min(COLUMNS, len(variables))
    rows = -(-len(variables) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=variables,
        shared_yaxes="all",
        horizontal_spacing=0.03,
        vertical_spacing=0.3 / rows,
    )
    last = max(len(start["course"]) for start in starts) - 1
    ticks = ["scaled", "start", *(f"round {1 + r}" for r in range(last - 1)), "end"]
    for i, start in enumerate(starts):
        # Grey and thick: the plain start.
        colour = COLOURS[(i - 1) % len(COLOURS)] if i else GREY
        style = {"color": colour, "dash": DASHES[(i - 1) // len(COLOURS) % len(DASHES)] if i else "solid"}
        course = list(enumerate(start["course"]))
        if (end := end_of(start)) is not None:
            course.append((last + 1, end["widths"]))
        for j, v in enumerate(variables):
            figure.add_scatter(
                x=[x for x, _ in course],
                y=[widths[v] for _, widths in course],
                name=start["start"],
                legendgroup=start["start"],
                showlegend=j == 0,
                mode="lines+markers",
                line={**style, "width": 4 if start["layer"] == v or i == 0 else 1.5},
                row=1 + j // columns,
                col=1 + j % columns,
            )
    figure.update_yaxes(type="log", dtick="D2")
    figure.update_xaxes(tickvals=list(range(last + 2)), ticktext=ticks, showticklabels=True, zeroline=False)
    figure.update_yaxes(title="width, in units", col=1)
    title = f"{escape(s['study'])}: {len(starts)} starts under one budget"
    figure.update_layout(**layout(title, height=150 + 260 * rows))
    return figure

"""The figure of a probe: every start's way to its widths."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from widthsearch.show.style import COLOURS, layout, nothing_yet

COLUMNS = 4  # panels side by side
DASHES = ("solid", "dash", "dot")  # for starts beyond the colours


def probe_figure(summary: Mapping[str, Any]) -> Any:
    """One panel per width variable, log axis, and a line per start.

    From its uniform baseline over the network that it is searched from, and the best one after each round, to
    what it recommends.  Black: the plain start; thick: the one that this layer was inflated in.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    starts = [s for s in summary["starts"] if s["same_as"] is None and s["rounds"]]
    if not starts:
        return nothing_yet(escape(summary["study"]), "no start has made a round yet")
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
    last = max(len(s["course"]) for s in starts) - 1
    ticks = ["scaled", "start", *(f"round {r}" for r in range(last - 1)), "end"]
    for i, s in enumerate(starts):
        # The last colour, black, is the first start's.
        line = {"color": COLOURS[(i - 1) % len(COLOURS)], "dash": DASHES[i // len(COLOURS) % len(DASHES)]}
        course = list(enumerate(s["course"]))
        if s["recommended"] is not None:
            course.append((last + 1, s["recommended"]["widths"]))
        for j, v in enumerate(variables):
            figure.add_scatter(
                x=[x for x, _ in course],
                y=[widths[v] for _, widths in course],
                name=s["start"],
                legendgroup=s["start"],
                showlegend=j == 0,
                mode="lines+markers",
                line={**line, "width": 4 if s["layer"] == v or i == 0 else 1.5},
                row=1 + j // columns,
                col=1 + j % columns,
            )
    figure.update_yaxes(type="log", dtick="D2")
    figure.update_xaxes(tickvals=list(range(last + 2)), ticktext=ticks, showticklabels=True)
    figure.update_yaxes(title="width", col=1)
    title = f"{summary['study']}: {len(starts)} starts under one budget"
    figure.update_layout(**layout(title, height=150 + 260 * rows))
    return figure

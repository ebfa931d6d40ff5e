"""The figure of a probe: every start's way to its widths.  It needs plotly: ``widthsearch[plots]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from widthsearch.views.compare_plots import COLOURS, write

COLUMNS = 4  # panels side by side
DASHES = ("solid", "dash", "dot")  # for starts beyond the colours


def write_probe(summary: Mapping[str, Any], file: str) -> None:
    """Draw a probe into an HTML file; :class:`UsageError` where that cannot be."""
    write(probe_figure(summary), file)


def probe_figure(summary: Mapping[str, Any]) -> Any:
    """One panel per width variable, log axis: a line per start from its uniform baseline over what its rounds
    propose to what it recommends.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    starts = [s for s in summary["starts"] if s["same_as"] is None]
    variables = list(starts[0]["seed"]["widths"])
    columns = min(COLUMNS, len(variables))
    rows = -(-len(variables) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=variables,
        shared_xaxes="all",
        vertical_spacing=0.3 / rows,
    )
    last = max(len(s["course"]) for s in starts) - 1
    ticks = ["uniform", *(f"round {r}" for r in range(last)), "recommended"]
    for i, s in enumerate(starts):
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
                line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i // len(COLOURS) % len(DASHES)]},
                row=1 + j // columns,
                col=1 + j % columns,
            )
    figure.update_yaxes(type="log", dtick=1, minor={"dtick": "D1"})
    figure.update_xaxes(tickvals=list(range(last + 2)), ticktext=ticks, showticklabels=True)
    figure.update_yaxes(title="width", col=1)
    title = f"{summary['study']}: {len(starts)} starts under one budget"
    figure.update_layout(title=title, template="plotly_white", font_size=12, height=150 + 260 * rows)
    return figure

"""Figures, from the object that ``show --json`` prints.  They need plotly: ``widthsearch[plots]``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

from widthsearch.errors import UsageError

# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")


def write_comparison(summary: Mapping[str, Any], file: str) -> None:
    """Draw a comparison into an HTML file that needs no network; :class:`UsageError` where that cannot be."""
    if "comparison" not in summary:
        raise UsageError(f"--plot: study {summary['study']!r} is no comparison")
    write(comparison_figure(summary), file)


def write(figure: Any, file: str) -> None:
    """Write a figure as an HTML file that needs no network; :class:`UsageError` where that cannot be."""
    check(file)
    try:
        Path(file).write_text(figure.to_html(include_plotlyjs=True, config={"displaylogo": False}), "utf-8")
    except OSError as error:
        raise UsageError(f"--plot {file!r} cannot be written: {error.strerror}") from None


def check(file: str) -> None:
    """:class:`UsageError` for a name that is none of an HTML file's, and where plotly is missing."""
    if not file.endswith(".html"):
        raise UsageError(f"--plot {file!r}: give the name of an .html file")
    if find_spec("plotly") is None:
        raise UsageError("--plot needs plotly: pip install 'widthsearch[plots]'")


def comparison_figure(summary: Mapping[str, Any]) -> Any:
    """Loss on fresh seeds against what the search had cost by then: one line per arm, one panel per budget.

    Mean over repeats, bars for the standard error over seeds.  Arms without a search are dashed lines.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    budgets = summary["budgets"]
    units = {"macs": "MACs", "params": "parameters"}
    titles = [
        ", ".join(f"{n:,} {units[r]}" for r, n in entry["budget"].items() if n is not None)
        for entry in budgets
    ]
    figure = make_subplots(cols=len(budgets), subplot_titles=titles)
    colours = dict(zip(summary["arms"], COLOURS * len(summary["arms"]), strict=False))
    for column, entry in enumerate(budgets, start=1):
        longest = max((a["search_cost"] for a in entry["arms"]), default=1.0) or 1.0
        for a in entry["arms"]:
            _add_arm(figure, column, a, colours[a["arm"]], longest)
    figure.update_xaxes(title="search cost, in uniform trainings", rangemode="tozero")
    figure.update_yaxes(title="validation loss, fresh seeds", col=1)
    title = f"{summary['study']}: loss against search cost ({summary['repeats']} repeats)"
    figure.update_layout(title=title, template="plotly_white", font_size=13, height=560)
    return figure


def _add_arm(figure: Any, column: int, arm: Mapping[str, Any], colour: str, longest: float) -> None:
    style = {"name": arm["arm"], "legendgroup": arm["arm"], "showlegend": column == 1}
    if arm["search_cost"] == 0 and arm["val_loss"] is not None:
        loss = arm["val_loss"]["mean"]
        level = {"x": [0, longest], "y": [loss, loss], "mode": "lines"}
        figure.add_scatter(**level, line={"color": colour, "dash": "dash"}, row=1, col=column, **style)
        return
    # Repeats may stop after different rounds: the n-th points of all that have one are averaged.
    xs, ys, bars = [], [], []
    for points in zip_longest(*arm["course"]):
        known = [p for p in points if p is not None and p["val_loss"] is not None]
        if known:
            xs.append(sum(p["search_cost"] for p in known) / len(known))
            ys.append(sum(p["val_loss"]["mean"] for p in known) / len(known))
            bars.append(sum(p["val_loss"]["se"] or 0.0 for p in known) / len(known))
    figure.add_scatter(
        x=xs,
        y=ys,
        error_y={"array": bars, "thickness": 1},
        mode="lines+markers",
        marker={"size": 8},
        line={"color": colour},
        row=1,
        col=column,
        **style,
    )

"""The figure of a comparison, from the object that ``show --json`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from widthsearch.plans.words import amounts
from widthsearch.show.style import COLOURS, layout


def comparison_figure(summary: Mapping[str, Any]) -> Any:
    """Loss on fresh seeds against what the search had cost by then: one line per arm, one panel per budget.

    Mean over repeats, bars for the standard error over seeds.  Arms without a search are dashed lines.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    budgets = summary["budgets"]
    titles = [amounts(entry["budget"]) for entry in budgets]
    figure = make_subplots(cols=len(budgets), subplot_titles=titles)
    colours = dict(zip(summary["arms"], COLOURS * len(summary["arms"]), strict=False))
    for column, entry in enumerate(budgets, start=1):
        longest = max((a["search_cost"] for a in entry["arms"]), default=1.0) or 1.0
        for a in entry["arms"]:
            _add_arm(figure, column, a, colours[a["arm"]], longest)
    figure.update_xaxes(title="search cost, in uniform trainings", rangemode="tozero")
    figure.update_yaxes(title="validation loss, fresh seeds", col=1)
    title = f"{summary['study']}: loss against search cost ({summary['repeats']} repeats)"
    figure.update_layout(**layout(title))
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

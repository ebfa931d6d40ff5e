"""The figure of a comparison of pruners: accuracy against what is removed, and against what that saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from widthsearch.show.style import COLOURS, layout

PANELS = {
    "weights_removed": "weights removed",
    "neurons_removed": "neurons removed",
    "macs_saved": "MACs that a dense machine saves",
    "time_saved": "measured inference time saved",
}
#: Shares that the levels are about; the others lie anywhere.
OF_LEVELS = ("weights_removed", "macs_saved")


def pruner_figure(summary: Mapping[str, Any]) -> Any:
    """Four panels, one line per pruner from the over-wide network on; bars: standard error over seeds.

    The axes are logarithmic in what is left, so that every halving is as far as the one before.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    start = summary["over_wide"]
    known = [start, *(level for p in summary["pruners"] for level in p["levels"])]
    quality = "val_accuracy" if all(row["val_accuracy"] for row in known) else "val_loss"
    figure = make_subplots(rows=2, cols=2, subplot_titles=list(PANELS.values()), vertical_spacing=0.14)
    for i, share in enumerate(PANELS):
        where = {"row": 1 + i // 2, "col": 1 + i % 2}
        for colour, p in zip(COLOURS, summary["pruners"], strict=False):
            rows = [level for level in p["levels"] if start[quality] is not None]
            figure.add_scatter(
                x=[1.0, *(1 - level[share]["mean"] for level in rows)] if rows else [],
                y=[row[quality]["mean"] for row in (start, *rows)] if rows else [],
                error_y={"array": [row[quality]["se"] or 0.0 for row in (start, *rows)] if rows else []},
                mode="lines+markers",
                line={"color": colour},
                marker={"size": 7},
                name=p["pruner"],
                legendgroup=p["pruner"],
                showlegend=i == 0,
                **where,
            )
        left = summary["levels"] if share in OF_LEVELS else [1 - tenth / 10 for tenth in range(1, 10)]
        labels = [f"{100 * (1 - value):.3g} %" for value in (1.0, *left)]
        figure.update_xaxes(
            type="log", autorange="reversed", tickvals=[1.0, *left], ticktext=labels, tickangle=0, **where
        )
    shown = "validation accuracy" if quality == "val_accuracy" else "validation loss"
    figure.update_yaxes(title=shown, col=1)
    if quality == "val_accuracy" and all(0 <= row[quality]["mean"] <= 1 for row in known):
        figure.update_yaxes(tickformat=".3~%")
    seeds = max((level["val_loss"]["n"] for level in known[1:]), default=0)
    over = f"mean and standard error, {seeds} seeds" if seeds > 1 else "one seed"
    title = f"{summary['study']}: what pruning costs and saves ({over})"
    return figure.update_layout(**layout(title, height=820))

"""A comparison of pruners as a page for the terminal and as a figure."""

from __future__ import annotations

from html import escape
from typing import Any

from rich.console import Group
from rich.table import Table

from widthsearch.maths.intervals import Stats
from widthsearch.plans.words import joined
from widthsearch.report.pruners import SHARES
from widthsearch.report.types.kinds import LevelFound, OverWide, PrunersSummary, Quality, Share, Winner
from widthsearch.show.console import Line, table
from widthsearch.show.formats import count, metric_form, opening, plus_minus, size, spent
from widthsearch.show.style import COLOURS, layout

#: What is held equal, and what is done to it.
EQUAL: dict[Share, tuple[str, str]] = {
    "weights_removed": ("weights", "removed"),
    "macs_saved": ("dense MACs", "saved"),
}
PANELS: dict[Share, str] = {
    "weights_removed": "weights removed",
    "neurons_removed": "neurons removed",
    "macs_saved": "MACs that a dense machine saves",
    "time_saved": "measured inference time saved",
}


def pruner_page(s: PrunersSummary) -> Group:
    """The page: pruners and levels, then which pruner wins at equal weights and at equal MACs."""
    start = s["over_wide"]
    about = (
        f"over-wide network {joined(start['widths'])}: {size(start)}; "
        "each level keeps a share of its MACs (obd: of its weights); below, what is removed or saved of it"
    )
    form = metric_form(row["val_accuracy"] for p in s["pruners"] for row in p["levels"])
    answers = [
        _answer(*EQUAL[share], found, form) for share, found in s["winners"].items() if found is not None
    ]
    return Group(*opening(s), Line(about), "", _levels(s, form), "", *map(Line, answers), spent(s))


def _levels(s: PrunersSummary, form: str) -> Table:
    headers = ("pruner", "level", "weights", "neurons", "MACs", "time", f"val {s['metric']}", "val loss", "n")
    rows = table(*headers, spare=("n", "time", "neurons"))
    start = s["over_wide"]
    if start["val_loss"]:
        rows.add_row("over-wide", "1", *["0 %"] * 4, *_quality(start, form))
    for p in s["pruners"]:
        for level in p["levels"]:
            shares = (f"{100 * _mean(level[share]):.1f} %" for share in SHARES)
            rows.add_row(p["pruner"], f"{level['level']:.4g}", *shares, *_quality(level, form))
    return rows


def _mean(stats: Stats | None) -> float:
    """Of what every run of a level has."""
    assert stats is not None
    return stats["mean"]


def _quality(network: LevelFound | OverWide, form: str) -> list[str]:
    loss = network["val_loss"]
    return [plus_minus(network["val_accuracy"], form), plus_minus(loss), count(loss)]


def _answer(equal: str, done: str, found: Winner, form: str) -> str:
    accuracy = found["quality"] == "val_accuracy"
    form = form if accuracy else "{:.4f}"
    best, second = found["pruner"], found["next"]
    shares = f"{found['at'][0]:.1%} to {found['at'][-1]:.1%}"
    text = (
        f"at equal {equal} (mean over {shares} {done}): {best} came out first, "
        f"{'accuracy' if accuracy else 'loss'} {form.format(found['mean'][best])}, then {second} "
        f"{form.format(found['mean'][second])}"
    )
    none = f"; {', '.join(found['left_out'])} has none {done}" if found["left_out"] else ""
    if found["gain"] is None:
        return f"{text}; one seed tells nothing of chance{none}"
    low, high = found["gain"]["ci95"]
    shown = "" if low > 0 else ": no difference shown"
    return f"{text} (95 % interval of the gain {form.format(low)} to {form.format(high)}{shown}){none}"


def pruner_figure(s: PrunersSummary) -> Any:
    """Four panels, one line per pruner from the over-wide network on; bars: standard error over seeds.

    The axes are logarithmic in what is left, so that every halving is as far as the one before.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    start = s["over_wide"]
    levels = [level for p in s["pruners"] for level in p["levels"]]
    of_accuracy = all(network["val_accuracy"] for network in (start, *levels))
    quality: Quality = "val_accuracy" if of_accuracy else "val_loss"
    figure = make_subplots(rows=2, cols=2, subplot_titles=list(PANELS.values()), vertical_spacing=0.14)
    for i, share in enumerate(PANELS):
        where = {"row": 1 + i // 2, "col": 1 + i % 2}
        for colour, p in zip(COLOURS, s["pruners"], strict=False):
            way = [(1.0, start[quality]), *((1 - _mean(of[share]), of[quality]) for of in p["levels"])]
            known = [(left, stats) for left, stats in way if stats is not None and p["levels"]]
            figure.add_scatter(
                x=[left for left, _ in known],
                y=[stats["mean"] for _, stats in known],
                error_y={"array": [stats["se"] or 0.0 for _, stats in known]},
                mode="lines+markers",
                line={"color": colour},
                marker={"size": 7},
                name=p["pruner"],
                legendgroup=p["pruner"],
                showlegend=i == 0,
                **where,
            )
        # The levels are about shares of weights and MACs; the others lie anywhere.
        left = s["levels"] if share in EQUAL else [1 - tenth / 10 for tenth in (2, 4, 6, 8, 9)]
        labels = [f"{100 * (1 - value):.3g} %" for value in (1.0, *left)]
        figure.update_xaxes(
            type="log", autorange="reversed", tickvals=[1.0, *left], ticktext=labels, tickangle=0, **where
        )
    figure.update_yaxes(title="validation accuracy" if of_accuracy else "validation loss", col=1)
    if of_accuracy and all(0 <= _mean(network["val_accuracy"]) <= 1 for network in (start, *levels)):
        figure.update_yaxes(tickformat=".3~%")
    seeds = max((level["val_loss"]["n"] for level in levels if level["val_loss"]), default=0)
    over = f"mean and standard error, {seeds} seeds" if seeds > 1 else "one seed"
    title = f"{escape(s['study'])}: what pruning costs and saves ({over})"
    return figure.update_layout(**layout(title, height=820))

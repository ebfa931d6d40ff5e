"""A comparison as a page for the terminal and as a figure: from the object that ``show --json`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from statistics import mean
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from widthsearch.plans.words import amounts, counted, joined
from widthsearch.report.decision import significant
from widthsearch.report.types.kinds import ArmFound, ComparisonSummary, OneOfMany
from widthsearch.show.console import Line, Name, table
from widthsearch.show.formats import count, interval, median, metric_form, opening, plus_minus, spent
from widthsearch.show.style import COLOURS, GREY, layout

#: Under the tables of gains.
NOTE = (
    "MACs, params: of what an arm recommends, mean over repeats; *: significant at 5 % by Holm's method, for "
    "all differences to the same arm together, under all budgets; an interval is that of its difference alone"
)


def comparison_page(s: ComparisonSummary) -> Group:
    """The page: per budget, what the arms recommend, and how that fares on the same fresh seeds."""
    parts: list[RenderableType] = [*opening(s)]
    for entry in s["budgets"]:
        cost = f"each search may cost {entry['search_cost']:.0f} uniform trainings"
        parts += ["", Line(f"budget {amounts(entry['budget'])}; {cost}; {counted(s['repeats'], 'repeat')}")]
        if entry["arms"]:
            parts += [_recommendations(entry["arms"], s["metric"]), "", _gains(entry["arms"])]
        else:
            parts.append("no arm recommends anything yet")
    return Group(*parts, "", Line(NOTE), spent(s))


def _recommendations(arms: Sequence[ArmFound], metric: str) -> Table:
    what = ("arm", "widths (repeat 1)", "search cost", "within 1 % after")
    headers = (*what, "val loss", "median", "n", f"val {metric}")
    rows = table(*headers, left=(0, 1), spare=("median", "within 1 % after", "search cost"))
    form = metric_form(a["val_accuracy"] for a in arms)
    for a in arms:
        loss, close = a["val_loss"], a["cost_to_close"]
        rows.add_row(
            a["arm"],
            Name(joined(a["widths"][0])),
            f"{a['search_cost']:.1f}",
            "-" if close is None else f"{close:.1f}",
            *(plus_minus(loss), median(loss), count(loss)),
            plus_minus(a["val_accuracy"], form),
        )
    return rows


def _gains(arms: Sequence[ArmFound]) -> Table:
    over = ("gain over uniform (95 %)", "gain over grow-shrink (95 %)")
    rows = table("arm", "MACs", "params", *over)
    for a in arms:
        rows.add_row(
            a["arm"],
            f"{mean(a['macs']):,.0f}",
            f"{mean(a['params']):,.0f}",
            "" if a["arm"] == "uniform" else _gain(a["gain_over_uniform"]),
            "" if a["arm"] == "grow-shrink" else _gain(a["gain_over_ours"]),
        )
    return rows


def _gain(gain: OneOfMany | None) -> str:
    return interval(gain) + (" *" if significant(gain) else "  ")


def comparison_figure(s: ComparisonSummary) -> Any:
    """Loss on fresh seeds against what the search had cost by then: one line per arm, one panel per budget.

    Mean over repeats, bars for the standard error over seeds.  Arms without a search are dashed lines.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    budgets = s["budgets"]
    figure = make_subplots(cols=len(budgets), subplot_titles=[amounts(entry["budget"]) for entry in budgets])
    searching = [arm for arm in s["arms"] if arm != "uniform"]
    colours = dict(zip(searching, COLOURS * len(searching), strict=False)) | {"uniform": GREY}
    for column, entry in enumerate(budgets, start=1):
        longest = max((a["search_cost"] for a in entry["arms"]), default=1.0) or 1.0
        for a in entry["arms"]:
            _add_arm(figure, column, a, colours[a["arm"]], longest)
    figure.update_xaxes(title="search cost, in uniform trainings", rangemode="tozero")
    figure.update_yaxes(title="validation loss, fresh seeds", col=1)
    title = f"{escape(s['study'])}: loss against search cost ({s['repeats']} repeats)"
    figure.update_layout(**layout(title))
    return figure


def _add_arm(figure: Any, column: int, arm: ArmFound, colour: str, longest: float) -> None:
    style: dict[str, Any] = {"name": arm["arm"], "legendgroup": arm["arm"], "showlegend": column == 1}
    if arm["search_cost"] == 0 and arm["val_loss"] is not None:
        loss = arm["val_loss"]["mean"]
        level = {"x": [0, longest], "y": [loss, loss], "mode": "lines"}
        figure.add_scatter(**level, line={"color": colour, "dash": "dash"}, row=1, col=column, **style)
        return
    # Repeats may stop after different rounds: the n-th points of all that have one are averaged.
    xs, ys, bars = [], [], []
    for points in zip_longest(*arm["course"]):
        known = [(p["search_cost"], p["val_loss"]) for p in points if p is not None]
        losses = [(cost, loss) for cost, loss in known if loss is not None]
        if losses:
            xs.append(sum(cost for cost, _ in losses) / len(losses))
            ys.append(sum(loss["mean"] for _, loss in losses) / len(losses))
            bars.append(sum(loss["se"] or 0.0 for _, loss in losses) / len(losses))
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

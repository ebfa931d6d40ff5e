"""One comparison as a page for the terminal: from the object that ``show --json`` prints, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from widthsearch.plans.words import amounts, joined
from widthsearch.show.formats import count, headline, interval, line, median, metric_form, plus_minus


def comparison_page(s: Mapping[str, Any]) -> Group:
    """The page: per budget, what the arms recommend, and how that fares on the same fresh seeds."""
    parts: list[RenderableType] = [headline(s)]
    for entry in s["budgets"]:
        repeats = f"{s['repeats']} repeat{'' if s['repeats'] == 1 else 's'}"
        cost = f"each search may cost {entry['search_cost']:.0f} uniform trainings"
        parts += ["", line(f"budget {amounts(entry['budget'])}; {cost}; {repeats}")]
        if entry["arms"]:
            parts += [_recommendations(entry["arms"], s["metric"]), "", _gains(entry["arms"])]
        else:
            parts.append("no arm recommends anything yet")
    total = f"all trainings: {s['training_macs']:.3g} MACs, {s['seconds']:.0f} worker seconds"
    return Group(*parts, "", line(total))


def _recommendations(arms: Sequence[Mapping[str, Any]], metric: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(("arm", "widths (first repeat)", "MACs", "params", "val loss", "median", "n")):
        table.add_column(name, justify="right" if i > 1 else "left", overflow="fold")
    table.add_column(f"val {escape(metric)}", justify="right")
    form = metric_form(a["val_accuracy"] for a in arms)
    for a in arms:
        loss = a["val_loss"]
        table.add_row(
            a["arm"],
            joined(a["widths"][0]),
            f"{a['macs'][0]:,}",
            f"{a['params'][0]:,}",
            *(plus_minus(loss), median(loss), count(loss)),
            plus_minus(a["val_accuracy"], form),
        )
    return table


def _gains(arms: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    headers = (
        "arm",
        "gain over uniform (95 %)",
        "gain over grow-shrink (95 %)",
        "search cost",
        "within 1 % after",
    )
    for i, name in enumerate(headers):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for a in arms:
        close = a["cost_to_close"]
        gains = [
            "" if a["arm"] == of else interval(a[key])
            for of, key in (("uniform", "gain_over_uniform"), ("grow-shrink", "gain_over_ours"))
        ]
        table.add_row(a["arm"], *gains, f"{a['search_cost']:.1f}", "-" if close is None else f"{close:.1f}")
    return table

"""One comparison as a page for the terminal: from the object that ``show --json`` prints, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from widthsearch.plans.words import amounts, counted, joined
from widthsearch.show.console import table
from widthsearch.show.formats import count, headline, interval, line, median, metric_form, plus_minus


def comparison_page(s: Mapping[str, Any]) -> Group:
    """The page: per budget, what the arms recommend, and how that fares on the same fresh seeds."""
    parts: list[RenderableType] = [headline(s)]
    for entry in s["budgets"]:
        cost = f"each search may cost {entry['search_cost']:.0f} uniform trainings"
        parts += ["", line(f"budget {amounts(entry['budget'])}; {cost}; {counted(s['repeats'], 'repeat')}")]
        if entry["arms"]:
            parts += [_recommendations(entry["arms"], s["metric"]), "", _gains(entry["arms"])]
        else:
            parts.append("no arm recommends anything yet")
    total = f"all trainings: {s['training_macs']:.3g} MACs, {s['seconds']:.0f} worker seconds"
    return Group(*parts, "", line(total))


def _recommendations(arms: Sequence[Mapping[str, Any]], metric: str) -> Table:
    headers = ("arm", "widths (first repeat)", "MACs", "params", "val loss", "median", "n", f"val {metric}")
    rows = table(*headers, left=(0, 1))
    form = metric_form(a["val_accuracy"] for a in arms)
    for a in arms:
        loss = a["val_loss"]
        rows.add_row(
            a["arm"],
            joined(a["widths"][0]),
            f"{a['macs'][0]:,}",
            f"{a['params'][0]:,}",
            *(plus_minus(loss), median(loss), count(loss)),
            plus_minus(a["val_accuracy"], form),
        )
    return rows


def _gains(arms: Sequence[Mapping[str, Any]]) -> Table:
    gains_over = ("gain over uniform (95 %)", "gain over grow-shrink (95 %)")
    rows = table("arm", *gains_over, "search cost", "within 1 % after")
    for a in arms:
        close = a["cost_to_close"]
        gains = [
            "" if a["arm"] == of else interval(a[key])
            for of, key in (("uniform", "gain_over_uniform"), ("grow-shrink", "gain_over_ours"))
        ]
        rows.add_row(a["arm"], *gains, f"{a['search_cost']:.1f}", "-" if close is None else f"{close:.1f}")
    return rows

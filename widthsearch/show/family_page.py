"""A family as a page for the terminal: what each budget buys, and what the search gained there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from widthsearch.plans.words import amounts, joined
from widthsearch.show.formats import count, interval, metric_form, plus_minus, status


def family_page(s: Mapping[str, Any]) -> Group:
    """The page: per budget, both networks on the same fresh seeds, then gains and costs."""
    head = Text.assemble((s["family"], "bold"), "  ", status(s))
    remark = Text("(search cost in uniform trainings at that budget)", "dim")
    return Group(head, "", _networks(s["members"]), "", _gains(s["members"]), remark)


def _networks(members: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    metric = members[0]["metric"]
    columns = ("study", "network", "widths", "MACs", "params", "val loss", f"val {metric}", "n")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i > 2 else "left", overflow="fold")
    for m in members:
        found = m["recommended"]
        same = found is not None and found["round"] is None  # nothing better was found
        rows = [("uniform, recommended" if same else "uniform", m["baseline"])]
        rows += [("recommended", found)] if found and not same else []
        for i, (name, network) in enumerate(rows):
            loss, accuracy = network["val_loss"], network["val_accuracy"]
            table.add_row(
                Text(m["study"] if i == 0 else ""),
                name,
                joined(network["widths"]),
                *(f"{network['macs']:,}", f"{network['params']:,}"),
                *(plus_minus(loss), plus_minus(accuracy, metric_form([accuracy])), count(loss)),
            )
    return table


def _gains(members: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(("study", "status", "budget", "gain (95 %)", "verdict", "search cost")):
        table.add_column(name, justify="right" if i == 5 else "left", overflow="fold")
    for m in members:
        waiting = m["status"] == "running" and not m["trials"]
        cost = m["cost"]["in_uniform_trainings"]
        spent = "-" if cost is None else f"{cost:.1f}"
        state = Text("waiting") if waiting else status(m)
        gain = interval(m["gain"])
        table.add_row(Text(m["study"]), state, amounts(m["budget"]), gain, m["verdict"] or "-", spent)
    return table

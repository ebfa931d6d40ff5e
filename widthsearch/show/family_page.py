"""A family as a page for the terminal: what each budget buys, and what the search gained there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from widthsearch.plans.words import amounts, joined
from widthsearch.show.console import table
from widthsearch.show.formats import count, interval, metric_form, plus_minus, status


def family_page(s: Mapping[str, Any]) -> Group:
    """The page: per budget, both networks on the same fresh seeds, then gains and costs."""
    head = Text.assemble((s["family"], "bold"), "  ", status(s))
    remark = Text("(search cost in uniform trainings at that budget)", "dim")
    return Group(head, "", _networks(s["members"]), "", _gains(s["members"]), remark)


def _networks(members: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("study", "network", "widths", "MACs", "params", "val loss", f"val {members[0]['metric']}", "n")
    found = table(*columns, left=range(3))
    for m in members:
        best = m["recommended"]
        same = best is not None and best["round"] is None  # nothing better was found
        rows = [("uniform, recommended" if same else "uniform", m["baseline"])]
        rows += [("recommended", best)] if best and not same else []
        for i, (name, network) in enumerate(rows):
            loss, accuracy = network["val_loss"], network["val_accuracy"]
            found.add_row(
                Text(m["study"] if i == 0 else ""),
                name,
                joined(network["widths"]),
                *(f"{network['macs']:,}", f"{network['params']:,}"),
                *(plus_minus(loss), plus_minus(accuracy, metric_form([accuracy])), count(loss)),
            )
    return found


def _gains(members: Sequence[Mapping[str, Any]]) -> Table:
    headers = ("study", "status", "budget", "gain (95 %)", "verdict", "search cost")
    found = table(*headers, left=range(5))
    for m in members:
        waiting = m["status"] == "running" and not m["trials"]
        cost = m["cost"]["in_uniform_trainings"]
        spent = "-" if cost is None else f"{cost:.1f}"
        state = Text("waiting") if waiting else status(m)
        gain = interval(m["gain"])
        found.add_row(Text(m["study"]), state, amounts(m["budget"]), gain, m["verdict"] or "-", spent)
    return found

"""A family as a page for the terminal and as a figure: what each budget buys, what the search gained."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from widthsearch.plans.words import amounts, joined
from widthsearch.report.types.common import Trained
from widthsearch.report.types.kinds import FamilySummary
from widthsearch.report.types.search import SearchSummary
from widthsearch.show.console import Line, Name, table
from widthsearch.show.formats import (
    count,
    interval,
    metric_form,
    opening,
    plus_minus,
    status,
    title,
)
from widthsearch.show.style import BLUE, GREY, RED, layout


def family_page(s: FamilySummary) -> Group:
    """The page: per budget, both networks on the same fresh seeds, then gains and costs."""
    remark = Line("(search cost in uniform trainings at that budget)", "dim")
    return Group(*opening(s), "", _networks(s["members"]), "", _gains(s["members"]), remark)


def _networks(members: Sequence[SearchSummary]) -> Table:
    metric = members[0]["metric"]
    headers = ("study", "network", "widths", "MACs", "params", "val loss", f"val {metric}", "n")
    rows = table(*headers, left=range(3), spare=("n", "params"))
    for m in members:
        networks: list[tuple[str, Trained]] = [
            ("uniform", m["baseline"]),
            *([(title(m), m["candidate"])] if m["candidate"] else []),
        ]
        for i, (name, network) in enumerate(networks):
            loss, accuracy = network["val_loss"], network["val_accuracy"]
            rows.add_row(
                Name(m["study"] if i == 0 else ""),
                name,
                Name(joined(network["widths"])),
                *(f"{network['macs']:,}", f"{network['params']:,}"),
                *(plus_minus(loss), plus_minus(accuracy, metric_form([accuracy])), count(loss)),
            )
    return rows


def _gains(members: Sequence[SearchSummary]) -> Table:
    headers = ("study", "status", "budget", "gain in loss (95 %)", "verdict", "search cost")
    rows = table(*headers, left=(0, 1, 2, 4), spare=("search cost", "budget"))
    for m in members:
        waiting = m["status"] == "running" and not m["trials"]
        cost = m["cost"]["in_uniform_trainings"]
        spent = "-" if cost is None else f"{cost:.1f}"
        state = Text("waiting") if waiting else status(m)
        gain = interval(m["gain"]) if m["candidate"] else "-"
        far, answer = m["progress"], m["decision"]["answer"]
        said = f"{far['done']} of {far['at_most']}" if answer == "not finished" else answer
        rows.add_row(Name(m["study"]), state, amounts(m["budget"]), gain, said, spent)
    return rows


_AXES: dict[Literal["macs", "params"], str] = {"macs": "MACs", "params": "parameters"}


def family_figure(s: FamilySummary) -> Any:
    """Loss against MACs and against parameters (log scale): the best networks found and the uniform ones.

    Mean over the fresh seeds, bars for the standard error.  The seed network is a point where it was trained:
    where it is the uniform network of its own cost.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    uniform: list[tuple[str, Trained]] = [(m["study"], m["baseline"]) for m in s["members"]]
    best = [(m["study"], found) for m in s["members"] if (found := m["candidate"] or m["recommended"])]
    seed = [
        (m["study"], m["baseline"]) for m in s["members"] if m["baseline"]["widths"] == m["seed"]["widths"]
    ]
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for column, (resource, axis) in enumerate(_AXES.items(), start=1):
        style: dict[str, Any] = {"mode": "lines+markers", "line": {"color": GREY, "dash": "dash"}}
        style["marker"] = {"size": 13, "symbol": "circle-open"}
        _add(figure, column, resource, uniform, name="uniform", **style)
        style |= {"line": {"color": BLUE, "dash": "solid"}, "marker": {"size": 8}}
        _add(figure, column, resource, best, name="best found", **style)
        style = {"mode": "markers", "marker": {"color": RED, "symbol": "star", "size": 14}}
        _add(figure, column, resource, seed[:1], name="seed network", **style)
        figure.update_xaxes(type="log", title=axis, col=column)
    figure.update_yaxes(title="validation loss", col=1)
    heading = f"{escape(s['family'])}: loss against cost (mean and standard error over fresh seeds)"
    figure.update_layout(**layout(heading))
    return figure


def _add(
    figure: Any,
    column: int,
    resource: Literal["macs", "params"],
    networks: Sequence[tuple[str, Trained]],
    *,
    name: str,
    **style: Any,
) -> None:
    """One curve, of the networks that have a loss; in the order of their cost."""
    known = [(study, n, loss) for study, n in networks if (loss := n["val_loss"]) is not None]
    if not known:
        return
    known.sort(key=lambda entry: entry[1][resource])
    figure.add_scatter(
        x=[network[resource] for _, network, _ in known],
        y=[loss["mean"] for _, _, loss in known],
        error_y={"array": [loss["se"] or 0.0 for _, _, loss in known], "thickness": 1},
        text=[f"{study}: {joined(network['widths'])}, n = {loss['n']}" for study, network, loss in known],
        hovertemplate="%{text}<br>%{x:,}: %{y:.4f}",
        name=name,
        legendgroup=name,
        showlegend=column == 1,
        row=1,
        col=column,
        **style,
    )

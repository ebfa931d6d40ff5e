"""A family as a page for the terminal and as a figure: what each budget buys, what the search gained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from widthsearch.plans.words import amounts, joined
from widthsearch.report.types import FamilySummary, SearchSummary, Trained
from widthsearch.show.console import table
from widthsearch.show.formats import count, interval, metric_form, plus_minus, status
from widthsearch.show.style import COLOURS, layout


def family_page(s: FamilySummary) -> Group:
    """The page: per budget, both networks on the same fresh seeds, then gains and costs."""
    head = Text.assemble((s["family"], "bold"), "  ", status(s))
    remark = Text("(search cost in uniform trainings at that budget)", "dim")
    return Group(head, "", _networks(s["members"]), "", _gains(s["members"]), remark)


def _networks(members: Sequence[SearchSummary]) -> Table:
    metric = members[0]["metric"]
    headers = ("study", "network", "widths", "MACs", "params", "val loss", f"val {metric}", "n")
    rows = table(*headers, left=range(3))
    for m in members:
        best = m["recommended"]
        same = best is not None and best["round"] is None  # nothing better was found
        networks: list[tuple[str, Trained]] = [
            ("uniform, recommended" if same else "uniform", m["baseline"]),
            *([("recommended", best)] if best and not same else []),
        ]
        for i, (name, network) in enumerate(networks):
            loss, accuracy = network["val_loss"], network["val_accuracy"]
            rows.add_row(
                Text(m["study"] if i == 0 else ""),
                name,
                joined(network["widths"]),
                *(f"{network['macs']:,}", f"{network['params']:,}"),
                *(plus_minus(loss), plus_minus(accuracy, metric_form([accuracy])), count(loss)),
            )
    return rows


def _gains(members: Sequence[SearchSummary]) -> Table:
    headers = ("study", "status", "budget", "gain (95 %)", "verdict", "search cost")
    rows = table(*headers, left=range(5))
    for m in members:
        waiting = m["status"] == "running" and not m["trials"]
        cost = m["cost"]["in_uniform_trainings"]
        spent = "-" if cost is None else f"{cost:.1f}"
        state = Text("waiting") if waiting else status(m)
        gain = interval(m["gain"])
        rows.add_row(Text(m["study"]), state, amounts(m["budget"]), gain, m["verdict"] or "-", spent)
    return rows


_AXES: dict[Literal["macs", "params"], str] = {"macs": "MACs", "params": "parameters"}


def family_figure(s: FamilySummary) -> Any:
    """Loss against MACs and against parameters (log scale): the recommended networks and the uniform ones.

    Mean over the fresh seeds, bars for the standard error.  The seed network is a point where it was trained:
    where it is the uniform network of its own cost.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    uniform: list[tuple[str, Trained]] = [(m["study"], m["baseline"]) for m in s["members"]]
    best = [(m["study"], found) for m in s["members"] if (found := m["recommended"]) is not None]
    seed = [
        (m["study"], m["baseline"]) for m in s["members"] if m["baseline"]["widths"] == m["seed"]["widths"]
    ]
    orange, blue = COLOURS[1], COLOURS[0]
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for column, (resource, title) in enumerate(_AXES.items(), start=1):
        style: dict[str, Any] = {"mode": "lines+markers", "line": {"color": orange, "dash": "dash"}}
        style["marker"] = {"size": 13, "symbol": "circle-open"}
        _add(figure, column, resource, uniform, name="uniform", **style)
        style |= {"line": {"color": blue, "dash": "solid"}, "marker": {"size": 8}}
        _add(figure, column, resource, best, name="recommended", **style)
        style = {"mode": "markers", "marker": {"color": "black", "symbol": "star", "size": 14}}
        _add(figure, column, resource, seed[:1], name="seed network", **style)
        figure.update_xaxes(type="log", title=title, col=column)
    figure.update_yaxes(title="validation loss", col=1)
    title = f"{s['family']}: loss against cost (mean and standard error over fresh seeds)"
    figure.update_layout(**layout(title))
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

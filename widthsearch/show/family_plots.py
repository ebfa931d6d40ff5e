"""The figure of a family: loss against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from widthsearch.plans.words import joined
from widthsearch.show.style import COLOURS, layout

#: Key of a network in the JSON object -> its name in the figure.
CURVES = {"baseline": "uniform", "recommended": "recommended"}


def family_figure(summary: Mapping[str, Any]) -> Any:
    """Loss against MACs and against parameters (log scale): the recommended networks and the uniform ones.

    Mean over the fresh seeds, bars for the standard error.  The seed network is a point where it was trained:
    where it is the uniform network of its own cost.
    """
    from plotly.subplots import make_subplots  # here: it takes a second

    axes = {"macs": "MACs", "params": "parameters"}
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for column, (resource, title) in enumerate(axes.items(), start=1):
        for (key, name), colour in zip(CURVES.items(), COLOURS[1::-1], strict=True):
            known = [(m["study"], m[key]) for m in summary["members"] if m[key] and m[key]["val_loss"]]
            known.sort(key=lambda of: of[1][resource])
            dash = "dash" if key == "baseline" else "solid"
            marker = {"size": 13, "symbol": "circle-open"} if key == "baseline" else {"size": 8}
            style = {"mode": "lines+markers", "line": {"color": colour, "dash": dash}, "marker": marker}
            _add(figure, column, resource, known, name=name, **style)
        seed = [
            (m["study"], m["baseline"])
            for m in summary["members"]
            if m["baseline"]["widths"] == m["seed"]["widths"] and m["baseline"]["val_loss"]
        ]
        marker = {"color": "black", "symbol": "star", "size": 14}
        _add(figure, column, resource, seed[:1], name="seed network", mode="markers", marker=marker)
        figure.update_xaxes(type="log", title=title, col=column)
    figure.update_yaxes(title="validation loss", col=1)
    title = f"{summary['family']}: loss against cost (mean and standard error over fresh seeds)"
    figure.update_layout(**layout(title))
    return figure


def _add(
    figure: Any, column: int, resource: str, networks: Sequence[tuple[str, Any]], *, name: str, **style: Any
) -> None:
    if not networks:
        return
    figure.add_scatter(
        x=[network[resource] for _, network in networks],
        y=[network["val_loss"]["mean"] for _, network in networks],
        error_y={"array": [network["val_loss"]["se"] or 0.0 for _, network in networks], "thickness": 1},
        text=[_words(study, network) for study, network in networks],
        hovertemplate="%{text}<br>%{x:,}: %{y:.4f}",
        name=name,
        legendgroup=name,
        showlegend=column == 1,
        row=1,
        col=column,
        **style,
    )


def _words(study: str, network: Mapping[str, Any]) -> str:
    return f"{study}: {joined(network['widths'])}, n = {network['val_loss']['n']}"

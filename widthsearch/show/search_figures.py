"""Figures of one search, from its summary and its trials.  They need plotly: ``widthsearch[plots]``.

While a search has nothing to show yet, a figure says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import accumulate
from math import log10
from typing import Any

from widthsearch.maths.intervals import mean_se, paired_gain
from widthsearch.plans.words import candidate_name
from widthsearch.report.trials import Scored, Trial, paired_losses, scored_candidates
from widthsearch.report.types.search import Round, SearchSummary
from widthsearch.show.formats import interval, title
from widthsearch.show.style import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    PRUNE_RATIO,
    RED,
    layout,
    nothing_yet,
    shortened,
)

Trials = Sequence[Trial]

_LABELLED_LINES = 14  # that have their names beside them
_MANY = ("#3E5FBF", "#2E9C8F", "#6FA83A", "#C77F1F", "#C2497A")  # in order of execution
_LEFT, _RIGHT = {"row": 1, "col": 1}, {"row": 1, "col": 2}
_CELLS_WITH_NUMBERS = 400  # of a heat map; more would be too small to read


def search_figures(summary: SearchSummary, trials: Trials) -> dict[str, Any]:
    """All of them, by name."""
    return {
        "prune-ratio": prune_ratio_figure(summary, trials),
        "widths": widths_figure(summary),
        "loss": loss_figure(summary, trials),
        "seeds": seeds_figure(summary, trials),
    }


def prune_ratio_figure(summary: SearchSummary, trials: Trials) -> Any:
    """Heat map of the mean prune ratio: width variables in order of execution down, rounds across.

    The cells say its standard error over replicas, their hover text every replica's own ratio.
    """
    from plotly.graph_objects import Figure  # here: it takes a second

    heading = _title(summary, "prune ratio by width variable and round")
    rounds, variables = summary["rounds"], list(summary["seed"]["widths"])
    if not rounds:
        return nothing_yet(heading, "nothing measured yet")
    replicas = {r["round"]: _measures(trials, r["round"]) for r in rounds}
    figure = Figure()
    figure.add_heatmap(
        z=[[r["prune_ratio"][v] for r in rounds] for v in variables],
        x=[f"round {1 + r['round']}" for r in rounds],
        text=[[_with_error(r, v) for r in rounds] for v in variables],
        customdata=[
            [[escape(v), ", ".join(f"{p[v]:.3f}" for p in replicas[r["round"]])] for r in rounds]
            for v in variables
        ],
        texttemplate="%{text}" if len(rounds) * len(variables) <= _CELLS_WITH_NUMBERS else None,
        hovertemplate="%{customdata[0]}, %{x}<br>%{text}<br>replicas: %{customdata[1]}<extra></extra>",
        colorscale=list(PRUNE_RATIO),
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": "prune ratio", "side": "right"}, "thickness": 14},
    )
    # Numbers with names as their labels: two long names may look alike once they are shortened.
    ticks = {"tickvals": list(range(len(variables))), "ticktext": [_label(v) for v in variables]}
    figure.update_yaxes(autorange="reversed", automargin=True, **ticks)
    figure.update_layout(**layout(heading, height=160 + max(200, 22 * len(variables))))
    return figure


def widths_figure(summary: SearchSummary) -> Any:
    """Width of every variable: seed, uniform, each round's best proposal, and the best found.

    Few lines have their names at their ends; of many, the hover text says which is which.
    """
    from plotly.graph_objects import Figure

    networks = [("seed", summary["seed"]["widths"]), ("uniform", summary["baseline"]["widths"])]
    if summary["started_from"] == "cost-aware":
        networks.append(("cost-aware", summary["starting_networks"][1]["widths"]))
    networks += [(f"round {1 + r['round']}", r["proposal"]) for r in summary["rounds"] if r["proposal"]]
    if summary["candidate"]:
        networks.append((title(summary), summary["candidate"]["widths"]))
    variables = list(summary["seed"]["widths"])
    figure = Figure()
    for i, variable in enumerate(variables):
        figure.add_scatter(
            x=[name for name, _ in networks],
            y=[widths[variable] for _, widths in networks],
            name=_label(variable),
            text=[escape(variable)] * len(networks),
            mode="lines+markers",
            line={"color": _line_colour(i, len(variables)), "width": 1.5},
            hovertemplate="%{text}, %{x}: %{y} units<extra></extra>",
        )
    every = [w for _, widths in networks for w in widths.values()]
    figure.update_yaxes(title="width, in units", type="log", tickvals=_ticks(min(every), max(every)))
    figure.update_layout(**layout(_title(summary, "widths by round"), height=460), showlegend=False)
    if len(variables) <= _LABELLED_LINES:
        ends = {v: float(w) for v, w in networks[-1][1].items()}
        for i, (variable, y) in enumerate(_spread_out(ends, max(every) / min(every)).items()):
            _label_end(figure, len(networks) - 1, y, variable, _line_colour(i, len(variables)))
        figure.update_layout(margin_r=8 * min(18, max(map(len, variables))) + 16)
    return figure


def _spread_out(ends: Mapping[str, float], range_: float) -> dict[str, float]:
    """Heights of labels on a logarithmic axis: near the ends of their lines, none on top of another."""
    apart = max(range_, 2.0) ** (1 / 18)  # a line of text, of the axis' length
    places: dict[str, float] = {}
    for variable in sorted(ends, key=lambda v: ends[v]):
        last = max(places.values(), default=0.0)
        places[variable] = max(ends[variable], last * apart)
    down = (max(places.values()) / max(ends.values())) ** 0.5  # half of what the topmost was moved up
    return {v: places[v] / down for v in ends}


def _label_end(figure: Any, x: int, y: float, variable: str, colour: str) -> None:
    text = escape(shortened(variable, 18))
    place = {"x": x, "y": log10(y), "xanchor": "left", "xshift": 9, "showarrow": False}
    figure.add_annotation(text=text, font={"color": colour, "size": 12}, **place)


def loss_figure(summary: SearchSummary, trials: Trials) -> Any:
    """Validation loss of every scored network against what the search had cost when it was scored.

    Seeds that select; cost in trainings of the uniform network; bars are standard errors.  The line is the
    best so far, which grows optimistic with the number of candidates: :func:`seeds_figure` is the verdict.
    """
    from plotly.graph_objects import Figure

    heading = _title(summary, "loss against search cost")
    found = scored_candidates(summary, trials)
    if not found:
        return nothing_yet(heading, "nothing scored yet")
    figure = Figure()
    best: Iterable[Scored] = accumulate(found, _better)
    figure.add_scatter(
        x=[c.search_cost for c in found],
        y=[c.val_loss["mean"] for c in best],
        name="best so far",
        mode="lines",
        line={"color": BLUE, "shape": "hv"},
        hoverinfo="skip",
    )
    kinds = (("uniform", GREY, "square", True), ("scored", GREEN, "circle", False))
    for name, colour, symbol, of_baseline in kinds:
        own = [c for c in found if c.is_baseline == of_baseline]
        figure.add_scatter(
            x=[c.search_cost for c in own],
            y=[c.val_loss["mean"] for c in own],
            error_y={"array": [c.val_loss["se"] or 0.0 for c in own], "thickness": 1},
            text=[f"{candidate_name(c.round, c.step)}, n = {c.val_loss['n']}" for c in own],
            name=name,
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": symbol},
            hovertemplate="%{text}: %{y:.4f}, after %{x:.1f} uniform trainings<extra></extra>",
        )
    seeds = sorted({c.val_loss["n"] for c in found})
    n = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else seeds[0]
    figure.update_xaxes(title="search cost, in uniform trainings", rangemode="tozero")
    figure.update_yaxes(title=f"validation loss, n = {n} seeds that select")
    figure.update_layout(**layout(heading))
    return figure


def seeds_figure(summary: SearchSummary, trials: Trials) -> Any:
    """Losses of the uniform and of the best found network on the same seeds, joined pair by pair.

    Beside them what each seed gains, and their mean with its 95 % interval.  On the fresh seeds of the
    report; before there are any, on those that select, and the title says so.
    """
    from plotly.subplots import make_subplots

    base, own, fresh = paired_losses(summary, trials)
    heading = _title(summary, "fresh seeds" if fresh else "seeds that select, no fresh ones yet")
    if not base and not own:
        return nothing_yet(heading, "nothing scored yet")
    gains = {k: base[k] - own[k] for k in sorted(base.keys() & own.keys(), key=lambda k: base[k] - own[k])}
    seeds = "fresh seeds" if fresh else "seeds that select"
    figure, places = make_subplots(cols=2, horizontal_spacing=0.14), ["uniform", title(summary)]
    for name, colour, better in (("better than uniform", GREEN, True), ("not better", RED, False)):
        chosen = [k for k in gains if (gains[k] > 0) == better]
        if not chosen:
            continue
        line = {"name": f"{name} ({len(chosen)})", "legendgroup": name, "text": [f"seed {k}" for k in chosen]}
        figure.add_scatter(
            x=[*places, None] * len(chosen),
            y=[y for k in chosen for y in (base[k], own[k], None)],
            **{**line, "text": [f"seed {k}" for k in chosen for _ in range(3)]},
            mode="lines+markers",
            line={"color": colour, "width": 1},
            opacity=0.7,
            hovertemplate="%{text}: %{y:.4f}<extra></extra>",
            **_LEFT,
        )
        figure.add_scatter(
            x=[gains[k] for k in chosen],
            y=[list(gains).index(k) + 1 for k in chosen],
            **line,
            showlegend=False,
            mode="markers",
            marker={"color": colour, "size": 8},
            hovertemplate="%{text}: %{x:+.4f}<extra></extra>",
            **_RIGHT,
        )
    _add_means(figure, [(place, v) for place, v in zip(places, (base, own), strict=True) if v], gains)
    figure.update_xaxes(range=[-0.4, 1.4], categoryorder="array", categoryarray=places, **_LEFT)
    figure.update_yaxes(
        title=f"validation loss, n = {len(gains) or len(base)} {seeds}", zeroline=False, **_LEFT
    )
    figure.update_xaxes(title="loss of uniform minus loss of the same seed", zeroline=True, **_RIGHT)
    figure.update_yaxes(title=f"{len(gains)} {seeds}, sorted", showticklabels=False, **_RIGHT)
    figure.update_layout(**layout(f"{heading}, {len(gains)} pairs"))
    return figure


def _add_means(
    figure: Any, networks: Sequence[tuple[str, Mapping[int, float]]], gains: Mapping[int, float]
) -> None:
    """The means of both networks; below the seeds' gains, their mean and its interval."""
    means = [(place, stats) for place, v in networks if (stats := mean_se(list(v.values()))) is not None]
    style = {"mode": "markers", "marker": {"size": 12, "color": BLUE, "symbol": "diamond"}}
    figure.add_scatter(
        x=[place for place, _ in means],
        y=[stats["mean"] for _, stats in means],
        error_y={"array": [stats["se"] or 0.0 for _, stats in means], "thickness": 2},
        name="mean, standard error",
        **style,
        **_LEFT,
    )
    gain = paired_gain(dict.fromkeys(gains, 0.0), {k: -v for k, v in gains.items()})
    if gain is not None:
        figure.add_scatter(
            x=[gain["mean"]],
            y=[0],
            error_x={"array": [gain["ci95"][1] - gain["mean"]], "thickness": 2},
            name="mean, 95 % interval",
            hovertemplate=f"{interval(gain)}<extra></extra>",
            **style,
            **_RIGHT,
        )


def _measures(trials: Trials, round_: int) -> list[Mapping[str, float]]:
    """The prune ratios of a round's replicas."""
    done = (t for t in trials if t.complete and t.kind == "measure" and t.round == round_)
    return [t.prune_ratio for t in done if t.prune_ratio is not None]


def _better(a: Scored, b: Scored) -> Scored:
    return min(a, b, key=lambda scored: scored.rank)


def _title(summary: SearchSummary, what: str) -> str:
    return f"{escape(summary['study'])}: {what}"


def _label(variable: str) -> str:
    """A name as plotly shows it: its own little HTML escaped, cut in the middle if it is long."""
    return escape(shortened(variable, 32))


def _with_error(round_: Round, variable: str) -> str:
    se = round_["prune_ratio_se"]
    return f"{round_['prune_ratio'][variable]:.2f}" + (f" ± {se[variable]:.2f}" if se else "")


def _ticks(low: int, high: int) -> list[int]:
    """Round numbers around ``low`` to ``high`` for a logarithmic axis: more in a decade if it is short."""
    steps = (1, 2, 5) if high > 30 * low else (1, 2, 3, 4, 5, 6, 8) if high > 3 * low else range(1, 10)
    return [m * 10**k for k in range(7) for m in steps if low / 2 <= m * 10**k <= 2 * high]


def _line_colour(i: int, n: int) -> str:
    """Distinct colours for few lines; for many, light to dark in order of execution."""
    if n <= len(COLOURS):
        return COLOURS[i]
    from plotly.colors import sample_colorscale

    colour: str = sample_colorscale(_MANY, i / (n - 1))[0]
    return colour

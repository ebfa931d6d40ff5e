"""Figures of one search, from its summary and its trials.  They need plotly: ``widthsearch[plots]``.

While a search has nothing to show yet, a figure says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

from widthsearch.maths.intervals import mean_se
from widthsearch.plans.words import candidate_name
from widthsearch.report.trials import Scored, Trial, paired_losses, scored_candidates
from widthsearch.report.types import Round, SearchSummary
from widthsearch.show.style import BLUE, COLOURS, GREEN, PRUNE_RATIO, RED, layout, nothing_yet, shortened

Trials = Sequence[Trial]

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

    title = _title(summary, "prune ratio by width variable and round")
    rounds, variables = summary["rounds"], list(summary["seed"]["widths"])
    if not rounds:
        return nothing_yet(title, "nothing measured yet")
    replicas = {r["round"]: _measures(trials, r["round"]) for r in rounds}
    figure = Figure()
    figure.add_heatmap(
        z=[[r["prune_ratio"][v] for r in rounds] for v in variables],
        x=[f"round {r['round']}" for r in rounds],
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
        colorbar={"title": {"text": "prune ratio"}},
    )
    # Numbers with names as their labels: two long names may look alike once they are shortened.
    ticks = {"tickvals": list(range(len(variables))), "ticktext": [_label(v) for v in variables]}
    figure.update_yaxes(autorange="reversed", automargin=True, **ticks)
    figure.update_layout(**layout(title, height=160 + max(200, 22 * len(variables))))
    return figure


def widths_figure(summary: SearchSummary) -> Any:
    """Width of every variable, by round: seed, baseline, each round's best proposal, the recommendation."""
    from plotly.graph_objects import Figure

    networks = [("seed", summary["seed"]["widths"]), ("baseline", summary["baseline"]["widths"])]
    if summary["started_from"] == "cost-aware":
        networks.append(("cost-aware", summary["starting_networks"][1]["widths"]))
    networks += [(f"round {r['round']}", r["proposal"]) for r in summary["rounds"] if r["proposal"]]
    if summary["recommended"]:
        networks.append(("recommended", summary["recommended"]["widths"]))
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
            hovertemplate="%{text}, %{x}: %{y}<extra></extra>",
        )
    every = [w for _, widths in networks for w in widths.values()]
    figure.update_yaxes(title="width", type="log", tickvals=_ticks(min(every), max(every)))
    figure.update_layout(**layout(_title(summary, "widths by round")))
    return figure


def loss_figure(summary: SearchSummary, trials: Trials) -> Any:
    """Validation loss of every scored candidate against what the search had cost when it was scored.

    Seeds that select; cost in trainings of the uniform baseline; bars are standard errors.  The line is the
    best so far, which grows optimistic with the number of candidates: :func:`seeds_figure` is the verdict.
    """
    from plotly.graph_objects import Figure

    title = _title(summary, "loss against search cost")
    found = scored_candidates(summary, trials)
    if not found:
        return nothing_yet(title, "nothing scored yet")
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
    kinds = (("uniform baseline", "#555555", True), ("candidate", GREEN, False))
    for name, colour, of_baseline in kinds:
        own = [c for c in found if c.is_baseline == of_baseline]
        figure.add_scatter(
            x=[c.search_cost for c in own],
            y=[c.val_loss["mean"] for c in own],
            error_y={"array": [c.val_loss["se"] or 0.0 for c in own], "thickness": 1},
            text=[f"{candidate_name(c.round, c.step)}, n = {c.val_loss['n']}" for c in own],
            name=name,
            mode="markers",
            marker={"size": 8, "color": colour},
            hovertemplate="%{text}: %{y:.4f}, after %{x:.1f} uniform trainings<extra></extra>",
        )
    figure.update_xaxes(title="search cost, in uniform trainings", rangemode="tozero")
    figure.update_yaxes(title="validation loss, seeds that select")
    figure.update_layout(**layout(title))
    return figure


def seeds_figure(summary: SearchSummary, trials: Trials) -> Any:
    """Losses of the uniform baseline and of the searched widths on the same seeds, joined pair by pair.

    On the fresh seeds of the report; before there are any, on those that select, and the title says so.
    """
    from plotly.graph_objects import Figure

    base, own, fresh = paired_losses(summary, trials)
    title = _title(summary, "fresh seeds" if fresh else "seeds that select, no fresh ones yet")
    if not base and not own:
        return nothing_yet(title, "nothing scored yet")
    figure, places = Figure(), ["uniform baseline", "searched widths"]
    pairs = sorted(base.keys() & own.keys())
    for name, colour, better in (("searched is better", GREEN, True), ("baseline is better", RED, False)):
        chosen = [k for k in pairs if (own[k] < base[k]) == better]
        if chosen:
            figure.add_scatter(
                x=[*places, None] * len(chosen),
                y=[y for k in chosen for y in (base[k], own[k], None)],
                text=[f"seed {k}" for k in chosen for _ in range(3)],
                name=f"{name} ({len(chosen)})",
                mode="lines+markers",
                line={"color": colour, "width": 1},
                opacity=0.6,
                hovertemplate="%{text}: %{y:.4f}<extra></extra>",
            )
    known = [(place, mean_se(list(v.values()))) for place, v in zip(places, (base, own), strict=True) if v]
    figure.add_scatter(
        x=[place for place, _ in known],
        y=[stats["mean"] for _, stats in known if stats],
        error_y={"array": [stats["se"] or 0.0 for _, stats in known if stats], "thickness": 2},
        name="mean, standard error",
        mode="markers",
        marker={"size": 12, "color": COLOURS[-1], "symbol": "diamond"},
    )
    figure.update_xaxes(range=[-0.5, 1.5], categoryorder="array", categoryarray=places)
    figure.update_yaxes(title="validation loss")
    figure.update_layout(**layout(f"{title}, {len(pairs)} pairs"))
    return figure


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
    if n < len(COLOURS):
        return COLOURS[i]
    from plotly.colors import sample_colorscale

    colour: str = sample_colorscale("Viridis", i / (n - 1))[0]
    return colour

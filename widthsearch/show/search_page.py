"""One search as a page for the terminal: from the object that ``show --json`` prints, nothing else."""

from __future__ import annotations

from typing import cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from widthsearch.maths.intervals import Gain, Stats
from widthsearch.maths.latency import Fitted
from widthsearch.plans.words import candidate_name, joined
from widthsearch.report.decision import MOST_WIDTHS
from widthsearch.report.shares import pruned_line, removed_line, side_cost_lines
from widthsearch.report.types.common import Trained, Widths
from widthsearch.report.types.search import Finalist, Proposal, Round, SearchSummary, StartingNetwork
from widthsearch.show.console import Bar, Line, Name, table
from widthsearch.show.formats import (
    count,
    found_name,
    median,
    metric_form,
    opening,
    plus_minus,
    title,
)

_CELLS = 10  # of a bar
_STARTS = (candidate_name(-1, 0.0), candidate_name(-1, 1.0))


def search_page(s: SearchSummary) -> Group:
    """The page: what to do and why, networks, widths, rounds, what was left out."""
    parts: list[RenderableType] = [*opening(s), *evidence(s), "", network_table(s), "", width_table(s)]
    if s["starting_networks"][0]["val_loss"]:
        parts += ["", round_table(s)]
    return Group(*parts, "", *closing(s))


def evidence(s: SearchSummary) -> list[Text]:
    """The widths that the sentence is about, and how they compare with uniform ones, pair by pair."""
    found, uniform = s["candidate"], s["baseline"]
    if found is None:
        return []
    short = s["decision"]["answer"] != "better" and len(found["widths"]) <= MOST_WIDTHS
    widths = f"{joined(found['widths'])}, " if short else ""  # else they are said already, or in the table
    lines = [f"{title(s)}: {widths}{found_name(found)}"]
    if s["gain"] is not None:
        lines.append(f"validation loss: {_paired(found['val_loss'], uniform['val_loss'], s['gain'], -1)}")
    elif s["gain_so_far"] is not None:
        so_far = f"{s['gain_so_far']:+.4f} in loss"
        lines.append(f"gain so far: {so_far}, on the seeds that select (there the best of many is lucky)")
    if (gain := s["accuracy_gain"]) is not None:
        form = metric_form([found["val_accuracy"], uniform["val_accuracy"]])
        compared = _paired(found["val_accuracy"], uniform["val_accuracy"], gain, 1, form)
        lines.append(f"validation {s['metric']}: {compared}")
    return [Line(text) for text in [*lines, *side_cost_lines(s["side_costs"], "the recommended network has")]]


def _paired(found: Stats | None, uniform: Stats | None, gain: Gain, sign: int, form: str = "{:.4f}") -> str:
    """``0.1134 against 0.1340 of uniform widths, 0.0206 lower (95 % interval 0.0014 to 0.0397)``.

    ``sign``: of found minus uniform in the ``gain``.
    """
    if found is None or uniform is None:
        return "-"
    word, turned = ("higher", 1) if gain["mean"] * sign >= 0 else ("lower", -1)
    low, high = sorted(turned * sign * end for end in gain["ci95"])
    amount, *ends = (form.format(x) for x in (abs(gain["mean"]), low, high))
    means = f"{form.format(found['mean'])} against {form.format(uniform['mean'])} of uniform widths"
    return f"{means}, {amount} {word} (95 % interval {ends[0]} to {ends[1]}, n = {gain['n']} pairs)"


def closing(s: SearchSummary) -> list[Text]:
    """What was removed, which layers were pruned most, what the search cost, and what it left out."""
    fitted = Fitted.of(s["latency_model"])
    lines = [] if fitted is None else [str(fitted)]
    lines += [text for text in (removed_line(s), pruned_line(s)) if text is not None]
    cost = s["cost"]
    if cost["in_uniform_trainings"] is not None:
        lines.append(
            f"search cost: {cost['in_uniform_trainings']:.0f} uniform trainings "
            f"({cost['training_macs']:.3g} training MACs); "
            f"{cost['seconds']:.0f} worker seconds with the verdict"
        )
    lines += [f"not searched: {f['name']} (width {f['width']}): {f['reason']}" for f in s["not_searched"]]
    return [Line(text) for text in lines]


def width_table(s: SearchSummary) -> Table:
    """One row per width variable: its widths, and its prune ratio in the round of the best found."""
    found = s["candidate"]
    headers = ["width variable", "seed", "uniform", *([title(s), "change", ""] if found else [])]
    headers += ["over-wide", "kept", "prune ratio", ""] if s["rounds"] else []
    bars = [i for i, header in enumerate(headers) if not header]
    rows = table(*headers, left=(0, *bars), spare=("", "kept", "over-wide", "prune ratio", "seed"))
    round_ = -1 if found is None or found["round"] is None else found["round"]  # -1: the last one
    measure = s["rounds"][round_] if s["rounds"] else None
    for v, seed in s["seed"]["widths"].items():
        base = s["baseline"]["widths"][v]
        cells = [*(_change(base, found["widths"], v) if found else []), *_measured(measure, v)]
        rows.add_row(Name(v), str(seed), str(base), *cells)
    return rows


def _change(base: int, widths: Widths, v: str) -> tuple[Text, Text, Text]:
    """The width found, its ratio to the uniform one, and its bar."""
    width = widths[v]
    colour = "green" if width > base else "yellow" if width < base else ""
    bar = Bar(width / max(widths.values()), _CELLS, "cyan")
    return Text(str(width), "bold"), Text(f"x{width / base:.2f}", colour), bar


def _measured(measure: Round | None, v: str) -> list[Text]:
    """Over-wide width, what was kept of it, prune ratio, and its bar."""
    if measure is None:
        return []
    ratio, se = measure["prune_ratio"][v], measure["prune_ratio_se"]
    text = f"{ratio:.2f}" + (f" ± {se[v]:.2f}" if se else "")
    widths = (str(measure["over_wide"][v]), f"{measure['kept'][v]:.1f}", text)
    return [*map(Text, widths), Bar(ratio, _CELLS, "magenta")]


def network_table(s: SearchSummary) -> Table:
    """Seed network, uniform one and the best found: cost, loss, metric."""
    metric, seed = s["metric"], s["seed"]
    timed = s["budget"]["latency"] is not None
    nothing = {"val_loss": None, "val_accuracy": None, "test_loss": None, "test_accuracy": None}
    rows: list[tuple[str, Trained]] = [
        ("seed", cast(Trained, {**seed, **nothing})),
        ("uniform", s["baseline"]),
        *([(title(s), s["candidate"])] if s["candidate"] is not None else []),
    ]
    tested = any(network["test_accuracy"] for _, network in rows)
    headers = ["network", "MACs", "of seed", "params", "of seed", *(["latency, ms"] if timed else [])]
    headers += ["val loss", "median", f"val {metric}", "median", *([f"test {metric}"] if tested else []), "n"]
    found = table(*headers, spare=("median", "of seed", f"test {metric}"))
    form = metric_form(network["val_accuracy"] for _, network in rows)
    for name, network in rows:
        loss, accuracy = network["val_loss"], network["val_accuracy"]
        costs = ((network["macs"], seed["macs"]), (network["params"], seed["params"]))
        cells = [
            *(cell for now, before in costs for cell in (f"{now:,}", f"{now / before:.1%}")),
            *([f"{1e3 * network['latency']:.4g}"] if timed else []),
            *(plus_minus(loss), median(loss)),
            *(plus_minus(accuracy, form), median(accuracy, form)),
            *([plus_minus(network["test_accuracy"], form)] if tested else []),
            count(loss),
        ]
        found.add_row(name, *cells)
    return found


def round_table(s: SearchSummary) -> Table:
    """One row per start, per proposal of every round and per network of the run-off; the best are bold.

    Losses are those on the seeds that select.
    """
    headers = ("round", "spread", "layers differ", "step", "selection loss", "n", "widths")
    found = table(*headers, left=(0, 2, 3, 6), spare=("spread", "layers differ", "n"))
    for i, start in enumerate(s["starting_networks"]):
        style = "bold" if start["start"] == s["started_from"] else ""
        found.add_row("" if i else "start", "", "", start["start"], *_scored(start, style))
    for r in s["rounds"]:
        name = str(1 + r["round"])
        if r["round"] and r["measured_from"] in _STARTS:  # where nothing was better, mostly the other one
            name += f", from {r['measured_from']}"
        head = [name, f"{r['spread']:.3f}", "not shown" if r["balanced"] else "yes"]
        if not r["steps"]:
            found.add_row(*head, "-", "-", "-", "nothing new" if r["balanced"] else "being measured")
        for step in r["steps"]:
            best = "bold" if step["widths"] == r["proposal"] and step["val_loss"] else ""
            found.add_row(*head, f"{step['step']:g}", *_scored(step, best))
            head = ["", "", ""]
    chosen = (s["candidate"] or s["baseline"])["widths"]
    for i, c in enumerate(s["run_off"]):
        of = candidate_name(c["round"], c["step"])
        style = "bold" if c["widths"] == chosen else ""
        found.add_row("" if i else "run-off", "", "", of, *_scored(c, style))
    return found


def _scored(network: StartingNetwork | Proposal | Finalist, style: str) -> list[Text]:
    """Loss, its number of seeds, and the widths."""
    loss = network["val_loss"]
    return [Text(plus_minus(loss), style), Text(count(loss), style), Name(joined(network["widths"]), style)]

"""One search as a page for the terminal: from the object that ``show --json`` prints, nothing else."""

from __future__ import annotations

from typing import cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from widthsearch.maths.latency import Fitted
from widthsearch.plans.words import candidate_name, joined
from widthsearch.report.search import BETTER, NO_DIFFERENCE, NOTHING_BETTER, WORSE
from widthsearch.report.shares import pruned_line, removed_line, side_cost_lines
from widthsearch.report.types import Finalist, Proposal, Round, SearchSummary, StartingNetwork, Trained
from widthsearch.show.console import table
from widthsearch.show.formats import (
    bar,
    count,
    found_name,
    headline,
    line,
    median,
    metric_form,
    plus_minus,
)

_VERDICTS = {
    BETTER: "the recommended widths are better than uniform ones",
    NO_DIFFERENCE: "no difference shown, the interval holds 0",
    WORSE: "the searched widths are worse; the uniform baseline is recommended",
    NOTHING_BETTER: "nothing scored better than uniform widths, which are recommended",
}
_CELLS = 10  # of a bar
_WIDE = 110  # columns of a terminal that has room for every column of the table of widths


def search_page(s: SearchSummary, columns: int = _WIDE) -> Group:
    """The page: what is recommended and why, widths, networks, rounds, what was left out.

    ``columns``: of the terminal.
    """
    parts: list[RenderableType] = [*opening(s), "", width_table(s, columns), "", network_table(s)]
    if s["rounds"]:
        parts += ["", round_table(s)]
    return Group(*parts, "", *closing(s))


def opening(s: SearchSummary) -> list[Text]:
    """Name and status, the recommended widths, the gain."""
    recommended = s["recommended"]
    if recommended is None or recommended["val_loss"] is None:
        done = s["trials"].get("COMPLETE", 0)
        note = f"no round is scored yet ({done} trials finished): this is where the search starts"
        return [headline(s), line(note)]
    costs = (
        ("MACs", recommended["macs"], s["seed"]["macs"]),
        ("parameters", recommended["params"], s["seed"]["params"]),
    )
    shares = (f"{now:,} {unit} ({now / before:.1%} of the seed network's)" for unit, now, before in costs)
    side = side_cost_lines(s["side_costs"], "the recommended network has")
    return [
        headline(s),
        Text.assemble(
            *("recommended  ", (joined(recommended["widths"]), "bold"), "  ", ", ".join(shares)),
            no_wrap=True,
            overflow="ignore",
        ),
        *map(line, [*_verdict(s), *side]),
    ]


def _verdict(s: SearchSummary) -> list[str]:
    gain, so_far = s["gain"], s["gain_so_far"]
    if gain is None and s["status"] == "finished":
        return ["verdict      none, too many of the final trainings failed"]
    if gain is None:
        known = "not known yet" if so_far is None else f"{so_far:+.4f} so far, on the seeds that select"
        return [f"gain         {known}", "verdict      still to come, on fresh seeds"]
    low, high = gain["ci95"]
    found = (
        f"gain         {gain['mean']:+.4f} in validation loss over uniform widths (95 % interval {low:+.4f} "
        f"to {high:+.4f}, median {gain['median']:+.4f}, n = {gain['n']} fresh seeds)"
    )
    shown = [] if s["verdict"] == NOTHING_BETTER else [found]  # uniform against itself
    return [*shown, f"verdict      {_VERDICTS[s['verdict'] or NO_DIFFERENCE]}"]


def closing(s: SearchSummary) -> list[Text]:
    """What was removed, which layers were pruned most, what the search cost, and what it left out."""
    fitted = Fitted.of(s["latency_model"])
    lines = [] if fitted is None else [str(fitted)]
    lines += [text for text in (removed_line(s), pruned_line(s)) if text is not None]
    cost = s["cost"]
    if cost["in_uniform_trainings"] is not None:
        lines.append(
            f"search cost  {cost['in_uniform_trainings']:.0f} uniform trainings "
            f"({cost['training_macs']:.3g} training MACs); "
            f"{cost['seconds']:.0f} worker seconds with the verdict"
        )
    lines += [f"not searched: {f['name']} (width {f['width']}): {f['reason']}" for f in s["not_searched"]]
    return [line(text) for text in lines]


def width_table(s: SearchSummary, columns: int = _WIDE) -> Table:
    """One row per width variable: its widths, and its prune ratio in the round of the best candidate."""
    wide = columns >= _WIDE
    headers = ["width variable", "seed", "baseline", "recommended", "change", ""]
    headers += [*(["over-wide", "kept"] if wide else []), "prune ratio", ""]
    bars = [i for i, header in enumerate(headers) if not header]
    found = table(*headers, left=(0, *bars))
    for i in bars:
        found.columns[i].width = _CELLS
    best = s["candidate"] and s["candidate"]["round"]
    measure = s["rounds"][-1 if best is None else best] if s["rounds"] else None  # of a start: the last one
    shown = (s["recommended"] or s["baseline"])["widths"]
    largest = max(shown.values())
    for v, seed in s["seed"]["widths"].items():
        base, width = s["baseline"]["widths"][v], shown[v] if s["recommended"] else None
        length = Text(bar(width or 0, largest, _CELLS), "cyan")
        measured = _measured(measure, v, wide)
        found.add_row(Text(v), str(seed), str(base), *_change(base, width), length, *measured)
    return found


def _change(base: int, width: int | None) -> tuple[Text, Text]:
    """The recommended width, and its ratio to the baseline's."""
    if width is None:
        return Text("-"), Text("-")
    colour = "green" if width > base else "yellow" if width < base else ""
    return Text(str(width), "bold"), Text(f"x{width / base:.2f}", colour)


def _measured(measure: Round | None, v: str, wide: bool) -> list[str | Text]:
    if measure is None:
        return [*(["-"] * (3 if wide else 1)), ""]
    ratio, se = measure["prune_ratio"][v], measure["prune_ratio_se"]
    text = f"{ratio:.2f}" + (f" ± {se[v]:.2f}" if se else "")
    cells: list[str | Text] = [str(measure["over_wide"][v]), f"{measure['kept'][v]:.1f}"] if wide else []
    return [*cells, text, Text(bar(ratio, 1.0, _CELLS), "magenta")]


def network_table(s: SearchSummary) -> Table:
    """Seed network, uniform baseline and the best candidate: cost, loss, metric."""
    metric = s["metric"]
    timed = s["budget"]["latency"] is not None
    headers = ["network", "MACs", "params", *(["latency, ms"] if timed else [])]
    headers += ["val loss", "median", f"val {metric}", "median", "n"]
    nothing = {"val_loss": None, "val_accuracy": None, "test_loss": None, "test_accuracy": None}
    seed = cast(Trained, {**s["seed"], **nothing})
    rows: list[tuple[str, Trained]] = [("seed", seed), ("uniform baseline", s["baseline"])]
    if (c := s["candidate"]) is not None:
        rows.append((f"best: {found_name(c)}", c))
    tested = any(network["test_accuracy"] for _, network in rows)
    headers += [f"test {metric}"] if tested else []
    found = table(*headers)
    form = metric_form(network["val_accuracy"] for _, network in rows)
    for name, network in rows:
        loss, accuracy = network["val_loss"], network["val_accuracy"]
        cells = [
            *([f"{1e3 * network['latency']:.4g}"] if timed else []),
            *(plus_minus(loss), median(loss)),
            *(plus_minus(accuracy, form), median(accuracy, form)),
            count(loss),
            *([plus_minus(network["test_accuracy"], form)] if tested else []),
        ]
        found.add_row(name, f"{network['macs']:,}", f"{network['params']:,}", *cells)
    return found


def round_table(s: SearchSummary) -> Table:
    """One row per start, per proposal of every round and per network of the run-off; the best are bold."""
    headers = ("round", "spread", "balanced", "step", "val loss (selection)", "n", "proposal")
    found = table(*headers, left=(0, 6))
    for i, start in enumerate(s["starting_networks"]):
        style = "bold" if start["start"] == s["started_from"] else ""
        found.add_row("" if i else "start", "", "", start["start"], *_scored(start, style))
    for r in s["rounds"]:
        head = [str(r["round"]), f"{r['spread']:.3f}", "yes" if r["balanced"] else "no"]
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
    return [Text(text, style) for text in (plus_minus(loss), count(loss), joined(network["widths"]))]

"""Tables that are pages of their own: the studies of a database, the width variables of a network."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from widthsearch.maths.intervals import mean_se
from widthsearch.plans.words import amounts, counted, joined, not_run_lines
from widthsearch.report.listings import WidthsFound
from widthsearch.report.shares import COST_AWARE, side_cost_lines, side_costs
from widthsearch.report.trials import Trial
from widthsearch.report.types import StudySummary
from widthsearch.show.console import say, table
from widthsearch.show.formats import age, bar, metric_form, shorten, size, status
from widthsearch.show.pages import KINDS

_BAR = 20  # characters that stand for all MACs


Row = tuple[Text | str, ...]


def list_row(s: StudySummary) -> Row:
    """A study in a list of them."""
    name = Text(s["study"] if s.get("family") is None else f"  {s['study']}")
    searches = s["rounds"] if s["kind"] == "search" else None
    rounds = "-" if searches is None else str(sum(r["val_loss"] is not None for r in searches))
    trials = str(sum(s["trials"].values()))
    return (name, status(s), age(s["last_change"]), rounds, trials, Text(KINDS[s["kind"]].about(s)))


def show_list(console: Console, rows: Sequence[tuple[str | None, Row]]) -> None:
    """Print one line per study, and one above those of a family (the first of each pair)."""
    headers = ("study", "status", "last change", "rounds", "trials", "gain (95 % interval)")
    listed = table(*headers, left=range(len(headers)))
    before = None
    for family, row in rows:
        if family not in (None, before):
            listed.add_row(Text(family or ""), "family")
        before = family
        listed.add_row(*row)
    console.print(listed)


def trial_table(trials: Sequence[Trial], metric: str) -> Table:
    """All training runs of a study, one per row."""
    of_text = ("state", "kind", "arm", "widths", "error")
    headers = ["trial", "state", "kind", "arm", "round", "step", "replica", "widths", "MACs", "val loss"]
    if not any(t.arm for t in trials):
        headers.remove("arm")
    headers += [f"val {metric}", "seconds", *(["error"] if any(t.error for t in trials) else [])]
    found = table(*headers, left=[i for i, header in enumerate(headers) if header in of_text])
    form = metric_form(mean_se([t.val_accuracy]) for t in trials if t.val_accuracy is not None)
    for t in trials:
        cells = {
            "trial": str(t.number),
            "state": t.state.lower(),
            "kind": t.kind,
            "arm": t.arm or "",
            "round": "" if t.round < 0 else str(t.round),
            "step": f"{t.step:g}" if t.step else "",
            "replica": str(t.replica),
            "widths": joined(t.widths),
            "MACs": "" if t.macs is None else f"{t.macs:,}",
            "val loss": "" if t.val_loss is None else f"{t.val_loss:.4f}",
            f"val {metric}": "" if t.val_accuracy is None else form.format(t.val_accuracy),
            "seconds": "" if t.seconds is None else f"{t.seconds:.1f}",
            "error": t.error or "",
        }
        found.add_row(*(Text(cells[header]) for header in headers))
    return found


def show_widths(console: Console, d: WidthsFound) -> None:
    """Print what ``widths --json`` prints: the width variables of a network, and what is frozen."""
    console.print(
        f"[bold]{escape(d['model'])}[/]: {counted(len(d['variables']), 'width variable')}, "
        f"{size(d)}; "
        f"{d['coverage']:.1%} of the MACs involve a width that can be searched",
        highlight=False,
    )
    networks = (("uniform", d["uniform"]), ("cost-aware", d["cost_aware"]))
    known = {name: network for name, network in networks if network is not None}
    bounds: dict[str, dict[str, int]] = {
        "min": {v["name"]: v["min"] for v in d["variables"]},
        "multiple of": {v["name"]: v["multiple_of"] for v in d["variables"]},
    }
    bounds = {name: of for name, of in bounds.items() if set(of.values()) != {1}}
    numbers = ("width", *known, *bounds, "of MACs")
    bars = 1 + len(numbers)
    listed = table("width variable", *numbers, "", "units also made by", left=(0, bars, bars + 1))
    listed.columns[bars].width = _BAR
    for v in d["variables"]:
        others = [m for m in v["modules"] if m != v["name"]]
        share = v["share_of_macs"]
        widths = [v["width"], *(network["widths"][v["name"]] for network in known.values())]
        cells = [
            escape(v["name"]),
            *map(str, widths),
            *(str(of[v["name"]]) for of in bounds.values()),
            f"{share:.1%}",
        ]
        listed.add_row(*cells, bar(share, 1.0, _BAR), escape(shorten(others)))
    if d["variables"]:
        console.print(listed)
    for name, network in known.items():
        console.print(f"{name} under {amounts(d['budget'] or {})}: {size(network)}", highlight=False)
    if d["budget"] is not None and d["uniform"] is not None:
        for text in side_cost_lines(side_costs(d["budget"], d["uniform"], d["cost_aware"]), COST_AWARE):
            say(text, console)
    if d["budget_error"]:
        say(d["budget_error"], console)
    for line in not_run_lines(d["not_run"]):
        say(line, console)
    by_reason: dict[str, list[str]] = {}
    for f in d["frozen"]:
        by_reason.setdefault(f["reason"], []).append(f"{f['name']} ({f['width']})")
    for reason, names in by_reason.items():
        say(f"not searched: {', '.join(names)}: {reason}", console)

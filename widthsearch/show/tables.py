"""Tables that are pages of their own: the studies of a database, the width variables of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from widthsearch.maths.intervals import mean_se
from widthsearch.plans.plan import LABELS
from widthsearch.plans.words import alone_lines, amounts, counted, joined, not_run_lines
from widthsearch.report.listings import WidthsFound
from widthsearch.report.shares import COST_AWARE, side_cost_lines, side_costs
from widthsearch.report.trials import Trial
from widthsearch.report.types.common import Network
from widthsearch.report.types.kinds import StudySummary
from widthsearch.show.console import Bar, Line, Name, table
from widthsearch.show.formats import age, interval, metric_form, shorten, size, status
from widthsearch.show.pages import KINDS

_BAR = 20  # characters that stand for all MACs


Row = tuple[Text | str, ...]


def list_row(s: StudySummary) -> Row:
    """A study in a list of them."""
    name = Name(s["study"]) if s.get("family") is None else Text(f"  {s['study']}")
    far = f"{s['progress']['done']} of {s['progress']['at_most']}"
    gain = interval(s["gain"]) if s["kind"] == "search" else ""
    kind = Text(KINDS[s["kind"]].name)
    return (name, status(s), kind, age(s["last_change"]), far, s["decision"]["answer"], gain)


def show_list(console: Console, rows: Sequence[tuple[str | None, Row]]) -> None:
    """Print one line per study, and one above those of a family (the first of each pair)."""
    headers = ("study", "status", "kind", "last change", "trainings", "verdict", "gain in loss (95 %)")
    listed = table(*headers, left=(0, 1, 2, 5), spare=("kind", "gain in loss (95 %)", "last change"))
    before = None
    for family, row in rows:
        if family not in (None, before):
            listed.add_row(Name(family or ""), "family")
        before = family
        listed.add_row(*row)
    console.print(listed)


def trial_table(trials: Sequence[Trial], metric: str) -> Table:
    """All training runs of a study, one per row."""
    form = metric_form(mean_se([t.val_accuracy]) for t in trials if t.val_accuracy is not None)
    columns: dict[str, Callable[[Trial], Text | str]] = {
        "trial": lambda t: str(t.number),
        "state": lambda t: t.state.lower(),
        "kind": lambda t: LABELS[t.kind],
        "arm": lambda t: Name(t.arm or ""),
        "round": lambda t: "" if t.round < 0 else str(1 + t.round),
        "step": lambda t: f"{t.step:g}" if t.step and t.round >= 0 else "",
        "seed": lambda t: str(t.replica),
        "widths": lambda t: Name(joined(t.widths)),
        "MACs": lambda t: "" if t.macs is None else f"{t.macs:,}",
        "val loss": lambda t: "" if t.val_loss is None else f"{t.val_loss:.4f}",
        f"val {metric}": lambda t: "" if t.val_accuracy is None else form.format(t.val_accuracy),
        "seconds": lambda t: "" if t.seconds is None else f"{t.seconds:.1f}",
        "error": lambda t: Text(t.error or ""),
    }
    known = {"arm": any(t.arm for t in trials), "error": any(t.error for t in trials)}
    shown = {header: cell for header, cell in columns.items() if known.get(header, True)}
    of_text = ("state", "kind", "arm", "widths", "error")
    found = table(*shown, left=[i for i, header in enumerate(shown) if header in of_text])
    for t in trials:
        found.add_row(*(cell(t) for cell in shown.values()))
    return found


def show_widths(console: Console, d: WidthsFound) -> None:
    """Print what ``widths --json`` prints: the width variables of a network, and what is frozen."""
    about = (
        f": {counted(len(d['variables']), 'width variable')}, {size(d)}; "
        f"{d['coverage']:.1%} of the MACs involve a width that can be searched"
    )
    networks = (("uniform", d["uniform"]), ("cost-aware", d["cost_aware"]))
    known = {name: network for name, network in networks if network is not None}
    lines = [f"{name} under {amounts(d['budget'] or {})}: {size(network)}" for name, network in known.items()]
    if d["budget"] is not None and d["uniform"] is not None:
        lines += side_cost_lines(side_costs(d["budget"], d["uniform"], d["cost_aware"]), COST_AWARE)
    lines += [d["budget_error"]] if d["budget_error"] else []
    lines += not_run_lines(d["not_run"]) + d["stale"] + alone_lines(d["alone"])
    by_reason: dict[str, list[str]] = {}
    for f in d["frozen"]:
        by_reason.setdefault(f["reason"], []).append(f"{f['name']} ({f['width']})")
    lines += [f"not searched: {', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    says = "of MACs: the share of all MACs that depend on this width; most of them depend on two widths"
    table_: list[Table | Line] = [_width_variables(d, known), Line(says, "dim")] if d["variables"] else []
    head = Line.assemble((d["model"], "bold"), about)
    console.print(Group(head, *table_, *map(Line, lines)), crop=False)


def _width_variables(d: WidthsFound, known: Mapping[str, Network]) -> Table:
    bounds: dict[str, dict[str, int]] = {
        "min": {v["name"]: v["min"] for v in d["variables"]},
        "multiple of": {v["name"]: v["multiple_of"] for v in d["variables"]},
    }
    bounds = {name: of for name, of in bounds.items() if set(of.values()) != {1}}
    headers = ("width variable", "width", *known, *bounds, "of MACs", "", "units also made by")
    last = len(headers) - 1
    rows = table(*headers, left=(0, last - 1, last), spare=("", "of MACs"))
    for v in d["variables"]:
        others = [m for m in v["modules"] if m != v["name"]]
        widths = [v["width"], *(network["widths"][v["name"]] for network in known.values())]
        cells = [*map(str, widths), *(str(of[v["name"]]) for of in bounds.values())]
        share = v["share_of_macs"]
        bar = Bar(share, _BAR, "cyan")
        rows.add_row(Name(v["name"]), *cells, f"{share:.1%}", bar, Name(shorten(others)))
    return rows

"""Tables that are pages of their own: the studies of a database, the width variables of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from widthsearch.plans.words import amounts, joined
from widthsearch.show.formats import about, age, bar, interval, metric_form, shorten, status

_BAR = 20  # characters that stand for all MACs


def show_list(console: Console, summaries: Sequence[dict[str, Any]]) -> None:
    """Print one line per study."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("study", "status", "last change", "rounds", "trials", "gain (95 % interval)"):
        table.add_column(column)
    family = None
    for s in summaries:
        if s.get("family") not in (None, family):
            table.add_row(Text(s["family"]), "family")
        family = s.get("family")
        name = Text(s["study"] if family is None else f"  {s['study']}")
        rounds, found = "-", about(s)
        if "candidate" in s:
            rounds, found = str(sum(r["val_loss"] is not None for r in s["rounds"])), interval(s["gain"])
        trials = str(sum(s["trials"].values()))
        table.add_row(name, status(s), age(s["last_change"]), rounds, trials, Text(found))
    console.print(table)


def trial_table(rows: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """All training runs of a study (:func:`.trials.trial_rows`), one per row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    left = ("state", "kind", "arm", "widths", "error")
    headers = ["trial", "state", "kind", "arm", "round", "step", "replica", "widths", "MACs", "val loss"]
    if not any(r["arm"] for r in rows):
        headers.remove("arm")
    headers += [f"val {metric}", "seconds", *(["error"] if any(r["error"] for r in rows) else [])]
    for header in headers:
        table.add_column(escape(header), justify="left" if header in left else "right")
    form = metric_form({"mean": r["val_accuracy"]} for r in rows if r["val_accuracy"] is not None)
    for r in rows:
        plain = r["round"] < 0
        cells = {
            "trial": str(r["number"]),
            "state": r["state"].lower(),
            "kind": r["kind"],
            "arm": r["arm"] or "",
            "round": "" if plain else str(r["round"]),
            "step": f"{r['step']:g}" if r["step"] else "",
            "replica": str(r["replica"]),
            "widths": joined(r["widths"]),
            "MACs": "" if r["macs"] is None else f"{r['macs']:,}",
            "val loss": "" if r["val_loss"] is None else f"{r['val_loss']:.4f}",
            f"val {metric}": "" if r["val_accuracy"] is None else form.format(r["val_accuracy"]),
            "seconds": "" if r["seconds"] is None else f"{r['seconds']:.1f}",
            "error": r["error"] or "",
        }
        table.add_row(*(Text(cells[header]) for header in headers))
    return table


def show_widths(console: Console, d: dict[str, Any]) -> None:
    """Print what ``widths --json`` prints: the width variables of a network, and what is frozen."""
    found = len(d["variables"])
    console.print(
        f"[bold]{escape(d['model'])}[/]: {found} width variable{'' if found == 1 else 's'}, "
        f"{d['macs']:,} MACs, {d['params']:,} parameters; "
        f"{d['coverage']:.1%} of the MACs involve a width that can be searched",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    bounds = [b for b in ("min", "multiple_of") if any(v[b] != 1 for v in d["variables"])]
    table.add_column("width variable", overflow="fold")
    known = {name: d[key] for name, key in (("uniform", "uniform"), ("cost-aware", "cost_aware")) if d[key]}
    for column in ("width", *known, *(b.replace("_", " ") for b in bounds), "of MACs"):
        table.add_column(column, justify="right")
    table.add_column("", width=_BAR)
    table.add_column("units also made by", overflow="fold")
    for v in d["variables"]:
        others = [m for m in v["modules"] if m != v["name"]]
        share = v["share_of_macs"]
        widths = [v["width"], *(network["widths"][v["name"]] for network in known.values())]
        cells = [escape(v["name"]), *map(str, widths), *(str(v[b]) for b in bounds), f"{share:.1%}"]
        table.add_row(*cells, bar(share, 1.0, _BAR), escape(shorten(others)))
    if found:
        console.print(table)
    for name, network in known.items():
        cost = amounts({r: network[r] for r in ("macs", "params")})
        console.print(f"{name} under {amounts(d['budget'])}: {cost}", highlight=False)
    if d["budget_error"]:
        console.print(d["budget_error"], highlight=False, soft_wrap=True, markup=False)
    by_reason: dict[str, list[str]] = {}
    for f in d["frozen"]:
        by_reason.setdefault(f["reason"], []).append(f"{f['name']} ({f['width']})")
    for reason, names in by_reason.items():
        line = f"not searched: {', '.join(names)}: {reason}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)

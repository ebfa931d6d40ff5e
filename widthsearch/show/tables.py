"""Tables that are pages of their own: the studies of a database, the width variables of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from widthsearch.plans.words import amounts, counted, joined
from widthsearch.show.console import say, table
from widthsearch.show.formats import age, bar, metric_form, shorten, status
from widthsearch.show.pages import KINDS

_BAR = 20  # characters that stand for all MACs


def show_list(console: Console, summaries: Sequence[dict[str, Any]]) -> None:
    """Print one line per study."""
    headers = ("study", "status", "last change", "rounds", "trials", "gain (95 % interval)")
    listed = table(*headers, left=range(len(headers)))
    family = None
    for s in summaries:
        if s.get("family") not in (None, family):
            listed.add_row(Text(s["family"]), "family")
        family = s.get("family")
        name = Text(s["study"] if family is None else f"  {s['study']}")
        searches = s["rounds"] if s["kind"] == "search" else None
        rounds = "-" if searches is None else str(sum(r["val_loss"] is not None for r in searches))
        trials = str(sum(s["trials"].values()))
        listed.add_row(
            name, status(s), age(s["last_change"]), rounds, trials, Text(KINDS[s["kind"]].about(s))
        )
    console.print(listed)


def trial_table(rows: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """All training runs of a study (:func:`.trials.trial_rows`), one per row."""
    of_text = ("state", "kind", "arm", "widths", "error")
    headers = ["trial", "state", "kind", "arm", "round", "step", "replica", "widths", "MACs", "val loss"]
    if not any(r["arm"] for r in rows):
        headers.remove("arm")
    headers += [f"val {metric}", "seconds", *(["error"] if any(r["error"] for r in rows) else [])]
    found = table(*headers, left=[i for i, header in enumerate(headers) if header in of_text])
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
        found.add_row(*(Text(cells[header]) for header in headers))
    return found


def show_widths(console: Console, d: dict[str, Any]) -> None:
    """Print what ``widths --json`` prints: the width variables of a network, and what is frozen."""
    console.print(
        f"[bold]{escape(d['model'])}[/]: {counted(len(d['variables']), 'width variable')}, "
        f"{_cost(d)}; "
        f"{d['coverage']:.1%} of the MACs involve a width that can be searched",
        highlight=False,
    )
    bounds = [b for b in ("min", "multiple_of") if any(v[b] != 1 for v in d["variables"])]
    known = {name: d[key] for name, key in (("uniform", "uniform"), ("cost-aware", "cost_aware")) if d[key]}
    numbers = ("width", *known, *(b.replace("_", " ") for b in bounds), "of MACs")
    bars = 1 + len(numbers)
    listed = table("width variable", *numbers, "", "units also made by", left=(0, bars, bars + 1))
    listed.columns[bars].width = _BAR
    for v in d["variables"]:
        others = [m for m in v["modules"] if m != v["name"]]
        share = v["share_of_macs"]
        widths = [v["width"], *(network["widths"][v["name"]] for network in known.values())]
        cells = [escape(v["name"]), *map(str, widths), *(str(v[b]) for b in bounds), f"{share:.1%}"]
        listed.add_row(*cells, bar(share, 1.0, _BAR), escape(shorten(others)))
    if d["variables"]:
        console.print(listed)
    for name, network in known.items():
        console.print(f"{name} under {amounts(d['budget'])}: {_cost(network)}", highlight=False)
    if d["budget_error"]:
        say(d["budget_error"], console)
    by_reason: dict[str, list[str]] = {}
    for f in d["frozen"]:
        by_reason.setdefault(f["reason"], []).append(f"{f['name']} ({f['width']})")
    for reason, names in by_reason.items():
        say(f"not searched: {', '.join(names)}: {reason}", console)


def _cost(network: Mapping[str, Any]) -> str:
    return amounts({r: network[r] for r in ("macs", "params")})

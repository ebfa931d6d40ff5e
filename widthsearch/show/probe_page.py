"""A probe as a page for the terminal: from the object that ``show --json`` prints, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from widthsearch.plans.words import amounts, counted, joined
from widthsearch.show.console import table
from widthsearch.show.formats import count, headline, interval, line, plus_minus


def probe_page(s: Mapping[str, Any]) -> Group:
    """The page: where every start leads, how its end fares on the fresh seeds, how far apart all are."""
    plain = s["starts"][0]["recommended"]
    variables = "-".join(s["starts"][0]["seed"]["widths"])
    lines = [
        f"budget of all starts {amounts(s['budget'])}; widths are {variables}",
        f"back: within a factor {s['within']:g} of what the plain search recommends",
    ]
    notes: dict[str, list[str]] = {}
    for start in s["starts"]:
        if start["same_as"] is not None:
            of = [f"the same proportions as {start['same_as']}, and so the same search"]
        else:
            of = [start["stopped_because"]] if start["stopped_because"] else []
            if start["started_from"] == "cost-aware":
                of.append("cost-aware widths scored better, and were searched from")
        for note in of:
            notes.setdefault(note, []).append(start["start"])
    total = f"all trainings: {s['training_macs']:.3g} MACs, {s['seconds']:.0f} worker seconds"
    return Group(
        headline(s),
        *map(line, lines),
        "",
        _courses(s["starts"], plain and plain["widths"]),
        "",
        _ends(s["starts"]),
        "",
        _spread_table(s),
        "",
        *(line(f"{', '.join(of)}: {note}") for note, of in notes.items()),
        line(total),
    )


def _courses(starts: Sequence[Mapping[str, Any]], wanted: Mapping[str, int] | None) -> Table:
    found = table("start", "after", "inflated layer", "all layers", "widths", left=(0, 1, 4))
    for s in starts:
        if s["same_as"] is not None:
            continue
        layer = s["layer"]
        for i, widths in enumerate(s["course"]):
            if i == 1 and s["started_from"] == "uniform":
                continue  # it stands there already
            of = f" of {wanted[layer]}" if wanted and layer else ""
            found.add_row(
                escape(s["start"]) if i == 0 else "",
                ("scaling to the budget", "cost-aware start")[i] if i < 2 else f"round {i - 2}",
                f"{widths[layer]}{of}" if layer else "",
                "" if s["close"] is None else f"{s['close'][i]} of {len(widths)} back",
                joined(widths),
            )
    return found


def _ends(starts: Sequence[Mapping[str, Any]]) -> Table:
    headers = ("start", "recommended", "back after", "loss, fresh seeds", "n", "gain over plain (95 %)")
    found = table(*headers, left=range(3))
    for s in starts:
        is_plain = starts[0]["start"] in (s["start"], s["same_as"])
        found.add_row(
            escape(s["start"]),
            joined(s["recommended"]["widths"]) if s["recommended"] else "-",
            "" if is_plain or s["close"] is None else _back(s),
            plus_minus(s["fresh_loss"]),
            count(s["fresh_loss"]),
            "" if is_plain else interval(s["gain_over_plain"]),
        )
    return found


def _back(start: Mapping[str, Any]) -> str:
    rounds = len(start["rounds"])
    if start["back_after"] is not None:
        return "the start" if start["back_after"] < 0 else f"round {start['back_after']}"
    return f"not in {counted(rounds, 'round')}" if rounds else "-"


def _spread_table(s: Mapping[str, Any]) -> Table:
    """Per variable: how far apart the starts are, and how far apart what they recommend is."""
    before, after = s["spread"]["baseline"], s["spread"]["recommended"]
    chance = s["spread_by_chance"]
    headers = ["width variable", f"{len(s['spread']['of'])} starts", "sd of log2"]
    headers += ["recommended", "ratio", "sd of log2", *(["sd by chance"] if chance else [])]
    found = table(*headers)
    for v, end in after.items():
        found.add_row(
            escape(v),
            _range(before[v]),
            _sd(before[v]),
            _range(end),
            f"{end['ratio']:.2f}",
            _sd(end),
            *([_sd(chance["recommended"][v])] if chance else []),
        )
    return found


def _range(spread: Mapping[str, Any]) -> str:
    low, high = spread["smallest"], spread["largest"]
    return str(low) if low == high else f"{low} to {high}"


def _sd(spread: Mapping[str, Any]) -> str:
    return "-" if spread["log2_sd"] is None else f"{spread['log2_sd']:.2f}"

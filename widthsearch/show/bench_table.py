"""Measured speed as a page for the terminal: from the object that ``bench --json`` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from widthsearch.plans.words import joined

BUSY = 0.2  # of the median: a larger distance between the quartiles is remarked on


def show_bench(console: Console, b: dict[str, Any]) -> None:
    """Print the networks with their counted cost, then what was measured."""
    threads = f"{b['threads']} thread{'' if b['threads'] == 1 else 's'}"
    console.print(
        f"[bold]{escape(b['study'])}[/]  inference on {b['device']} ({escape(b['machine'])}), {threads}, "
        f"{b['dtype']}, torch {b['torch']}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(("network", "MACs", "of seed", "params", "of seed", "widths")):
        table.add_column(name, justify="right" if 0 < i < 5 else "left", overflow="fold")
    for n in b["networks"]:
        cells = (f"{n['macs']:,}", f"{n['macs_ratio']:.1%}", f"{n['params']:,}", f"{n['params_ratio']:.1%}")
        table.add_row(escape(n["name"]), *cells, joined(n["widths"]))
    console.print(table)
    console.print(_timings(b))
    console.print(
        "latency: median (quartiles) over short blocks of calls, the networks in turn; "
        "of seed: median of the ratios within a pass",
        highlight=False,
        soft_wrap=True,
        style="dim",
    )
    apart = [(r["latency"]["q3"] - r["latency"]["q1"]) / r["latency"]["median"] for r in b["timings"]]
    if max(apart) > BUSY:
        console.print(
            f"the machine was busy: quartiles are up to {max(apart):.0%} apart; the fastest blocks, which "
            "nothing disturbed, say more, or measure again",
            highlight=False,
            soft_wrap=True,
        )
    for note in b["notes"]:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _timings(b: dict[str, Any]) -> Table:
    macs = {n["name"]: n["macs_ratio"] for n in b["networks"]}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(("batch", "mode", "network")):
        table.add_column(name, justify="left" if i else "right")
    for name in ("latency, ms", "fastest", "of seed", "MACs of seed", "samples/s", "blocks"):
        table.add_column(name, justify="right")
    before: tuple[Any, ...] = ()
    for r in b["timings"]:
        group = (r["batch"], r["mode"])
        head = (str(r["batch"]), r["mode"]) if group != before else ("", "")
        low, middle, high = (f"{1e3 * r['latency'][q]:.3g}" for q in ("q1", "median", "q3"))
        table.add_row(
            *head,
            escape(r["network"]),
            f"{middle} ({low} to {high})",
            f"{1e3 * r['latency']['fastest']:.3g}",
            f"{r['ratio']['median']:.1%}",
            f"{macs[r['network']]:.1%}",
            f"{r['throughput']:,.0f}",
            str(r["blocks"]),
        )
        before = group
    return table

"""Measured speed as a page for the terminal: from the object that ``bench --json`` prints."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from widthsearch.plans.words import counted, joined
from widthsearch.report.listings import Bench, Timing
from widthsearch.show.console import Name, say, table

BUSY = 0.2  # of the median: a larger distance between the quartiles is remarked on


def show_bench(console: Console, b: Bench, mode: str) -> None:
    """Print what was measured in this ``mode``; above eager times the networks with their counted cost."""
    if mode == "eager":
        _show_networks(console, b)
    timings = [r for r in b["timings"] if r["mode"] == mode]
    if timings:
        console.print(_timings(b, timings))
    apart = [(r["latency"]["q3"] - r["latency"]["q1"]) / r["latency"]["median"] for r in timings]
    if max(apart, default=0) > BUSY:
        say(
            f"the machine was busy: quartiles are up to {max(apart):.0%} apart; the fastest blocks, which "
            "nothing disturbed, say more, or measure again",
            console,
        )
    for note in b["notes"]:
        say(note, console)


def _show_networks(console: Console, b: Bench) -> None:
    console.print(
        f"[bold]{escape(b['study'])}[/]  inference on {b['device']} ({escape(b['machine'])}), "
        f"{counted(b['threads'], 'thread')}, {b['dtype']}, torch {b['torch']}",
        highlight=False,
        soft_wrap=True,
    )
    headers = ("network", "MACs", "of seed", "params", "of seed", "widths")
    networks = table(*headers, left=(0, 5), spare=("params", "of seed"))
    for n in b["networks"]:
        cells = (f"{n['macs']:,}", f"{n['macs_ratio']:.1%}", f"{n['params']:,}", f"{n['params_ratio']:.1%}")
        networks.add_row(n["name"], *cells, Name(joined(n["widths"])))
    console.print(networks)
    say(
        "latency: median (quartiles) over short blocks of calls, the networks in turn; "
        "of seed: median of the ratios within a pass",
        console,
        style="dim",
    )


def _timings(b: Bench, timings: list[Timing]) -> Table:
    macs = {n["name"]: n["macs_ratio"] for n in b["networks"]}
    headers = ["batch", "mode", "network", "latency, ms", "fastest", "of seed", "MACs of seed"]
    headers += ["samples/s", "blocks"]
    found = table(*headers, left=(1, 2), spare=("blocks", "samples/s", "fastest", "MACs of seed"))
    before: tuple[object, ...] = ()
    for r in timings:
        group = (r["batch"], r["mode"])
        head = (str(r["batch"]), r["mode"]) if group != before else ("", "")
        latency = r["latency"]
        low, middle, high = (f"{1e3 * q:.3g}" for q in (latency["q1"], latency["median"], latency["q3"]))
        found.add_row(
            *head,
            r["network"],
            f"{middle} ({low} to {high})",
            f"{1e3 * latency['fastest']:.3g}",
            f"{r['ratio']['median']:.1%}",
            f"{macs[r['network']]:.1%}",
            f"{r['throughput']:,.0f}",
            str(r["blocks"]),
        )
        before = group
    return found

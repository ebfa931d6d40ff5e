"""The verdict as a page for the terminal: from the object that ``show --json`` prints, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from widthsearch.report import BETTER, NO_DIFFERENCE, WORSE

_BAR = 20  # characters that stand for all MACs


def show_list(console: Console, summaries: Sequence[dict[str, Any]]) -> None:
    """Print one line per study."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("study", "status", "rounds", "trials", "gain (95 % interval)"):
        table.add_column(column)
    for s in summaries:
        gain = s["gain"]
        shown = f"{gain['mean']:+.4f} ({gain['ci95'][0]:+.4f} to {gain['ci95'][1]:+.4f})" if gain else "-"
        scored = sum(r["val_loss"] is not None for r in s["rounds"])
        table.add_row(escape(s["study"]), s["status"], str(scored), str(sum(s["trials"].values())), shown)
    console.print(table)


def show_summary(console: Console, s: dict[str, Any]) -> None:
    """Print one study: headline, widths, networks, rounds, cost, what was left out."""
    console.print(f"[bold]{escape(s['study'])}[/]  {s['status']}" + escape(_why(s)), highlight=False)
    if s["candidate"] is None:
        console.print(_before_first_score(s), highlight=False)
    console.print(_width_table(s))
    console.print(_network_table(s))
    if s["rounds"]:
        console.print(_round_table(s["rounds"]))
    for line in _verdict_lines(s):
        console.print(line, highlight=False, soft_wrap=True)
    for frozen in s["not_searched"]:
        console.print(
            f"not searched: {frozen['name']} (width {frozen['width']}): {frozen['reason']}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


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
    for column in ("width", *(b.replace("_", " ") for b in bounds), "of MACs"):
        table.add_column(column, justify="right")
    table.add_column("", width=_BAR)
    table.add_column("units also made by", overflow="fold")
    for v in d["variables"]:
        others = [m for m in v["modules"] if m != v["name"]]
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        share = v["share_of_macs"]
        cells = [escape(v["name"]), str(v["width"]), *(str(v[b]) for b in bounds), f"{share:.1%}"]
        table.add_row(*cells, "█" * round(_BAR * share), escape(shown))
    if found:
        console.print(table)
    by_reason: dict[str, list[str]] = {}
    for f in d["frozen"]:
        by_reason.setdefault(f["reason"], []).append(f"{f['name']} ({f['width']})")
    for reason, names in by_reason.items():
        line = f"not searched: {', '.join(names)}: {reason}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _why(s: dict[str, Any]) -> str:
    return (
        f": {s['stopped_because']}" if s["stopped_because"] and s["status"] in ("finished", "failed") else ""
    )


def _before_first_score(s: dict[str, Any]) -> str:
    done = s["trials"].get("COMPLETE", 0)
    return f"no round is scored yet ({done} trials finished): the table shows where the search starts"


def _width_table(s: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("width variable", "seed", "baseline", "over-wide", "kept", "prune ratio", "recommended"):
        table.add_column(name, justify="left" if name == "width variable" else "right", overflow="fold")
    best = s["candidate"]["round"] if s["candidate"] else (s["rounds"][-1]["round"] if s["rounds"] else None)
    measure = s["rounds"][best] if best is not None else None
    for v, seed in s["seed"]["widths"].items():
        cells = ["-", "-", "-"]
        if measure is not None:
            se = measure["prune_ratio_se"]
            ratio = f"{measure['prune_ratio'][v]:.2f}" + (f" ± {se[v]:.2f}" if se else "")
            cells = [str(measure["over_wide"][v]), f"{measure['kept'][v]:.1f}", ratio]
        recommended = str(s["recommended"]["widths"][v]) if s["recommended"] else "-"
        table.add_row(v, str(seed), str(s["baseline"]["widths"][v]), *cells, f"[bold]{recommended}[/]")
    return table


def _network_table(s: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["network", "MACs", "params", "val loss", "median", "val accuracy", "median", "n"]
    rows = [("seed", s["seed"]), ("uniform baseline", s["baseline"])]
    if s["candidate"]:
        rows.append((f"best: round {s['candidate']['round']}", s["candidate"]))
    tested = any(network.get("test_accuracy") for _, network in rows)
    columns += ["test accuracy"] if tested else []
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    known = [network["val_accuracy"]["mean"] for _, network in rows if network.get("val_accuracy")]
    share = "{:.2%}" if all(0 <= value <= 1 for value in known) else "{:.4g}"  # a metric may be anything
    for name, network in rows:
        loss, accuracy, test = (network.get(k) for k in ("val_loss", "val_accuracy", "test_accuracy"))
        cells = [
            *(_pm(loss, "{:.4f}"), _median(loss, "{:.4f}")),
            *(_pm(accuracy, share), _median(accuracy, share)),
            str(loss["n"]) if loss else "-",
            *([_pm(test, share)] if tested else []),
        ]
        table.add_row(name, f"{network['macs']:,}", f"{network['params']:,}", *cells)
    return table


def _round_table(rounds: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(("round", "spread", "balanced", "val loss (selection)", "proposal")):
        table.add_column(name, justify="right" if 0 < i < 4 else "left", overflow="fold")
    for r in rounds:
        proposal = "-".join(map(str, r["proposal"].values())) if r["proposal"] else "being measured"
        balanced = "yes" if r["balanced"] else "no"
        table.add_row(str(r["round"]), f"{r['spread']:.3f}", balanced, _pm(r["val_loss"], "{:.4f}"), proposal)
    return table


def _verdict_lines(s: dict[str, Any]) -> list[str]:
    lines = []
    gain, cost = s["gain"], s["cost"]
    if gain is not None:
        low, high = gain["ci95"]
        lines.append(
            f"gain in validation loss over uniform scaling: [bold]{gain['mean']:+.4f}[/] "
            f"(95 % interval {low:+.4f} to {high:+.4f}, median {gain['median']:+.4f}, "
            f"n = {gain['n']} fresh seeds)"
        )
        lines.append(
            {
                BETTER: "verdict: the recommended widths are better than uniform scaling",
                NO_DIFFERENCE: "verdict: no difference shown; the interval holds 0",
                WORSE: "verdict: the searched widths are worse; the uniform baseline is recommended",
            }[s["verdict"]]
        )
    elif s["status"] == "finished":
        lines.append("verdict: none, too many of the final trainings failed")
    if cost["in_uniform_trainings"] is not None:
        lines.append(
            f"search cost: {cost['training_macs']:.3g} training MACs, "
            f"{cost['in_uniform_trainings']:.0f} uniform trainings; "
            f"all trials together {cost['seconds']:.0f} worker seconds"
        )
    return lines


def _pm(stats: dict[str, Any] | None, form: str) -> str:
    if stats is None:
        return "-"
    mean = form.format(stats["mean"])
    return mean if stats["se"] is None else f"{mean} ± {form.format(stats['se'])}"


def _median(stats: dict[str, Any] | None, form: str) -> str:
    return "-" if stats is None else form.format(stats["median"])

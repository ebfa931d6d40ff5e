"""The verdict as a page for the terminal: from the object that ``show --json`` prints, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from widthsearch.views.report import BETTER, NO_DIFFERENCE, NOTHING_BETTER, WORSE

_BAR = 20  # characters that stand for all MACs


def show_list(console: Console, summaries: Sequence[dict[str, Any]]) -> None:
    """Print one line per study."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("study", "status", "rounds", "trials", "gain (95 % interval)"):
        table.add_column(column)
    for s in summaries:
        if "comparison" in s or "pruners" in s:
            done = str(sum(s["trials"].values()))
            what = s["arms"] if "comparison" in s else [p["pruner"] for p in s["pruners"]]
            table.add_row(escape(s["study"]), s["status"], "-", done, f"compares {', '.join(what)}")
            continue
        gain = s["gain"]
        shown = f"{gain['mean']:+.4f} ({gain['ci95'][0]:+.4f} to {gain['ci95'][1]:+.4f})" if gain else "-"
        scored = sum(r["val_loss"] is not None for r in s["rounds"])
        table.add_row(escape(s["study"]), s["status"], str(scored), str(sum(s["trials"].values())), shown)
    console.print(table)


def show_summary(console: Console, s: dict[str, Any]) -> None:
    """Print one study: headline, widths, networks, rounds, cost, what was left out."""
    console.print(f"[bold]{escape(s['study'])}[/]  {s['status']}" + escape(why(s)), highlight=False)
    if not any(r["val_loss"] for r in s["rounds"]) and s["status"] != "finished":
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


def show_comparison(console: Console, s: dict[str, Any]) -> None:
    """Print a comparison: per budget, what the arms recommend, and how that fares on the same fresh seeds."""
    console.print(f"[bold]{escape(s['study'])}[/]  {s['status']}" + escape(why(s)), highlight=False)
    for entry in s["budgets"]:
        limits = ", ".join(f"{limit:,} {r}" for r, limit in entry["budget"].items() if limit is not None)
        console.print(
            f"budget {limits}; each search may cost {entry['search_cost']:.0f} uniform trainings; "
            f"{s['repeats']} repeat{'' if s['repeats'] == 1 else 's'}",
            highlight=False,
            soft_wrap=True,
        )
        if not entry["arms"]:
            console.print("no arm recommends anything yet")
            continue
        console.print(_recommendations(entry["arms"]))
        console.print(_gains(entry["arms"]))
    macs = s["training_macs"]
    console.print(f"all trainings: {macs:.3g} MACs, {s['seconds']:.0f} worker seconds", highlight=False)


def _recommendations(arms: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(("arm", "widths (first repeat)", "MACs", "params", "val loss", "median", "n")):
        table.add_column(name, justify="right" if i > 1 else "left", overflow="fold")
    table.add_column("val accuracy", justify="right")
    known = [a["val_accuracy"]["mean"] for a in arms if a["val_accuracy"]]
    share = "{:.2%}" if all(0 <= value <= 1 for value in known) else "{:.4g}"
    for a in arms:
        loss = a["val_loss"]
        table.add_row(
            a["arm"],
            "-".join(str(w) for w in a["widths"][0].values()),
            f"{a['macs'][0]:,}",
            f"{a['params'][0]:,}",
            *(mean_and_error(loss, "{:.4f}"), _median(loss, "{:.4f}"), str(loss["n"]) if loss else "-"),
            mean_and_error(a["val_accuracy"], share),
        )
    return table


def _gains(arms: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    headers = (
        "arm",
        "gain over uniform (95 %)",
        "gain over grow-shrink (95 %)",
        "search cost",
        "within 1 % after",
    )
    for i, name in enumerate(headers):
        table.add_column(name, justify="right" if i else "left", overflow="fold")
    for a in arms:
        close = a["cost_to_close"]
        gains = [
            "" if a["arm"] == of else _interval(a[key])
            for of, key in (("uniform", "gain_over_uniform"), ("grow-shrink", "gain_over_ours"))
        ]
        table.add_row(a["arm"], *gains, f"{a['search_cost']:.1f}", "-" if close is None else f"{close:.1f}")
    return table


def _interval(gain: dict[str, Any] | None) -> str:
    if gain is None:
        return "-"
    low, high = gain["ci95"]
    return f"{gain['mean']:+.4f} ({low:+.4f} to {high:+.4f})"


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


def why(s: dict[str, Any]) -> str:
    """Why a study ended, where it did."""
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
        c = s["candidate"]
        rows.append((f"best: round {c['round']}, step {c['step']:g}", c))
    tested = any(network.get("test_accuracy") for _, network in rows)
    columns += ["test accuracy"] if tested else []
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    known = [network["val_accuracy"]["mean"] for _, network in rows if network.get("val_accuracy")]
    share = "{:.2%}" if all(0 <= value <= 1 for value in known) else "{:.4g}"  # a metric may be anything
    for name, network in rows:
        loss, accuracy, test = (network.get(k) for k in ("val_loss", "val_accuracy", "test_accuracy"))
        cells = [
            *(mean_and_error(loss, "{:.4f}"), _median(loss, "{:.4f}")),
            *(mean_and_error(accuracy, share), _median(accuracy, share)),
            str(loss["n"]) if loss else "-",
            *([mean_and_error(test, share)] if tested else []),
        ]
        table.add_row(name, f"{network['macs']:,}", f"{network['params']:,}", *cells)
    return table


def _round_table(rounds: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(("round", "spread", "balanced", "step", "val loss (selection)", "proposal")):
        table.add_column(name, justify="right" if 0 < i < 5 else "left", overflow="fold")
    for r in rounds:
        head = [str(r["round"]), f"{r['spread']:.3f}", "yes" if r["balanced"] else "no"]
        if not r["steps"]:
            table.add_row(*head, "-", "-", "nothing new" if r["balanced"] else "being measured")
        for step in r["steps"]:
            proposal = "-".join(map(str, step["widths"].values()))
            table.add_row(*head, f"{step['step']:g}", mean_and_error(step["val_loss"], "{:.4f}"), proposal)
            head = ["", "", ""]
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
                NOTHING_BETTER: "verdict: nothing scored better than uniform scaling, which is recommended",
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


def mean_and_error(stats: dict[str, Any] | None, form: str) -> str:
    """``0.1 ± 0.02``; a dash where nothing is known."""
    if stats is None:
        return "-"
    mean = form.format(stats["mean"])
    return mean if stats["se"] is None else f"{mean} ± {form.format(stats['se'])}"


def _median(stats: dict[str, Any] | None, form: str) -> str:
    return "-" if stats is None else form.format(stats["median"])

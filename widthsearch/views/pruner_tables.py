"""A comparison of pruners as a page for the terminal, from the object that ``show --json`` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from widthsearch.views.tables import mean_and_error, why

#: What is held equal, and what is done to it.
EQUAL = {"weights_removed": ("weights", "removed"), "macs_saved": ("dense MACs", "saved")}


def show_pruners(console: Console, s: dict[str, Any]) -> None:
    """Print a table of pruners and levels, then which pruner wins at equal weights and at equal MACs."""
    console.print(f"[bold]{escape(s['study'])}[/]  {s['status']}" + escape(why(s)), highlight=False)
    start = s["over_wide"]
    console.print(
        f"over-wide network {'-'.join(map(str, start['widths'].values()))}: {start['macs']:,} MACs, "
        f"{start['params']:,} parameters; each level keeps a share of its MACs (obd: of its weights)",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    headers = ("pruner", "level", "weights removed", "neurons removed", "MACs saved", "time saved")
    for i, name in enumerate((*headers, "val accuracy", "val loss", "n")):
        table.add_column(name, justify="right" if i else "left")
    accuracies = [row["val_accuracy"] for p in s["pruners"] for row in p["levels"]]
    form = "{:.2%}" if all(0 <= a["mean"] <= 1 for a in accuracies if a) else "{:.4g}"
    if start["val_loss"]:
        table.add_row("over-wide", "1", *["0 %"] * 4, *_quality(start, form))
    for p in s["pruners"]:
        for row in p["levels"]:
            shares = (f"{100 * row[key]['mean']:.1f} %" for key in row if key.endswith(("removed", "saved")))
            table.add_row(p["pruner"], f"{row['level']:.4g}", *shares, *_quality(row, form))
    console.print(table)
    for share, found in s["winners"].items():
        if found is not None:
            console.print(_answer(*EQUAL[share], found, form), highlight=False, soft_wrap=True)
    console.print(
        f"all trainings: {s['training_macs']:.3g} MACs, {s['seconds']:.0f} worker seconds", highlight=False
    )


def _quality(row: dict[str, Any], form: str) -> list[str]:
    loss = row["val_loss"]
    return [mean_and_error(row["val_accuracy"], form), mean_and_error(loss, "{:.4f}"), str(loss["n"])]


def _answer(equal: str, done: str, found: dict[str, Any], form: str) -> str:
    accuracy = found["quality"] == "val_accuracy"
    form = form if accuracy else "{:.4f}"
    best, second = found["pruner"], found["next"]
    shares = f"{found['at'][0]:.1%} to {found['at'][-1]:.1%}"
    text = (
        f"at equal {equal} (mean over {shares} {done}): [bold]{best}[/] is best, "
        f"{'accuracy' if accuracy else 'loss'} {form.format(found['mean'][best])}, then {second} "
        f"{form.format(found['mean'][second])}"
    )
    none = f"; {', '.join(found['left_out'])} has none {done}" if found["left_out"] else ""
    if found["gain"] is None:
        return f"{text}; one seed tells nothing of chance{none}"
    low, high = found["gain"]["ci95"]
    shown = "" if low > 0 else ": no difference shown"
    return f"{text} (95 % interval of the gain {form.format(low)} to {form.format(high)}{shown}){none}"

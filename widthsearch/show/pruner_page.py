"""A comparison of pruners as a page for the terminal, from the object that ``show --json`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

from widthsearch.plans.words import amounts, joined
from widthsearch.show.console import table
from widthsearch.show.formats import headline, line, metric_form, plus_minus

#: What is held equal, and what is done to it.
EQUAL = {"weights_removed": ("weights", "removed"), "macs_saved": ("dense MACs", "saved")}


def pruner_page(s: Mapping[str, Any]) -> Group:
    """The page: pruners and levels, then which pruner wins at equal weights and at equal MACs."""
    start = s["over_wide"]
    cost = amounts({r: start[r] for r in ("macs", "params")})
    about = (
        f"over-wide network {joined(start['widths'])}: {cost}; "
        "each level keeps a share of its MACs (obd: of its weights)"
    )
    form = metric_form(row["val_accuracy"] for p in s["pruners"] for row in p["levels"])
    answers = [
        _answer(*EQUAL[share], found, form) for share, found in s["winners"].items() if found is not None
    ]
    total = f"all trainings: {s['training_macs']:.3g} MACs, {s['seconds']:.0f} worker seconds"
    return Group(headline(s), line(about), "", _levels(s, form), "", *map(line, [*answers, total]))


def _levels(s: Mapping[str, Any], form: str) -> Table:
    headers = ("pruner", "level", "weights removed", "neurons removed", "MACs saved", "time saved")
    found = table(*headers, f"val {s['metric']}", "val loss", "n")
    start = s["over_wide"]
    if start["val_loss"]:
        found.add_row("over-wide", "1", *["0 %"] * 4, *_quality(start, form))
    for p in s["pruners"]:
        for row in p["levels"]:
            shares = (f"{100 * row[key]['mean']:.1f} %" for key in row if key.endswith(("removed", "saved")))
            found.add_row(p["pruner"], f"{row['level']:.4g}", *shares, *_quality(row, form))
    return found


def _quality(row: Mapping[str, Any], form: str) -> list[str]:
    loss = row["val_loss"]
    return [plus_minus(row["val_accuracy"], form), plus_minus(loss), str(loss["n"])]


def _answer(equal: str, done: str, found: Mapping[str, Any], form: str) -> str:
    accuracy = found["quality"] == "val_accuracy"
    form = form if accuracy else "{:.4f}"
    best, second = found["pruner"], found["next"]
    shares = f"{found['at'][0]:.1%} to {found['at'][-1]:.1%}"
    text = (
        f"at equal {equal} (mean over {shares} {done}): {best} is best, "
        f"{'accuracy' if accuracy else 'loss'} {form.format(found['mean'][best])}, then {second} "
        f"{form.format(found['mean'][second])}"
    )
    none = f"; {', '.join(found['left_out'])} has none {done}" if found["left_out"] else ""
    if found["gain"] is None:
        return f"{text}; one seed tells nothing of chance{none}"
    low, high = found["gain"]["ci95"]
    shown = "" if low > 0 else ": no difference shown"
    return f"{text} (95 % interval of the gain {form.format(low)} to {form.format(high)}{shown}){none}"

"""How numbers are written, on every page alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.text import Text

from widthsearch.maths.intervals import Gain, Stats
from widthsearch.plans.words import amounts, candidate_name
from widthsearch.report.listings import WidthsFound
from widthsearch.report.types import Found, Network, Spent, StudySummary, Summary

_COLOURS = {"finished": "green", "running": "cyan", "interrupted": "yellow", "failed": "red"}


def plus_minus(stats: Stats | None, form: str = "{:.4f}") -> str:
    """``.1032 ± .0037``: mean and standard error; ``-`` where nothing is known."""
    if stats is None:
        return "-"
    mean = form.format(stats["mean"])
    return mean if stats["se"] is None else f"{mean} ± {form.format(stats['se'])}"


def median(stats: Stats | None, form: str = "{:.4f}") -> str:
    """The median alone."""
    return "-" if stats is None else form.format(stats["median"])


def count(stats: Stats | None) -> str:
    """How many values it is made of."""
    return "-" if stats is None else str(stats["n"])


def interval(gain: Gain | None) -> str:
    """``+.0316 (+.0158 to +.0474)``: a difference and its 95 % interval."""
    if gain is None:
        return "-"
    low, high = gain["ci95"]
    return f"{gain['mean']:+.4f} ({low:+.4f} to {high:+.4f})"


def metric_form(stats: Iterable[Stats | None]) -> str:
    """How the metric is written: shares as percentages, and anything else that a user's metric may be."""
    known = [s["mean"] for s in stats if s is not None]
    return "{:.2%}" if all(0 <= value <= 1 for value in known) else "{:.4g}"


def size(network: Network | WidthsFound) -> str:
    """``32,752 MACs, 3,037 parameters``."""
    return amounts({"macs": network["macs"], "params": network["params"]})


def found_name(network: Found) -> str:
    """``round 1, step 0.5``, ``uniform baseline``."""
    return candidate_name(-1 if network["round"] is None else network["round"], network["step"] or 0.0)


def spent(summary: Spent) -> Text:
    """What all trainings of a study cost."""
    macs, seconds = summary["training_macs"], summary["seconds"]
    return line(f"all trainings: {macs:.3g} MACs, {seconds:.0f} worker seconds")


def reason(summary: Summary) -> str:
    """Why a study that has ended did."""
    if summary["kind"] == "family" or summary["status"] not in ("finished", "failed"):
        return ""
    return f": {summary['stopped_because']}" if summary["stopped_because"] else ""


def line(text: str) -> Text:
    """A line that no console wraps: what is searched for in a log stays in one piece."""
    return Text(text, no_wrap=True, overflow="ignore")


def status(summary: Summary) -> Text:
    """The status in its colour."""
    return Text(summary["status"], _COLOURS[summary["status"]])


def headline(summary: StudySummary) -> Text:
    """Name, status, and why a study that has ended did."""
    parts = ((summary["study"], "bold"), "  ", status(summary), reason(summary))
    return Text.assemble(*parts, no_wrap=True, overflow="ignore")


def age(moment: str | None, now: datetime | None = None) -> str:
    """How long ago a moment (ISO, local time) was: ``12 min``, ``3 h``, ``5 days``."""
    if moment is None:
        return "-"
    seconds = max(0.0, ((now or datetime.now()) - datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds / length:.0f} {unit}"
    return "now"


def bar(value: float, largest: float, cells: int) -> str:
    """A bar of up to ``cells`` characters, in eighths of one; what is above 0 shows at least an eighth."""
    eighths = round(8 * cells * value / largest) if largest > 0 else 0
    full, rest = divmod(max(eighths, int(value > 0)), 8)
    return "█" * full + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]


def shorten(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

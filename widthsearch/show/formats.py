"""How numbers are written, on every page alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.text import Text

from widthsearch.maths.intervals import Gain, Stats
from widthsearch.plans.words import amounts, candidate_name
from widthsearch.report.listings import WidthsFound
from widthsearch.report.summary import name_of
from widthsearch.report.types.common import Found, Network, Spent
from widthsearch.report.types.kinds import StudySummary, Summary
from widthsearch.report.types.search import SearchSummary
from widthsearch.show.console import Line

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


def title(summary: SearchSummary) -> str:
    """What the best network that a search found is called on its page: recommended only if it is."""
    return "recommended" if summary["decision"]["answer"] == "better" else "best found"


def found_name(network: Found) -> str:
    """``round 1, step 0.5``, ``uniform widths``."""
    return candidate_name(-1 if network["round"] is None else network["round"], network["step"] or 0.0)


def spent(summary: Spent) -> Text:
    """What all trainings of a study cost."""
    macs, seconds = summary["training_macs"], summary["seconds"]
    return Line(f"all trainings: {macs:.3g} MACs, {seconds:.0f} worker seconds")


def reason(summary: Summary) -> str:
    """Why a study that has ended did."""
    if summary["kind"] == "family" or summary["status"] not in ("finished", "failed"):
        return ""
    return f": {summary['stopped_because']}" if summary["stopped_because"] else ""


def status(summary: Summary) -> Text:
    """The status in its colour."""
    return Text(summary["status"], _COLOURS[summary["status"]])


def opening(summary: Summary) -> list[Text]:
    """What every page begins with: name, status and why a study ended; what it says to do; how far it is."""
    name = Line.assemble((name_of(summary), "bold"), "  ", status(summary), reason(summary))
    lines = [name, Line(summary["decision"]["sentence"], "bold")]
    if summary["kind"] != "family" and (now := progress(summary)):
        lines.append(Line(now))
    return lines


def progress(summary: StudySummary) -> str:
    """``2 running, at most 3m10s left, last change 5 s ago: round 1 measure 2``; empty once it has ended."""
    if summary["status"] not in ("running", "interrupted"):
        return ""
    now, left = summary["progress"], summary["progress"]["seconds_left"]
    parts = [f"{len(now['running'])} running"] if summary["status"] == "running" else []
    parts += [] if left is None else [f"at most {duration(left)} left"]
    parts += [] if summary["last_change"] is None else [f"last change {age(summary['last_change'])} ago"]
    running = f": {shorten(now['running'])}" if now["running"] else ""
    return ", ".join(parts) + running


def duration(seconds: float) -> str:
    """``75`` as ``1m15s``."""
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds % 60:02d}s" if minutes else f"{seconds}s"


def age(moment: str | None, now: datetime | None = None) -> str:
    """How long ago a moment (ISO, local time) was: ``5 s``, ``12 min``, ``3 h``, ``5 days``."""
    if moment is None:
        return "-"
    seconds = max(0.0, ((now or datetime.now()) - datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def shorten(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

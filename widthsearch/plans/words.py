"""How widths and amounts are said, wherever that is: on a terminal, in a log, in an error."""

from __future__ import annotations

from collections.abc import Mapping

from widthsearch.maths.cost import shown

UNITS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


def joined(widths: Mapping[str, int]) -> str:
    """``8-6-9-7-8-11-45``."""
    return "-".join(map(str, widths.values()))


def amounts(budget: Mapping[str, float | None]) -> str:
    """``32,752 MACs, 3,037 parameters``, ``1.2 ms latency``; without what has no limit."""
    known = {r: limit for r, limit in budget.items() if limit is not None}
    return ", ".join(shown(r, limit, called=UNITS[r]) for r, limit in known.items())


def slug(name: str) -> str:
    """As much of a study's name as every file system takes; other names may have the same."""
    return "".join(c if c.isascii() and c.isalnum() or c in "-_" else "_" for c in name)[:60]

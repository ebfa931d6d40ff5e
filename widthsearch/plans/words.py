"""How plans, slots and widths are said, wherever that is: on a terminal, in a log, in an error."""

from __future__ import annotations

from collections.abc import Mapping


def joined(widths: Mapping[str, int]) -> str:
    """``8-6-9-7-8-11-45``."""
    return "-".join(map(str, widths.values()))

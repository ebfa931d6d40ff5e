"""What all pictures share: colours, and the look of figures."""

from __future__ import annotations

from typing import Any

#: Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
BLUE, GREEN, RED = COLOURS[0], COLOURS[2], COLOURS[4]

#: Colours of a prune ratio of 0, 1/2 and 1: light to dark, so that they differ in grey as well.
PRUNE_RATIO = ((0.0, "#F7F4E9"), (0.5, "#56B4E9"), (1.0, "#08306B"))


def colour_of(prune_ratio: float) -> str:
    """The colour of a prune ratio (0 to 1) as ``#rrggbb``, linear between those above."""
    ratio = min(max(prune_ratio, 0.0), 1.0)
    below = max((stop for stop in PRUNE_RATIO[:-1] if stop[0] <= ratio), key=lambda stop: stop[0])
    above = PRUNE_RATIO[PRUNE_RATIO.index(below) + 1]
    t = (ratio - below[0]) / (above[0] - below[0])
    mixed = [
        round((1 - t) * int(below[1][k : k + 2], 16) + t * int(above[1][k : k + 2], 16)) for k in (1, 3, 5)
    ]
    return "#{:02X}{:02X}{:02X}".format(*mixed)


def layout(title: str, height: int = 560) -> dict[str, Any]:
    """The layout that all plotly figures have."""
    return {"title": title, "template": "plotly_white", "font_size": 13, "height": height}


def shortened(name: str, length: int) -> str:
    """A name of at most ``length`` characters; a longer one loses its middle."""
    if len(name) <= length:
        return name
    tail = length // 2
    return f"{name[: length - tail - 1]}…{name[-tail:]}"

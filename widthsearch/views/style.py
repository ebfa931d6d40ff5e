"""What all pictures share: colours, and the look of figures."""

from __future__ import annotations

from typing import Any

#: Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")
BLUE, GREEN, RED = COLOURS[0], COLOURS[2], COLOURS[4]

#: Colours of a prune ratio from 0 to 1 at equal distances: Brewer's YlGnBu, light to dark.
PRUNE_RATIO = ("#FFFFD9", "#C7E9B4", "#41B6C4", "#225EA8", "#081D58")


def colour_of(prune_ratio: float) -> str:
    """The colour of a prune ratio (0 to 1) as ``#rrggbb``, linear between those above."""
    place = min(max(prune_ratio, 0.0), 1.0) * (len(PRUNE_RATIO) - 1)
    below = min(int(place), len(PRUNE_RATIO) - 2)
    low, high = (bytes.fromhex(colour[1:]) for colour in PRUNE_RATIO[below : below + 2])
    mixed = (round(a + (place - below) * (b - a)) for a, b in zip(low, high, strict=True))
    return "#" + bytes(mixed).hex()


def layout(title: str, height: int = 560) -> dict[str, Any]:
    """The layout that all plotly figures have."""
    return {"title": title, "template": "plotly_white", "font_size": 13, "height": height}


def shortened(name: str, length: int) -> str:
    """A name of at most ``length`` characters; a longer one loses its middle."""
    if len(name) <= length:
        return name
    tail = length // 2
    return f"{name[: length - tail - 1]}…{name[-tail:]}"

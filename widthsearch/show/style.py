"""What all pictures share: colours, the look of figures, writing them.  Figures need plotly."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from widthsearch.errors import UsageError

#: Okabe and Ito's colours, which colour-blind people can tell apart; without yellow and black, and darker
#: where they are pale: each can be seen on white and on a dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#4AA3DF", "#7A5CC4", "#7D8B1F", "#A0522D")
BLUE, RED, GREEN = COLOURS[:3]
GREY = "#808790"

#: Colours of a prune ratio from 0 to 1 at equal distances: Brewer's YlGnBu, light to dark.
PRUNE_RATIO = ("#FFFFD9", "#C7E9B4", "#41B6C4", "#225EA8", "#081D58")


def colour_of(prune_ratio: float) -> str:
    """The colour of a prune ratio (0 to 1) as ``#rrggbb``, linear between those above."""
    place = min(max(prune_ratio, 0.0), 1.0) * (len(PRUNE_RATIO) - 1)
    below = min(int(place), len(PRUNE_RATIO) - 2)
    low, high = (bytes.fromhex(colour[1:]) for colour in PRUNE_RATIO[below : below + 2])
    mixed = (round(a + (place - below) * (b - a)) for a, b in zip(low, high, strict=True))
    return "#" + bytes(mixed).hex()


def layout(title: str, height: int = 420) -> dict[str, Any]:
    """The layout that all plotly figures have: the legend stands below."""
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": -75 / height, "yanchor": "top"}
    return {
        "title": title,
        "template": "plotly_white",
        "font_size": 13,
        "height": height,
        "legend": legend,
        "hoverlabel": {"namelength": -1},
    }


def nothing_yet(title: str, text: str) -> Any:
    """The figure in the place of one that has nothing to show yet; ``text`` says what is missing."""
    from plotly.graph_objects import Figure  # here: it takes a second

    figure = Figure()
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(**layout(title, height=240))
    return figure


def check_figure(what: str, file: str) -> None:
    """Before anything is computed for it: ``file`` is an HTML file's name, and plotly is there."""
    if not file.endswith(".html"):
        raise UsageError(f"{what} {file!r}: give the name of an .html file")
    if find_spec("plotly") is None:
        raise UsageError(f"{what} needs plotly: pip install 'widthsearch[plots]'")


def write_file(data: bytes, file: str) -> None:
    """Write a file; :class:`UsageError` where that cannot be."""
    try:
        Path(file).write_bytes(data)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{file!r} cannot be written: {reason}") from None


def shortened(name: str, length: int) -> str:
    """A name of at most ``length`` characters; a longer one loses its middle."""
    if len(name) <= length:
        return name
    tail = length // 2
    return f"{name[: length - tail - 1]}…{name[-tail:]}"

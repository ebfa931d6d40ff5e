"""The architecture before and after, to scale, as an SVG: from the summary alone.

One block per width variable, its height the width, joined in the order of the data; one row per network: the
seed, the over-wide network of the last measured round, the recommended one.  Many variables go into several
bands, each with all networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10, sqrt
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from widthsearch.plans.words import counted
from widthsearch.report.types import SearchSummary
from widthsearch.show.networks import Network, networks_of
from widthsearch.show.style import BLUE, GREEN, colour_of, shortened
from widthsearch.show.ties import Tie, lanes, ties_of

FONTS = "Helvetica, Arial, Liberation Sans, DejaVu Sans, Noto Sans, sans-serif"

#: Characters that XML has no place for: control characters, halves of pairs, two that are none.
_NOT_IN_XML = dict.fromkeys(
    {*range(0x20), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF} - {ord("\t"), ord("\n")},
    "\N{REPLACEMENT CHARACTER}",
)
_MOST_COLUMNS = 18  # in one band
_LEFT, _RIGHT = 168.0, 36.0  # beside the chains: what the networks are called, and the way to the next band
_HEADER, _LANE, _LINE = 108.0, 20.0, 15.0  # heights: title and legend, one lane of ties, one line of text
_TALLEST = 150.0  # the highest block of all
_GREY, _DARK, _LIGHT = "#767676", "#222222", "#E3E3E3"
_FILL = {"seed": "#9AA5B1", "recommended": GREEN}  # the over-wide network has the colours of its prune ratios


@dataclass(frozen=True)
class _Scale:
    """Heights of blocks: linear in the width, or in its square root."""

    largest: int
    root: bool

    def __call__(self, width: float) -> float:
        share = width / self.largest
        return _TALLEST * (sqrt(share) if self.root else share)

    def width_at(self, height: float) -> float:
        """The width that is drawn so high."""
        share = height / _TALLEST
        return self.largest * (share**2 if self.root else share)

    def says(self) -> str:
        """What the picture says about it."""
        if self.root:
            return "Height of a block: square root of its width (four times the units are twice as high)."
        return f"Height of a block: its width, linear (1 unit is {self(1):.3g} px high)."


class _Canvas:
    """SVG elements, one after the other."""

    def __init__(self) -> None:
        self.elements: list[Element] = []

    def add(self, tag: str, **attributes: float | str) -> Element:
        """One element; an attribute ``title`` becomes its tooltip."""
        title = attributes.pop("title", "")
        element = Element(tag, {name.replace("_", "-"): _text(value) for name, value in attributes.items()})
        if title:
            SubElement(element, "title").text = _text(title)
        self.elements.append(element)
        return element

    def text(self, x: float, y: float, content: str, size: float = 11, **attributes: float | str) -> None:
        """A line of text, in white around the letters so that no line runs through them."""
        halo: dict[str, float | str] = {"stroke": "white", "stroke_width": 2.5, "paint_order": "stroke"}
        style = {"x": x, "y": y, "font_size": size, "fill": _DARK, **halo, **attributes}
        self.add("text", **style).text = _text(content)

    def svg(self, width: float, height: float) -> str:
        """All of them as the text of an SVG file, on white."""
        size = {"width": f"{width:g}", "height": f"{height:g}"}
        box = {"viewBox": f"0 0 {width:g} {height:g}", "font-family": FONTS}
        root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, **box})
        SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "white"})
        root.extend(self.elements)
        indent(root, "")
        return tostring(root, encoding="unicode") + "\n"


@dataclass(frozen=True)
class _Columns:
    """Where the variables of a band stand."""

    pitch: float
    names_turned: bool
    names_height: float

    def x(self, column: float) -> float:
        """The middle of a column; ``column`` 0.5 lies between the first two."""
        return _LEFT + (column + 0.5) * self.pitch

    @property
    def block(self) -> float:
        """How wide a block is."""
        return min(44.0, 0.5 * self.pitch)


def draw_architecture(summary: SearchSummary, modules: Sequence[tuple[str, str]] = ()) -> str:
    """The picture of a search (no comparison) as the text of an SVG file.

    ``summary``: what ``show --json`` prints; ``modules``: (module, the variable whose units it makes), in the
    order of execution, for the ties (:func:`.records.modules_of`).  Of a search that has only started it
    shows what is known.
    """
    variables = list(summary["seed"]["widths"])
    ties = ties_of(modules, variables)
    networks = networks_of(summary, ties)
    scale = _scale_for(networks)
    bands = max(1, ceil(len(variables) / _MOST_COLUMNS))
    per_band = ceil(len(variables) / bands)
    columns = _columns(variables, per_band)
    width = max(760.0, _LEFT + per_band * columns.pitch + _RIGHT)
    canvas, y = _Canvas(), _HEADER
    _draw_header(canvas, summary, scale, width)
    for start in range(0, len(variables), per_band):
        end = min(start + per_band, len(variables))
        y = _draw_band(canvas, y, variables, (start, end), networks, ties, scale, columns)
    return canvas.svg(width, y)


def _scale_for(networks: Sequence[Network]) -> _Scale:
    """Linear, unless most blocks would be less than a twentieth as high as the tallest."""
    widths = sorted(w for network in networks for w in network.widths.values())
    largest = widths[-1]
    return _Scale(largest, root=widths[len(widths) // 2] < largest / 20)


def _columns(variables: Sequence[str], per_band: int) -> _Columns:
    pitch = min(110.0, max(56.0, 560.0 / per_band))
    longest = max(len(_label(v)) for v in variables)
    if 6.4 * longest < pitch:
        return _Columns(pitch, False, 20.0)
    return _Columns(pitch, True, 18.0 + 4.4 * longest)


# Drawing it ----------------------------------------------------------------------------------------------


def _draw_header(canvas: _Canvas, summary: SearchSummary, scale: _Scale, width: float) -> None:
    canvas.text(20, 32, f"{shortened(summary['study'], 40)}: widths before and after", 18, font_weight="bold")
    canvas.text(20, 54, scale.says(), 12, fill=_GREY)
    x, y = 20.0, 68.0
    canvas.text(x, y + 11, "prune ratio", 11)
    steps = 50
    for k in range(steps):
        canvas.add("rect", x=x + 66 + 3 * k, y=y, width=3.5, height=14, fill=colour_of(k / (steps - 1)))
    for share in (0, 0.5, 1):
        canvas.text(x + 66 + 150 * share, y + 26, f"{share:g}", 10, text_anchor="middle", fill=_GREY)
    x += 250
    canvas.add("rect", x=x, y=y, width=14, height=14, fill="none", stroke=_GREY, stroke_dasharray="3 2")
    canvas.text(x + 20, y + 11, "width in the seed")
    x += 140
    units = _round_number(scale.width_at(34))
    canvas.add("rect", x=x, y=y, width=5, height=max(scale(units), 0.5), fill=_DARK)
    canvas.text(x + 12, y + 11, counted(units, "unit"))


def _draw_band(
    canvas: _Canvas,
    y: float,
    variables: Sequence[str],
    span: tuple[int, int],
    networks: Sequence[Network],
    ties: Mapping[str, Tie],
    scale: _Scale,
    columns: _Columns,
) -> float:
    """All networks, for the variables from ``span[0]`` to before ``span[1]``; returns where the band ends."""
    start, end = span
    shown = list(variables[start:end])
    y = _draw_ties(canvas, y, ties, span, columns)
    for network in networks:
        y = _draw_row(canvas, y, shown, network, scale, columns, (start > 0, end < len(variables)))
    for column, variable in enumerate(shown):
        x, label = columns.x(column), _label(variable)
        if columns.names_turned:
            turn = {"text_anchor": "end", "transform": f"rotate(-45 {x:g} {y + 4:g})"}
            canvas.text(x, y + 4, label, 10.5, **turn)
        else:
            canvas.text(x, y + 6, label, 11, text_anchor="middle")
    return y + columns.names_height + 14


def _draw_ties(
    canvas: _Canvas, y: float, ties: Mapping[str, Tie], span: tuple[int, int], columns: _Columns
) -> float:
    """A bracket over the columns that a tied variable spans, with a foot for each module that makes it."""
    start, end = span
    spans = {v: (max(t.first, start), min(t.last, end - 0.5)) for v, t in ties.items()}
    spans = {v: (a, b) for v, (a, b) in spans.items() if a <= b}
    said = {v: _place_of_text(a, b, end, columns) for v, (a, b) in spans.items()}
    lane_of = lanes({v: (min(a, said[v][0]), max(b, said[v][1])) for v, (a, b) in spans.items()})
    y += _LANE * (1 + max(lane_of.values(), default=-1))
    for v, (a, b) in spans.items():
        tie, top = ties[v], y - _LANE * (lane_of[v] + 1) + 12
        left = columns.x(a - start) if tie.first >= start else _LEFT
        right = columns.x(b - start) + (columns.pitch / 2 if tie.last > end else 0)
        canvas.add(
            "path",
            title=f"{v}: made by {', '.join(tie.modules)}",
            d=f"M{left:g} {top:g} H{right:g}",
            fill="none",
            stroke=BLUE,
            stroke_width=1.5,
        )
        for place in tie.places:
            if start <= place < end:
                x = columns.x(place - start)
                canvas.add("path", d=f"M{x:g} {top:g} v6", stroke=BLUE, stroke_width=1.5)
        x = columns.x(said[v][0] - start) + 4
        canvas.text(x, top - 4, f"made by {len(tie.modules)} modules", 9.5, fill=BLUE)
    return y


def _place_of_text(a: float, b: float, end: int, columns: _Columns) -> tuple[float, float]:
    """From which column to which the text over a bracket goes: from its left end, or to the page's right."""
    length = 96 / columns.pitch
    start = min(a, end - 0.5 + _RIGHT / columns.pitch - length)
    return start, start + length


def _draw_row(
    canvas: _Canvas,
    y: float,
    variables: Sequence[str],
    network: Network,
    scale: _Scale,
    columns: _Columns,
    goes_on: tuple[bool, bool],
) -> float:
    """One network's blocks around a middle line, joined; returns where the row ends."""
    before, after = goes_on
    known = [network.widths[v] for v in variables if v in network.widths]
    outlines = [network.outlines[v] for v in variables if v in network.outlines]
    tall = scale(max([*known, *outlines], default=0))
    lines = [] if before else network.lines  # of the whole network: said once
    numbers = 46 if network.below else 32  # above and below the blocks
    beside = _LINE * (1 + len(lines))
    height = max(tall + numbers, beside + 16)
    middle = y + 22 + (height - numbers) / 2
    canvas.text(20, middle - beside / 2 + 11, network.name, 13, font_weight="bold")
    for k, line in enumerate(lines):
        canvas.text(20, middle - beside / 2 + 11 + _LINE * (k + 1), line, 10.5, fill=_GREY)
    if not known:
        return y + height
    half, block = [scale(w) / 2 for w in known], columns.block
    edges = [columns.x(k) for k in range(len(known))]
    _draw_way(canvas, _LEFT - (6 if before else 0), edges[0] - block / 2, middle, before)
    for k in range(len(known) - 1):
        a, b = edges[k] + block / 2, edges[k + 1] - block / 2
        corners = (
            (a, middle - half[k]),
            (b, middle - half[k + 1]),
            (b, middle + half[k + 1]),
            (a, middle + half[k]),
        )
        canvas.add("polygon", points=" ".join(f"{p:g},{q:g}" for p, q in corners), fill=_LIGHT)
    _draw_way(canvas, edges[-1] + block / 2, edges[-1] + columns.pitch / 2 + 10, middle, after)
    for v, x, h in zip(variables, edges, half, strict=True):
        outline = scale(network.outlines[v]) / 2 if v in network.outlines else 0.0
        _draw_block(canvas, v, x, middle, (h, outline), network, block)
    return y + height


def _draw_way(canvas: _Canvas, left: float, right: float, y: float, dashed: bool) -> None:
    """Where the data comes in or goes out; dashed where that is the next or the last band."""
    dashes = {"stroke_dasharray": "2 3"} if dashed else {}
    canvas.add("path", d=f"M{left:g} {y:g} H{right:g}", stroke=_GREY, stroke_width=1.2, **dashes)


def _draw_block(
    canvas: _Canvas,
    variable: str,
    x: float,
    middle: float,
    halves: tuple[float, float],
    network: Network,
    block: float,
) -> None:
    """A block with its numbers above and below; ``halves``: of its height, and of the outline's around it."""
    half, outline = halves
    fill = network.colours.get(variable, _FILL.get(network.name, _LIGHT))
    place: dict[str, float | str] = {"x": x - block / 2, "width": block, "stroke_width": 0.8}
    own: dict[str, float | str] = {"class": network.name, "y": middle - half, "height": 2 * half}
    canvas.add("rect", **own, **place, fill=fill, stroke=_DARK, title=network.tooltips[variable])
    if outline:
        own = {"class": "outline", "y": middle - outline, "height": 2 * outline}
        canvas.add("rect", **own, **place, fill="none", stroke=_GREY, stroke_dasharray="3 2")
    # Between block and outline where there is room for a line, else outside of both.
    at = half if outline - half > _LINE + 1 else max(half, outline)
    number = str(network.widths[variable])
    canvas.text(x, middle - at - 4, number, 11, text_anchor="middle", font_weight="bold")
    if variable in network.below:
        canvas.text(x, middle + at + 12, network.below[variable], 10, text_anchor="middle", fill=_GREY)


# Text ----------------------------------------------------------------------------------------------------


def _label(variable: str) -> str:
    return shortened(variable, 24)


def _round_number(x: float) -> int:
    """The largest of 1, 2, 5, 10, 20, ... that is at most ``x``; 1 below that."""
    if x < 1:
        return 1
    power = int(10 ** int(log10(x)))
    return max(m * power for m in (1, 2, 5) if m * power <= x)


def _text(content: float | str) -> str:
    """A number or text as XML holds it."""
    return content.translate(_NOT_IN_XML) if isinstance(content, str) else f"{content:g}"

"""The architecture before and after, to scale, as an SVG: from the summary, and what is known of its layers.

One block per width variable, its height the width, joined in the order of the data; one row per network: the
seed, the uniform one, the over-wide one of the last measured round, the best found.  Many variables go into
several bands, each with all networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10

import optuna

from widthsearch.database.records import modules_of, plan_of
from widthsearch.maths.cost import Cost
from widthsearch.plans.words import counted
from widthsearch.report.types.search import SearchSummary
from widthsearch.show.canvas import DARK, GREY, LIGHT, Canvas
from widthsearch.show.networks import Network, networks_of
from widthsearch.show.style import BLUE, GREEN, colour_of, shortened
from widthsearch.show.ties import Tie, lanes, skips_of, ties_of

_LANE, _LINE = 20.0, 15.0  # heights: one lane of ties, one line of text
_TALLEST = 150.0  # the highest block of all
_DWARFED = 8  # times as wide as the usual layer: then every layer has a scale of its own
#: The over-wide network has the colours of its prune ratios.
_FILL = {"seed": "#9AA5B1", "uniform": "#C3AE83", "recommended": GREEN, "best found": GREEN}


@dataclass(frozen=True)
class _Scale:
    """Heights of blocks: linear in the width, beside the ``largest`` width of each variable or of all."""

    largest: Mapping[str, int]

    def __call__(self, variable: str, width: float) -> float:
        return _TALLEST * width / self.largest[variable]

    @property
    def common(self) -> bool:
        """Whether all variables have the same."""
        return len(set(self.largest.values())) == 1

    def says(self) -> str:
        """What the picture says about it."""
        if not self.common:
            return "Height of a block: its width beside the widest of its own column."
        return (
            f"Height of a block: its width (1 unit is {_TALLEST / max(self.largest.values()):.3g} px high)."
        )


@dataclass(frozen=True)
class _Columns:
    """Where the variables of a band stand; ``slim``: for a phone, with what a network is called above it."""

    many: int
    pitch: float
    names_turned: bool
    names_height: float
    slim: bool

    @property
    def left(self) -> float:
        """How much room there is beside the chain, for what the networks are called."""
        return 14.0 if self.slim else 168.0

    @property
    def width(self) -> float:
        """Of the whole picture."""
        return max(
            340.0 if self.slim else 760.0, self.left + self.many * self.pitch + (12 if self.slim else 36)
        )

    def x(self, column: float) -> float:
        """The middle of a column; ``column`` 0.5 lies between the first two."""
        return self.left + (column + 0.5) * self.pitch

    @property
    def block(self) -> float:
        """How wide a block is."""
        return min(44.0, 0.5 * self.pitch)


def drawn(study: optuna.Study, summary: SearchSummary, *, slim: bool = False) -> str:
    """The picture of a search with its ties and skips, as the text of an SVG file; ``slim``: for a phone."""
    return draw_architecture(summary, modules_of(study), plan_of(study).plan.cost, slim=slim)


def draw_architecture(
    summary: SearchSummary,
    modules: Sequence[tuple[str, str]] = (),
    cost: Cost | None = None,
    *,
    slim: bool = False,
) -> str:
    """The picture of a search (no comparison) as the text of an SVG file.

    ``summary``: what ``show --json`` prints; ``modules``: (module, the variable whose units it makes), in the
    order of execution, for the ties (:func:`.records.modules_of`); ``cost``: for the skips; ``slim``: 340 px
    wide.  Of a search that has only started it shows what is known.
    """
    variables = list(summary["seed"]["widths"])
    ties = ties_of(modules, variables)
    skips = {} if cost is None else skips_of(cost, ties, variables)
    networks = networks_of(summary, ties)
    scale = _scale_for(networks)
    most = 6 if slim else 14
    per_band = ceil(len(variables) / ceil(len(variables) / most))
    columns = _columns(variables, per_band, slim)
    canvas = Canvas()
    says = "read again there" if skips else ""
    if len(skips) > len(variables):  # densely connected: arrows would show nothing
        skips, says = {}, f"{counted(len(skips), 'skip')}, not drawn"
    y = _draw_header(canvas, summary, scale, columns, says)
    for start in range(0, len(variables), per_band):
        span = (start, min(start + per_band, len(variables)))
        y = _draw_ties(canvas, y, ties, skips, span, columns)
        y = _draw_band(canvas, y, variables, span, networks, scale, columns)
    return canvas.svg(columns.width, y)


def _scale_for(networks: Sequence[Network]) -> _Scale:
    """One for all layers, unless one dwarfs the rest."""
    own = {
        v: max(network.widths.get(v, 0) for network in networks)
        for network in networks
        for v in network.widths
    }
    largest = max(own.values())
    dwarfed = largest > _DWARFED * sorted(own.values())[len(own) // 2]
    return _Scale(own if dwarfed else dict.fromkeys(own, largest))


def _columns(variables: Sequence[str], per_band: int, slim: bool) -> _Columns:
    pitch = 314.0 / max(per_band, 3) if slim else min(110.0, max(56.0, 790.0 / per_band))
    longest = max(len(_label(v)) for v in variables)
    if 6.4 * longest < pitch:
        return _Columns(per_band, pitch, False, 20.0, slim)
    return _Columns(per_band, pitch, True, 18.0 + 4.4 * longest, slim)


# Drawing it ----------------------------------------------------------------------------------------------


def _draw_header(
    canvas: Canvas, summary: SearchSummary, scale: _Scale, columns: _Columns, skips: str
) -> float:
    """Title, scale and legend, which goes on below where there is no room; returns where they end."""
    x, y = (14.0, 14.0) if columns.slim else (20.0, 54.0)
    if not columns.slim:
        title = f"{shortened(summary['study'], 40)}: widths before and after"
        canvas.text(20, 32, title, 18, font_weight="bold")
    canvas.text(x, y, scale.says(), 10.5 if columns.slim else 12, fill=GREY)
    y += 16
    canvas.text(x, y + 11, "prune ratio", 11)
    steps = 50
    for k in range(steps):
        canvas.add("rect", x=x + 66 + 3 * k, y=y, width=3.5, height=14, fill=colour_of(k / (steps - 1)))
    for share in (0, 0.5, 1):
        canvas.text(x + 66 + 150 * share, y + 26, f"{share:g}", 10, text_anchor="middle", fill=GREY)
    x, y = (x, y + 36) if columns.slim else (x + 250, y)
    canvas.add("rect", x=x, y=y, width=14, height=14, fill="none", stroke=GREY, stroke_dasharray="3 2")
    canvas.text(x + 20, y + 11, "uniform width")
    x += 110
    if scale.common:
        variable, largest = next(iter(scale.largest.items()))
        units = _round_number(largest * 34 / _TALLEST)
        height = max(scale(variable, units), 0.5)
        canvas.add("rect", x=x, y=y, width=5, height=height, fill=DARK)
        canvas.text(x + 12, y + 11, counted(units, "unit"))
        x += 90
    if skips:
        canvas.add("path", d=f"M{x:g} {y + 12:g} v-8 h22", fill="none", stroke=GREY, stroke_width=1.2)
        _draw_head(canvas, x + 22, y + 4, y + 12)
        canvas.text(x + 30, y + 11, skips)
    return y + 44


def _draw_head(canvas: Canvas, x: float, top: float, bottom: float) -> None:
    """The end of a skip: down from the line at ``top`` to a point."""
    canvas.add("path", d=f"M{x:g} {top:g} V{bottom:g}", stroke=GREY, stroke_width=1.2)
    canvas.add(
        "polygon",
        points=f"{x - 3:g},{bottom - 4:g} {x + 3:g},{bottom - 4:g} {x:g},{bottom + 1:g}",
        fill=GREY,
    )


def _draw_band(
    canvas: Canvas,
    y: float,
    variables: Sequence[str],
    span: tuple[int, int],
    networks: Sequence[Network],
    scale: _Scale,
    columns: _Columns,
) -> float:
    """All networks, for the variables from ``span[0]`` to before ``span[1]``; returns where the band ends."""
    start, end = span
    shown = list(variables[start:end])
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
    canvas: Canvas,
    y: float,
    ties: Mapping[str, Tie],
    skips: Mapping[tuple[float, float], str],
    span: tuple[int, int],
    columns: _Columns,
) -> float:
    """A bracket over the columns that a tied variable spans, with a foot for each module that makes it.

    An arrow for each skip.
    """
    start, end = span
    spans = {v: (max(t.first, start), min(t.last, end - 0.5)) for v, t in ties.items()}
    spans = {v: (a, b) for v, (a, b) in spans.items() if a <= b}
    said = {v: _place_of_text(a, b, end, columns) for v, (a, b) in spans.items()}
    taken = {v: (min(a, said[v][0]), max(b, said[v][1])) for v, (a, b) in spans.items()}
    arrows = {f"{a} {b}": (a, b) for a, b in skips if a < end and b > start}  # no variable is called so
    lane_of = lanes(taken | {k: (max(a, start), min(b, end - 0.5)) for k, (a, b) in arrows.items()})
    y += _LANE * (1 + max(lane_of.values(), default=-1))
    for v, (a, b) in spans.items():
        _draw_tie(canvas, y - _LANE * (lane_of[v] + 1) + 12, v, ties[v], (a, b), said[v][0], span, columns)
    for k, (a, b) in arrows.items():
        top = y - _LANE * (lane_of[k] + 1) + 12
        left = f"M{columns.x(a - start):g} {y + 2:g} V{top:g}" if a >= start else f"M{columns.left:g} {top:g}"
        right = columns.x(b - start) if b < end else columns.x(end - start - 0.5)
        style: dict[str, float | str] = {"fill": "none", "stroke": GREY, "stroke_width": 1.2}
        canvas.add("path", title=skips[a, b], d=f"{left} H{right:g}", **style)
        if b < end:
            _draw_head(canvas, right, top, y + 2)
    return y


def _draw_tie(
    canvas: Canvas,
    top: float,
    variable: str,
    tie: Tie,
    shown: tuple[float, float],
    said: float,
    span: tuple[int, int],
    columns: _Columns,
) -> None:
    (a, b), (start, end) = shown, span
    left = columns.x(a - start) if tie.first >= start else columns.left
    right = columns.x(b - start) + (columns.pitch / 2 if tie.last > end else 0)
    canvas.add(
        "path",
        title=f"{variable}: made by {', '.join(tie.modules)}",
        d=f"M{left:g} {top:g} H{right:g}",
        fill="none",
        stroke=BLUE,
        stroke_width=1.5,
    )
    for place in tie.places:
        if start <= place < end:
            canvas.add("path", d=f"M{columns.x(place - start):g} {top:g} v6", stroke=BLUE, stroke_width=1.5)
    canvas.text(columns.x(said - start) + 4, top - 4, f"made by {len(tie.modules)} modules", 9.5, fill=BLUE)


def _place_of_text(a: float, b: float, end: int, columns: _Columns) -> tuple[float, float]:
    """From which column to which the text over a bracket goes: from its left end, or to the page's right."""
    length = 96 / columns.pitch
    start = min(a, end - 0.5 + (12 if columns.slim else 36) / columns.pitch - length)
    return start, start + length


def _draw_row(
    canvas: Canvas,
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
    heights = [scale(v, network.widths[v]) for v in variables if v in network.widths]
    outlines = [scale(v, network.outlines[v]) for v in variables if v in network.outlines]
    tall = max([*heights, *outlines], default=0.0)
    lines = [] if before else network.lines  # of the whole network: said once
    numbers = 46 if network.below else 32  # above and below the blocks
    if columns.slim:
        lines = [", ".join(lines[k : k + 2]) for k in range(0, len(lines), 2)]
    beside = _LINE * (1 + len(lines))
    height = tall + numbers if columns.slim else max(tall + numbers, beside + 16)
    y += beside if columns.slim else 0
    middle = y + 22 + (height - numbers) / 2
    x, top = (14.0, y - beside + 11) if columns.slim else (20.0, middle - beside / 2 + 11)
    canvas.text(x, top, network.name, 13, font_weight="bold")
    for k, line in enumerate(lines):
        canvas.text(x, top + _LINE * (k + 1), line, 10 if columns.slim else 10.5, fill=GREY)
    if not known:
        return y + (0 if columns.slim else height)
    half, block = [h / 2 for h in heights], columns.block
    edges = [columns.x(k) for k in range(len(known))]
    _draw_way(canvas, columns.left - (6 if before else 0), edges[0] - block / 2, middle, before)
    for k in range(len(known) - 1):
        a, b = edges[k] + block / 2, edges[k + 1] - block / 2
        corners = (
            (a, middle - half[k]),
            (b, middle - half[k + 1]),
            (b, middle + half[k + 1]),
            (a, middle + half[k]),
        )
        canvas.add("polygon", points=" ".join(f"{p:g},{q:g}" for p, q in corners), fill=LIGHT)
    _draw_way(canvas, edges[-1] + block / 2, edges[-1] + columns.pitch / 2 + 10, middle, after)
    for v, x, h in zip(variables, edges, half, strict=True):
        outline = scale(v, network.outlines[v]) / 2 if v in network.outlines else 0.0
        _draw_block(canvas, v, x, middle, (h, outline), network, block)
    return y + height


def _draw_way(canvas: Canvas, left: float, right: float, y: float, dashed: bool) -> None:
    """Where the data comes in or goes out; dashed where that is the next or the last band."""
    dashes = {"stroke_dasharray": "2 3"} if dashed else {}
    canvas.add("path", d=f"M{left:g} {y:g} H{right:g}", stroke=GREY, stroke_width=1.2, **dashes)


def _draw_block(
    canvas: Canvas,
    variable: str,
    x: float,
    middle: float,
    halves: tuple[float, float],
    network: Network,
    block: float,
) -> None:
    """A block with its numbers above and below; ``halves``: of its height, and of the outline's around it."""
    half, outline = halves
    fill = network.colours.get(variable, _FILL.get(network.name, LIGHT))
    place: dict[str, float | str] = {"x": x - block / 2, "width": block, "stroke_width": 0.8}
    own: dict[str, float | str] = {"class": network.name, "y": middle - half, "height": 2 * half}
    canvas.add("rect", **own, **place, fill=fill, stroke=DARK, title=network.tooltips[variable])
    if outline:
        own = {"class": "outline", "y": middle - outline, "height": 2 * outline}
        canvas.add("rect", **own, **place, fill="none", stroke=GREY, stroke_dasharray="3 2")
    # Between block and outline where there is room for a line, else outside of both.
    at = half if outline - half > _LINE + 1 else max(half, outline)
    number = str(network.widths[variable])
    canvas.text(x, middle - at - 4, number, 11, text_anchor="middle", font_weight="bold")
    if variable in network.below:
        canvas.text(x, middle + at + 12, network.below[variable], 10, text_anchor="middle", fill=GREY)


# Text ----------------------------------------------------------------------------------------------------


def _label(variable: str) -> str:
    return shortened(variable, 24)


def _round_number(x: float) -> int:
    """The largest of 1, 2, 5, 10, 20, ... that is at most ``x``; 1 below that."""
    if x < 1:
        return 1
    power = int(10 ** int(log10(x)))
    return max(m * power for m in (1, 2, 5) if m * power <= x)

"""Writing an SVG to a file, as it is or as PNG.  PNG needs resvg: ``widthsearch[plots]``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from widthsearch.errors import UsageError
from widthsearch.show.canvas import FONTS
from widthsearch.show.style import write_file

_ZOOM = 2.0  # pixels of a PNG per unit of the SVG: sharp on today's screens


def check(file: str) -> None:
    """:class:`UsageError` unless it is the name of an .svg or .png file, and what PNG needs is there."""
    if Path(file).suffix not in (".svg", ".png"):
        raise UsageError(f"-o {file!r}: give the name of an .svg or .png file")
    if Path(file).suffix == ".png" and find_spec("resvg_py") is None:
        raise UsageError(
            f"-o {file!r}: PNG needs resvg-py: pip install 'widthsearch[plots]'; .svg needs nothing"
        )


def write(svg: str, file: str) -> None:
    """Write a picture; :class:`UsageError` where that cannot be."""
    check(file)
    write_file(png_of(svg) if Path(file).suffix == ".png" else svg.encode(), file)


def png_of(svg: str) -> bytes:
    """The picture as PNG.  :class:`UsageError` on a machine without fonts: its text would be missing."""
    from resvg_py import svg_to_bytes

    probe = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">{}</svg>'
    letter = f'<text y="15" font-family="{FONTS}">M</text>'
    if svg_to_bytes(svg_string=probe.format(letter)) == svg_to_bytes(svg_string=probe.format("")):
        raise UsageError(
            "PNG needs a font on this machine, e.g. DejaVu Sans (Debian: fonts-dejavu-core); .svg needs none"
        )
    data: bytes = svg_to_bytes(svg_string=svg, zoom=_ZOOM)
    return data

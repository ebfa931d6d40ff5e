"""An SVG, element by element."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

FONTS = "Helvetica, Arial, Liberation Sans, DejaVu Sans, Noto Sans, sans-serif"
GREY, DARK, LIGHT = "#767676", "#222222", "#E3E3E3"

#: Characters that XML has no place for: control characters, halves of pairs, two that are none.
_NOT_IN_XML = dict.fromkeys(
    {*range(0x20), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF} - {ord("\t"), ord("\n")},
    "\N{REPLACEMENT CHARACTER}",
)


class Canvas:
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
        style = {"x": x, "y": y, "font_size": size, "fill": DARK, **halo, **attributes}
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


def _text(content: float | str) -> str:
    """A number or text as XML holds it."""
    return content.translate(_NOT_IN_XML) if isinstance(content, str) else f"{content:g}"

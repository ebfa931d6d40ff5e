"""Pages for the terminal as HTML and as Markdown: the same tables, lines and bars show the same facts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


def html_of(parts: Iterable[RenderableType]) -> str:
    """Lines as paragraphs, tables as tables."""
    return "\n".join(_part(part) for part in parts if part != "")


def markdown_of(parts: Iterable[RenderableType]) -> str:
    """The same as Markdown; colours are lost."""
    blocks = []
    for part in parts:
        if isinstance(part, Table):
            rows = [[_plain(c.header) for c in part.columns]]
            rows += [
                [_plain(cell) for cell in row] for row in zip(*(c.cells for c in part.columns), strict=True)
            ]
            rows.insert(1, ["--:" if c.justify == "right" else "---" for c in part.columns])
            blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        elif part != "":
            blocks.append(_plain(part))
    return "\n\n".join(blocks)


def _plain(content: RenderableType) -> str:
    """A text without its styles, in which Markdown has no meaning."""
    plain = (Text.from_markup(content) if isinstance(content, str) else content).plain  # type: ignore[union-attr]
    return re.sub(r"([\\`*_<|\[\]])", r"\\\1", " ".join(plain.splitlines()))


def _part(part: RenderableType) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, str | Text):
        return f"<p>{_text(part)}</p>"
    raise TypeError(f"no HTML for {type(part).__name__}")


def _table(table: Table) -> str:
    sides = [f' class="{column.justify}"' if column.justify != "left" else "" for column in table.columns]
    head = "".join(f"<th{s}>{_text(c.header)}</th>" for s, c in zip(sides, table.columns, strict=True))
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "\n".join(
        "<tr>" + "".join(f"<td{s}>{_text(cell)}</td>" for s, cell in zip(sides, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _text(content: RenderableType) -> str:
    """A text of one line; its styles (names such as ``bold`` or ``cyan``) become classes."""
    text = Text.from_markup(content) if isinstance(content, str) else content
    if not isinstance(text, Text):
        raise TypeError(f"no HTML for {type(text).__name__}")
    if isinstance(text.style, str) and text.style:
        return f'<span class="{escape(text.style)}">{escape(text.plain)}</span>'
    parts, end = [], 0
    for span in text.spans:  # ours follow one another and do not overlap
        parts.append(escape(text.plain[end : span.start]))
        parts.append(
            f'<span class="{escape(str(span.style))}">{escape(text.plain[span.start : span.end])}</span>'
        )
        end = span.end
    return "".join(parts) + escape(text.plain[end:])

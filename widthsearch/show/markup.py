"""Pages for the terminal as HTML and as Markdown: the same tables and lines show the same facts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from widthsearch.show.console import Bar, Name


def html_of(parts: Iterable[RenderableType]) -> str:
    """Lines as paragraphs, tables as tables."""
    return "\n".join(_part(part) for part in parts if part != "")


def markdown_of(parts: Iterable[RenderableType]) -> str:
    """The same as Markdown: without bars and colours."""
    blocks: list[str] = []
    for part in parts:
        if isinstance(part, Table):
            columns = [c for c in part.columns if not any(isinstance(cell, Bar) for cell in c.cells)]
            rows = [[_plain(c.header) for c in columns]]
            rows += [[_plain(cell) for cell in row] for row in zip(*(c.cells for c in columns), strict=True)]
            rows.insert(1, ["--:" if c.justify == "right" else "---" for c in columns])
            blocks += ["---"] if blocks and blocks[-1].startswith("|") else []  # between two tables
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
    """With its columns that a narrow terminal goes without marked, for narrow screens."""
    spare = getattr(table, "spare", ())
    kinds = [
        " ".join(
            [*([c.justify] if c.justify != "left" else []), *(["spare"] if _plain(c.header) in spare else [])]
        )
        for c in table.columns
    ]
    head = "".join(_cell("th", kind, c.header) for kind, c in zip(kinds, table.columns, strict=True))
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "\n".join(
        f"<tr>{''.join(_cell('td', kind, cell) for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


#: How sure a figure is, at the end of a cell.  On a phone it stands below; an interval may be broken there.
_SPREADS = {
    "se": re.compile(r" ± [\d.e%-]+(?=(</span>)?$)"),
    "se between": re.compile(r" \([-+\d.e%]+ to [-+\d.e%]+\)( \*)?(?=\s*(</span>)?$)"),
}


def _cell(tag: str, kind: str, content: RenderableType) -> str:
    inside = _text(content)
    for name, spread in _SPREADS.items():
        inside = spread.sub(rf'<span class="{name}">\g<0></span>', inside)
    if isinstance(content, Bar):
        inside = f'<span class="bar {content.style}"><i style="width:{content.share:.1%}"></i></span>'
    elif isinstance(content, Name):
        kind = f"{kind} name".strip()
    return f'<{tag} class="{kind}">{inside}</{tag}>' if kind else f"<{tag}>{inside}</{tag}>"


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

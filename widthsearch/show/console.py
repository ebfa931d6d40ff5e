"""Where things are printed, and how: the two consoles, a line of text, a table."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Container, Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.containers import Lines
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from widthsearch.errors import UsageError, describe_error

for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed before we were started: `>&-`
        setattr(sys, _name, Path(os.devnull).open("w"))  # noqa: SIM115

#: What could command a terminal or turn its text around: control characters but tab and new line.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_FLEXIBLE = 24  # characters that a column of text needs, to be read at all


def harmless(text: str) -> str:
    """With a replacement character for everything that could command a terminal."""
    return _COMMANDS.sub("\N{REPLACEMENT CHARACTER}", text)


class SafeConsole(Console):
    """A console on which no text commands the terminal: names and errors come from databases."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """With a replacement character for every control character that is not Rich's own."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))

    def print(self, *objects: Any, **options: Any) -> None:
        """As Rich's; :class:`UsageError` on a full disk (a pipe that was closed ends the process)."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            raise UsageError(f"nothing can be printed any more ({describe_error(error)})") from error


# Tables in a log file or pipe need not be squeezed into 80 columns.
out: Console = SafeConsole(width=None if sys.stdout.isatty() else 120)
err: Console = SafeConsole(stderr=True)


def say(text: str, console: Console = out, *, style: str | None = None) -> None:
    """Print a text as it is: nothing in it is markup, and no line is wrapped, so that it can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class _Jointed(Text):
    """A text that is broken at its joints where it is too long; a part that is too long itself is folded."""

    joints: ClassVar[re.Pattern[str]]  # each match ends where a line may end

    def _ends(self) -> list[int]:
        return [*(m.end() for m in self.joints.finditer(self.plain)), len(self.plain)]

    def wrap(self, console: Console, width: int, *args: Any, **options: Any) -> Lines:
        """The lines, none wider than ``width``."""
        text = self.plain
        if options.get("no_wrap") or "\n" in text or cell_len(text) != len(text):
            return super().wrap(console, width, *args, **options)
        lines, start, ends = Lines(), 0, self._ends()
        while len(text.rstrip()) - start > width:
            fitting = (e for e in ends if e > start and len(text[start:e].rstrip()) <= width)
            end = max(fitting, default=start + max(1, width))
            lines.append(self[start:end])
            lines[-1].rstrip()
            start = end
        lines.append(self[start:])
        return lines


class Line(_Jointed):
    """A line that is wrapped at words on a terminal alone: in a log it stays in one piece, to be searched.

    A number stays with its error and with its per cent.
    """

    joints = re.compile(r" (?<!± )(?<!\d (?=%))(?!±)")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        """As a text."""
        whole = options.update(no_wrap=True, overflow="ignore")
        yield from super().__rich_console__(console, options if console.is_terminal else whole)


class Name(_Jointed):
    """Widths or a dotted name in a column: what is too long goes on below, after ``-``, ``.`` or ``/``."""

    joints = re.compile(r"[-./_ ](?=[^-./_ ])")

    def __init__(self, text: str, style: str = "") -> None:
        super().__init__(" ".join(text.split()), style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """From its longest part to all of it."""
        longest = max(cell_len(self.plain[a:b]) for a, b in pairwise([0, *self._ends()]))
        return Measurement(longest, cell_len(self.plain))


class Bar(Text):
    """A bar of up to ``cells`` characters, in eighths of one; ``share``: how much of it is filled."""

    def __init__(self, share: float, cells: int, colour: str) -> None:
        self.share = min(max(share, 0.0), 1.0)
        # What is above 0 shows at least an eighth.
        full, rest = divmod(max(round(8 * cells * self.share), int(share > 0)), 8)
        text = "█" * full + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]
        super().__init__(text.ljust(cells), colour)


class _Table(Table):
    """A table that leaves out columns where there is no room for all; without them it becomes a list."""

    spare: Sequence[str] = ()

    def add_row(self, *cells: str | Text, **options: Any) -> None:  # type: ignore[override]
        """A row of texts as they are: nothing in them is markup."""
        texts = [Text(cell) if isinstance(cell, str) else cell for cell in cells]
        for text in texts:
            text.plain = harmless(text.plain)  # before its width is measured
        super().add_row(*texts, **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """With as many columns as there is room for."""
        shown = copy(self)
        for header in (None, *self.spare):
            kept = [c for c in shown.columns if _plain(c.header) != header]
            shown.columns = [replace(c, _index=i) for i, c in enumerate(kept)]
            if shown._needed(console, options) <= options.max_width:
                return Table.__rich_console__(shown, console, options)
        return self._listed()

    def _needed(self, console: Console, options: ConsoleOptions) -> int:
        endless = options.update(max_width=100_000)
        widths = ((self._measure_column(console, endless, c).maximum, c.no_wrap) for c in self.columns)
        return sum(width if whole else min(width, _FLEXIBLE) for width, whole in widths)

    def _listed(self) -> RenderResult:
        """A line per cell, for very narrow terminals."""
        for cells in zip(*(c.cells for c in self.columns), strict=True):
            for column, cell in zip(self.columns, cells, strict=True):
                if _plain(cell).strip() and not isinstance(cell, Bar):
                    header = _plain(column.header)
                    yield Text.assemble((f"{header}: " if header else "", "bold"), _plain(cell))
            yield ""


def table(*headers: str, left: Container[int] = (0,), spare: Sequence[str] = ()) -> Table:
    """An empty table without lines.

    ``left``: the numbers of the columns that hold text, which goes on below where it is too long; the others
    hold numbers, which are never split.  ``spare``: the headers of columns that are left out where there is
    no room, the first ones first.
    """
    found = _Table(box=None, pad_edge=False, header_style="bold")
    found.spare = spare
    for i, header in enumerate(headers):
        text = i in left
        side = "left" if text or not header else "right"
        found.add_column(Text(header), justify=side, overflow="fold", no_wrap=not text)  # type: ignore[arg-type]
    return found


def _plain(content: RenderableType) -> str:
    return content.plain if isinstance(content, Text) else str(content)

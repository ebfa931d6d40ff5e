"""Where things are printed, and how: the two consoles, a line of text, a table."""

from __future__ import annotations

import os
import sys
from collections.abc import Container
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed before we were started: `>&-`
        setattr(sys, _name, Path(os.devnull).open("w"))  # noqa: SIM115

# Tables in a log file or pipe need not be squeezed into 80 columns.
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)


def say(text: str, console: Console = out, *, style: str | None = None) -> None:
    """Print a text as it is: nothing in it is markup, and no line is wrapped, so that it can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def table(*headers: str, left: Container[int] = (0,)) -> Table:
    """An empty table without lines; ``left``: the numbers of the columns that hold text and not numbers.

    What is too long for its column goes on below.
    """
    found = Table(box=None, pad_edge=False, header_style="bold")
    for i, header in enumerate(headers):
        found.add_column(Text(header), justify="left" if i in left else "right", overflow="fold")
    return found

"""The command line.  Heavy imports (torch, Ray) happen inside the commands, so that `show` starts fast."""

from __future__ import annotations

import os
import sys

from widthsearch.cli import (
    bench,
    drawing,
    exporting,
    pages,
    probing,
    pruning,
    searching,
    viewing,
)  # their commands
from widthsearch.cli.options import app
from widthsearch.driver.backend import collect_seldom
from widthsearch.stopping import INTERRUPTED, leave_on_signals

__all__ = [
    "app",
    "bench",
    "drawing",
    "exporting",
    "main",
    "pages",
    "probing",
    "pruning",
    "searching",
    "viewing",
]

#: The commands as `--help` shows them: what one needs first comes first.
PANELS = {
    "Search": ("launch", "show", "resume", "list", "widths"),
    "Look at it, take it with you": ("report", "draw", "dashboard", "export"),
    "Ask more": ("compare", "probe", "pruners", "bench"),
}
_ORDER = [name for names in PANELS.values() for name in names]
for _command in app.registered_commands:
    _command.name = _command.name or getattr(_command.callback, "__name__", "")
    _command.rich_help_panel = next(panel for panel, names in PANELS.items() if _command.name in names)
app.registered_commands.sort(key=lambda command: _ORDER.index(str(command.name)))


def main() -> None:
    """Entry point of the ``widthsearch`` command."""
    collect_seldom()
    leave_on_signals()
    try:
        app()
    except SystemExit as end:
        if isinstance(end.code, int) and (end.code == INTERRUPTED or "ray" in sys.modules):
            # At once: what a signal left half started of Ray could keep this process from ending, and
            # another signal would find it without handlers.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise

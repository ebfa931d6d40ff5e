"""The command line.  Heavy imports (torch, Ray) happen inside the commands, so that `show` starts fast."""

from __future__ import annotations

import io
import os
import platform
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from widthsearch.cli import look, manage, questions, search, take
from widthsearch.cli.new import new
from widthsearch.cli.options import one_line_errors
from widthsearch.driver.backend import collect_seldom
from widthsearch.stopping import INTERRUPTED, leave_on_signals

__all__ = ["app", "main"]

app = typer.Typer(
    help="How wide should each layer be?  Launch a study, inspect the recommended widths, resume a search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

#: The commands as `--help` shows them: what one needs first comes first.
PANELS = {
    "Search": (new, search.launch, look.show, search.resume, look.list_, look.widths),
    "Look at it, take it with you": (look.report, look.draw, look.serve, look.dashboard, take.export),
    "Ask more": (questions.compare, questions.probe, questions.pruners, take.bench),
    "Keep order": (manage.rename, manage.delete),
}
for _panel, _commands in PANELS.items():
    for _command in _commands:
        _name = _command.__name__.removesuffix("_")
        app.command(name=_name, rich_help_panel=_panel)(one_line_errors(_command))


def _say_version(asked: bool) -> None:
    """What a bug report needs: read from the metadata, so nothing heavy is imported."""
    if asked:
        others = ", ".join(f"{name} {version(name)}" for name in ("torch", "optuna", "ray", "sqlalchemy"))
        typer.echo(f"widthsearch {version('widthsearch')} ({others}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _application(
    _: Annotated[
        bool,
        typer.Option("--version", help="Show the versions and exit.", callback=_say_version, is_eager=True),
    ] = False,
) -> None:
    """The options of ``widthsearch`` itself."""


def main() -> None:
    """Entry point of the ``widthsearch`` command."""
    collect_seldom()
    leave_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what it cannot hold is shown by its number
            stream.reconfigure(errors="backslashreplace")
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

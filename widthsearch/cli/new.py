"""Beginning a study: a file to start from."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import typer

from widthsearch.errors import UsageError
from widthsearch.show.console import say

Kind = Literal["classification", "regression", "language", "own-loop"]


def new(
    file: Annotated[str, typer.Argument(metavar="MY_STUDY.py", help="The file to write.")],
    kind: Annotated[Kind, typer.Option(help="What is trained, or own-loop: by a loop of your own.")] = (
        "classification"
    ),
) -> None:
    """Write a study file to start from: with comments, and data that it makes itself, so it runs as it is."""
    path = Path(file)
    if path.suffix != ".py":
        raise UsageError(f"{file!r:.100}: a study is a Python file: give a name that ends in .py")
    template = files("widthsearch.cli").joinpath("templates", f"{kind.replace('-', '_')}.py")
    text = template.read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as made:
            made.write(text)
    except FileExistsError:
        raise UsageError(f"{file!r:.100} exists already: give another name") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file!r:.100} cannot be written: {error}") from None
    say(f"{file} is written: put your network and data into it, or try it as it is:")
    for verb in ("widths", "launch"):
        say(f"  {shlex.join(['widthsearch', verb, file])}")

"""The application, the options that commands share, and how errors end a command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from widthsearch.driver.backend import err
from widthsearch.errors import UsageError
from widthsearch.stopping import INTERRUPTED

app = typer.Typer(
    help="How wide should each layer be?  Launch a study, inspect the recommended widths, resume a search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
WRONG_USE = 2  # exit code

StudyFile = Annotated[str, typer.Argument(metavar="STUDY.py[:name]", help="The study file.")]
Name = Annotated[str | None, typer.Argument(help="Name of the study; default: the latest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Optuna database URL; default: WIDTHSEARCH_STORAGE, else sqlite:///widthsearch.db.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Trainings at a time; default: one per core.  0: in this process, without Ray (for debugging).",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster: auto, host:port or ray://host:10001; default: a local Ray."),
]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        help="Folder or fsspec URL that all workers share; default: WIDTHSEARCH_CHECKPOINTS, else beside the "
        "SQLite file.",
        show_default=False,
    ),
]
Submit = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Run the whole search as a Ray job there, e.g. http://head:8265, and follow it."
    ),
]
Plot = Annotated[
    str | None,
    typer.Option(
        help="Draw into this .html file: of a comparison loss against search cost, of a family loss against "
        "MACs and parameters, of a probe the way of its starts to their widths.",
        show_default=False,
    ),
]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Say on stderr what the search does; -vv: more.")
]
TensorBoard = Annotated[
    str | None,
    typer.Option("--tensorboard", metavar="DIR", help="Write scalars for TensorBoard into DIR/NAME."),
]
F = TypeVar("F", bound=Callable[..., None])


def _say_version(asked: bool) -> None:
    """What a bug report needs: read from the metadata, so nothing heavy is imported."""
    if asked:
        import platform
        from importlib.metadata import version

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


def parts(option: str) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part.strip() for part in option.split(","))


def one_line_errors(command: F) -> F:
    """A :class:`UsageError` becomes one line on stderr and exit code 2; Ctrl-C exit code 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UsageError as error:
            message = " ".join(str(error).split())
            err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(WRONG_USE) from None
        except KeyboardInterrupt:
            err.print("interrupted before a training was started")
            raise typer.Exit(INTERRUPTED) from None

    return wrapper  # type: ignore[return-value]

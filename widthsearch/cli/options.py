"""The options that commands share, and what stands around every command: errors in one line."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from widthsearch.driver.backend import session_of
from widthsearch.errors import UsageError
from widthsearch.plans.settings import HELP, OPTIONS, Settings
from widthsearch.show.console import err, out, say
from widthsearch.stopping import INTERRUPTED

if TYPE_CHECKING:
    from rich.console import Console

    from widthsearch.driver.run import Session

WRONG_USE = 2  # exit code

StudyFile = Annotated[str, typer.Argument(metavar="STUDY.py[:name]", help="The study file.")]
Name = Annotated[str | None, typer.Argument(help="Name of the study; default: the latest.")]
NewName = Annotated[
    str | None, typer.Option("--name", help="Its name; default: the file's, and what is asked of it.")
]
Moved = Annotated[str | None, typer.Option("--study", help="The study file, if it was moved.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Optuna database URL; default: WIDTHSEARCH_STORAGE, else sqlite:///widthsearch.db.",
        show_default=False,
    ),
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
TensorBoard = Annotated[
    str | None,
    typer.Option("--tensorboard", metavar="DIR", help="Write scalars for TensorBoard into DIR/NAME."),
]
Budgets = Annotated[
    str | None,
    typer.Option(
        help="Several budgets, shares of the model's cost: 1/16,1/8,1/4,1/2.  (launch: a family, one study "
        "for each.)",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Where:
    """Where a search is kept and where its trainings run: options of every command that trains."""

    storage: Storage = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Trainings at a time; default: one per core.  0: in this process, without Ray (for "
            "debugging).",
            show_default=False,
        ),
    ] = None
    address: Annotated[
        str | None,
        typer.Option(
            help="A running Ray cluster: auto, host:port or ray://host:10001; default: a local Ray."
        ),
    ] = None
    checkpoints: Checkpoints = None
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            help="Say on stderr what the search does; -vv: more.",
            show_default=False,
        ),
    ] = 0

    def session(
        self, console: Console = out, tensorboard: str | None = None
    ) -> AbstractContextManager[Session]:
        """What a search that is started here needs; see :func:`.driver.backend.session_of`."""
        url = url_of(self.storage)
        return session_of(
            url, self.workers, self.address, self.checkpoints, console, self.verbose, tensorboard
        )


@dataclass(frozen=True)
class Found:
    """What a command does with what it found: options of every command that asks more than one search."""

    plot: Plot = None
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False


Command = Callable[..., None]
Changes = dict[str, Any]  # settings of the study that were given on the command line


def spread(verb: str) -> Callable[[Command], Command]:
    """Spread the parameters of a command that are dataclasses over options, one for each of their fields.

    A parameter ``changes`` becomes an option for each setting of a study that the ``verb`` may change, and
    ``--set`` for all others; the command gets those that were given.
    """
    settings = OPTIONS.get(verb, ())

    def decorate(command: Command) -> Command:
        asked = inspect.signature(command, eval_str=True).parameters.values()
        groups: dict[str, Any] = {p.name: p.annotation for p in asked if is_dataclass(p.annotation)}
        own = [p for p in asked if p.name not in (*groups, "changes")]
        options = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        options += [*(_option_of(name) for name in settings), _SET] if settings else []
        options += [option for group in groups.values() for option in _fields_of(group)]

        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
            if settings:
                values = {name: given.pop(name) for name in settings}
                values = {name: value for name, value in values.items() if value is not None}
                given["changes"] = values | dict(map(setting_of, given.pop("set_") or ()))
            command(**given)

        wrapper.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]  # Typer reads it
        return wrapper

    return decorate


def _fields_of(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(group)
    ]


def _option_of(setting: str) -> inspect.Parameter:
    """An option for a setting of a study; it is checked where the study is."""
    of = type(getattr(Settings, setting))
    option = typer.Option(help=f"{HELP[setting]}  Default: the study's.", show_default=False)
    return inspect.Parameter(
        setting, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[of | None, option]
    )


_SET = inspect.Parameter(
    "set_",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other plain field of the study or its recipe, e.g. lr=0.05; repeatable.",
            show_default=False,
        ),
    ],
)


def setting_of(text: str) -> tuple[str, Any]:
    """``lr=0.05`` as a name and a value: a Python literal, else a text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--set {text!r:.60}: give a field and its value, e.g. lr=0.05")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


def url_of(option: str | None) -> str:
    """The storage of a search; says so if its password stands where others can read it."""
    from widthsearch.database.connection import hide_password, parse_url, url_from

    url = url_from(option)
    if option is not None and parse_url(url).password:
        say(
            f"note: the password of {hide_password(url)} can be read in the process list; "
            "WIDTHSEARCH_STORAGE or PGPASSFILE keep it out of there",
            style="yellow",
        )
    return url


def words_of(given: Mapping[str, Any]) -> list[str]:
    """Options as they are typed; nothing for what was not given."""
    words = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(flag)
            elif one is not None and one is not False:
                words += [flag, str(one)]
    return words


def parts(option: str) -> tuple[str, ...]:
    """The parts of a comma-separated option."""
    return tuple(part.strip() for part in option.split(","))


def one_line_errors(command: Command) -> Command:
    """A :class:`UsageError` becomes one line on stderr and exit code 2; Ctrl-C exit code 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            _run(command, *args, **kwargs)
        except UsageError as error:
            with suppress(UsageError):  # nor can this be printed
                say(f"error: {' '.join(str(error).split())}", err, style="red")
            raise typer.Exit(WRONG_USE) from None
        except KeyboardInterrupt:
            say("interrupted", err)
            raise typer.Exit(INTERRUPTED) from None

    return wrapper


def _run(command: Command, *args: Any, **kwargs: Any) -> None:
    """Call it; trouble with the database is a :class:`UsageError`, wherever it comes up."""
    try:
        command(*args, **kwargs)
    except (UsageError, typer.Exit):
        raise
    except Exception:
        from widthsearch.database.connection import using

        with using():
            raise

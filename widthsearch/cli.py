"""The command line.  Heavy imports (torch, Ray) happen inside the commands, so that `show` starts fast."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from widthsearch.errors import UsageError
from widthsearch.stopping import INTERRUPTED, interrupt, leave_on_signals, listen

if TYPE_CHECKING:
    from widthsearch.progress import Tracker
    from widthsearch.search import Backend, Ended

app = typer.Typer(
    help="How wide should each layer be?  Launch a study, inspect the recommended widths, resume a search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Tables in a log file or pipe need not be squeezed into 80 columns.
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)

WRONG_USE = 2  # exit code

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
F = TypeVar("F", bound=Callable[..., None])


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


@app.command()
@one_line_errors
def launch(
    study: Annotated[str, typer.Argument(metavar="STUDY.py[:name]", help="The study file.")],
    name: Annotated[str | None, typer.Option(help="Name of the study; default: the file's name.")] = None,
    storage: Storage = None,
    budget: Annotated[
        str | None, typer.Option(help="Budget instead of the file's, e.g. macs=0.25x,params=0.25x.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds at most.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Gated trainings per round.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Plain trainings per round.")] = None,
    workers: Workers = None,
    address: Address = None,
    checkpoints: Checkpoints = None,
    submit: Submit = None,
) -> None:
    """Start a study and run it to recommended widths."""
    from widthsearch import search
    from widthsearch.study import Budget

    given = {"rounds": rounds, "replicas": replicas, "seeds": seeds}
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    if budget is not None:
        changes["budget"] = Budget.parse(budget)
    if submit is not None:
        options = {**given, "name": name, "budget": budget, "workers": workers, "checkpoints": checkpoints}
        return _submit(submit, "launch", study, storage, address, options)
    url = _url(storage)
    with _display(workers, address) as (backend, progress):
        ended = search.launch(
            study,
            name=name,
            url=url,
            changes=changes,
            backend=backend,
            progress=progress,
            checkpoints=checkpoints,
        )
    return _finish(ended, url)


@app.command()
@one_line_errors
def resume(
    name: Annotated[str | None, typer.Argument(help="Name of the study; default: the latest.")] = None,
    storage: Storage = None,
    study: Annotated[str | None, typer.Option(help="The study file, if it was moved.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on although the study file changed.")] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Go on to so many rounds, whatever had stopped the search.")
    ] = None,
    workers: Workers = None,
    address: Address = None,
    checkpoints: Checkpoints = None,
    submit: Submit = None,
) -> None:
    """Go on with an interrupted study, or make more rounds."""
    from widthsearch import search

    if submit is not None:
        if study is None or name is None:
            raise UsageError(
                "--submit needs the study and where its file is here: resume NAME --study FILE.py"
            )
        options = {"rounds": rounds, "workers": workers, "checkpoints": checkpoints, "force": force or None}
        return _submit(submit, "resume", study, storage, address, options, name)
    url = _url(storage)
    with _display(workers, address) as (backend, progress):
        ended = search.resume(
            name,
            url=url,
            file=study,
            force=force,
            backend=backend,
            progress=progress,
            rounds=rounds,
            checkpoints=checkpoints,
        )
    return _finish(ended, url)


@app.command()
@one_line_errors
def show(
    name: Annotated[str | None, typer.Argument(help="Name of the study; default: the latest.")] = None,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the recommended widths, while the search runs or after."""
    from widthsearch.database import open_storage, url_from
    from widthsearch.report import summarise
    from widthsearch.storage import load

    url = url_from(storage)
    summary = summarise(load(name, open_storage(url, create=False), url), url)
    if as_json:
        print(json.dumps(_finite(summary), indent=2, allow_nan=False))
    else:
        _print_summary(summary, url)


@app.command(name="list")
@one_line_errors
def list_(storage: Storage = None) -> None:
    """List the studies of a database."""
    from widthsearch.database import open_storage, url_from
    from widthsearch.report import summarise
    from widthsearch.storage import load, study_names
    from widthsearch.tables import show_list

    url = url_from(storage)
    opened = open_storage(url, create=False)
    show_list(out, [summarise(load(name, opened, url), url) for name in study_names(opened)])


@app.command()
@one_line_errors
def widths(
    study: Annotated[str | None, typer.Argument(metavar="STUDY.py[:name]", help="The study file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A network without a study: package.module:function or file.py:function."),
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="Its input's shape, 1,3,224,224 or 1,16:int; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which widths of a network can be searched, without training anything."""
    from widthsearch import inspection
    from widthsearch.study import load_study
    from widthsearch.tables import show_widths

    if (study is None) == (model is None):
        raise UsageError("give a study file, or --model module:function with --input 1,3,224,224")
    if (model is None) != (not input_):
        raise UsageError("--model and --input go together: --model module:function --input 1,3,224,224")
    if study is not None:
        found = inspection.widths_of_study(load_study(study)[0])
    else:
        found = inspection.widths_of_model(str(model), input_ or [])
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_widths(out, found)


def _url(option: str | None) -> str:
    """The storage of a search; says so if its password stands where others can read it."""
    from widthsearch.database import hide_password, parse_url, url_from

    url = url_from(option)
    if option is not None and parse_url(url).password:
        out.print(
            f"note: the password of {hide_password(url)} can be read in the process list; "
            "WIDTHSEARCH_STORAGE or PGPASSFILE keep it out of there",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return url


class _Warnings(logging.Handler):
    """What the package logs while a search runs (waiting for a database) goes through its display."""

    def __init__(self, progress: Tracker) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.say(record.getMessage())


@contextmanager
def _display(workers: int | None, address: str | None) -> Iterator[tuple[Backend, Tracker]]:
    """The backend and the progress display of a search; leaves the terminal clean at its end."""
    from widthsearch.progress import LiveTracker, Tracker

    if workers is None and address is None:
        workers = len(os.sched_getaffinity(0))
    progress = (LiveTracker if out.is_terminal else Tracker)(out, workers or 1)
    handler = _Warnings(progress)
    logging.getLogger("widthsearch").addHandler(handler)
    try:
        yield _backend(workers, address), progress
    finally:
        logging.getLogger("widthsearch").removeHandler(handler)
        progress.end()


def _submit(
    server: str,
    verb: str,
    study: str,
    storage: str | None,
    address: str | None,
    options: Mapping[str, Any],
    *arguments: str,
) -> None:
    """Run ``widthsearch VERB ...`` as a Ray job, and show what it prints."""
    from widthsearch import jobs
    from widthsearch.cluster import prepare_environment, python_files
    from widthsearch.study import load_study

    jobs.check_server(server)
    jobs.check_storage(storage)
    _, path, attribute = load_study(study)
    file = f"{path.name}:{attribute}"
    command = ["widthsearch", verb, *([file] if verb == "launch" else [*arguments, "--study", file])]
    for option, value in {**options, "storage": storage, "address": address or "auto"}.items():
        if value is not None:
            command += [f"--{option}"] if value is True else [f"--{option}", str(value)]
    prepare_environment(server)
    job = jobs.Job(server, command, python_files(path))
    out.print(f"job {job.id}\n{job.commands()}", markup=False, highlight=False, soft_wrap=True)
    listen(interrupt)  # from here on there is something to tell when a signal comes
    try:
        status = job.follow(lambda text: print(text, flush=True))
    except KeyboardInterrupt:
        message = f"no longer followed; the job goes on\n{job.commands()}"
        err.print(message, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    if status != "SUCCEEDED":
        raise UsageError(f"job {job.id} ended as {status}; its last lines above say why")


def _backend(workers: int | None, address: str | None) -> Backend:
    if workers == 0:
        from widthsearch.search import run_in_process

        return run_in_process
    from widthsearch.cluster import check_address, check_admission, prepare_environment

    if address is not None:
        check_address(address)
    prepare_environment(address)
    from widthsearch.workers import run_on_ray  # only now: Ray reads its environment when it is imported

    if address is not None:
        check_admission(address)
    return functools.partial(run_on_ray, workers=workers, address=address)


def _finish(ended: Ended, url: str) -> None:
    from widthsearch.database import open_storage
    from widthsearch.report import summarise
    from widthsearch.storage import load

    if ended.status == "interrupted":
        err.print(
            f"interrupted; nothing is lost.  Go on with: {_command('resume', ended.name, url)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED)
    if ended.status == "failed":
        raise UsageError(f"study {ended.name!r} cannot go on: {ended.because}")
    _print_summary(summarise(load(ended.name, open_storage(url, create=False, patient=True), url), url), url)


def _finite(value: Any) -> Any:
    """With null for the numbers that JSON does not have: a metric of the user's may be anything."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _print_summary(summary: dict[str, Any], url: str) -> None:
    from widthsearch.tables import show_summary

    show_summary(out, summary)
    if summary["status"] == "interrupted":
        line = f"go on with: {_command('resume', summary['study'], url)}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _command(verb: str, name: str, url: str) -> str:
    from widthsearch.database import hide_password, url_from

    where = "" if url == url_from(None) else f" --storage {shlex.quote(hide_password(url))}"
    return f"widthsearch {verb} {shlex.quote(name)}{where}"


def main() -> None:
    """Entry point of the ``widthsearch`` command."""
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


if __name__ == "__main__":
    main()

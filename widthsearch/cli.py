"""The command line.  Heavy imports (torch, Ray) happen inside the commands, so that `show` starts fast."""

from __future__ import annotations

import functools
import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from widthsearch.console import display, err, out, submit_job
from widthsearch.errors import UsageError
from widthsearch.stopping import INTERRUPTED, leave_on_signals

if TYPE_CHECKING:
    import optuna

    from widthsearch.search import Ended

app = typer.Typer(
    help="How wide should each layer be?  Launch a study, inspect the recommended widths, resume a search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
Plot = Annotated[
    str | None,
    typer.Option(
        help="Of a comparison: draw loss against search cost into this .html file.", show_default=False
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
        return submit_job(submit, "launch", study, storage, address, options)
    url = _url(storage)
    with display(workers, address) as (backend, progress):
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
def compare(
    study: Annotated[str, typer.Argument(metavar="STUDY.py[:name]", help="The study file.")],
    arms: Annotated[
        str | None,
        typer.Option(
            help="What to compare, comma-separated; tpe*10: at ten times the search cost.  Default: "
            "grow-shrink, uniform, constant, equal-ratio, one-shot, random, tpe, gp.",
            show_default=False,
        ),
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Search cost of each arm, in uniform trainings; default: that of the width search's rounds.",
            show_default=False,
        ),
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Several budgets, shares of the model's cost: 1/16,1/8,1/4,1/2.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each search is made.")] = 1,
    report_seeds: Annotated[
        int | None, typer.Option(min=2, help="Fresh seeds for what the arms recommend; default: the study's.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the comparison; default: the file's name and -compare.")
    ] = None,
    storage: Storage = None,
    plot: Plot = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    workers: Workers = None,
    address: Address = None,
    checkpoints: Checkpoints = None,
) -> None:
    """Compare the width search with what else one might do, at equal cost and on the same fresh seeds."""
    from widthsearch import search
    from widthsearch.prepare import make_comparison

    _check_plot(plot)
    options: dict[str, Any] = {"cost": cost, "repeats": repeats}
    for option, value in (("arms", arms), ("shares", budgets)):
        if value is not None:
            options[option] = tuple(part.strip() for part in value.split(","))
    url = _url(storage)
    with display(workers, address, err if as_json else out) as (backend, progress):
        ended = search.launch(
            study,
            name=name,
            url=url,
            changes={} if report_seeds is None else {"report_seeds": report_seeds},
            backend=backend,
            progress=progress,
            checkpoints=checkpoints,
            compare=functools.partial(make_comparison, **options),
        )
    return _finish(ended, url, as_json=as_json, plot=plot)


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
        return submit_job(submit, "resume", study, storage, address, options, name)
    url = _url(storage)
    with display(workers, address) as (backend, progress):
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
    plot: Plot = None,
) -> None:
    """Show the recommended widths, or what a comparison found, while the search runs or after."""
    from widthsearch.database import open_storage, url_from
    from widthsearch.storage import load

    _check_plot(plot)
    url = url_from(storage)
    _print_summary(_summary(load(name, open_storage(url, create=False), url), url), url, as_json, plot)


@app.command(name="list")
@one_line_errors
def list_(storage: Storage = None) -> None:
    """List the studies of a database."""
    from widthsearch.database import open_storage, url_from
    from widthsearch.storage import load, study_names
    from widthsearch.tables import show_list

    url = url_from(storage)
    opened = open_storage(url, create=False)
    show_list(out, [_summary(load(name, opened, url), url) for name in study_names(opened)])


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


def _finish(ended: Ended, url: str, *, as_json: bool = False, plot: str | None = None) -> None:
    from widthsearch.database import open_storage
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
    study = load(ended.name, open_storage(url, create=False, patient=True), url)
    _print_summary(_summary(study, url), url, as_json, plot)


def _check_plot(file: str | None) -> None:
    """Refuse a figure that cannot be drawn before anything is trained for it."""
    if file is not None:
        from widthsearch.plots import check

        check(file)


def _summary(study: optuna.Study, url: str) -> dict[str, Any]:
    from widthsearch.compare_report import summarise_comparison
    from widthsearch.comparison import Comparison
    from widthsearch.report import summarise
    from widthsearch.storage import plan_of

    return (summarise_comparison if isinstance(plan_of(study), Comparison) else summarise)(study, url)


def _finite(value: Any) -> Any:
    """With null for the numbers that JSON does not have: a metric of the user's may be anything."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _print_summary(summary: dict[str, Any], url: str, as_json: bool = False, plot: str | None = None) -> None:
    from widthsearch.tables import show_comparison, show_summary

    if plot is not None:
        from widthsearch.plots import write_comparison

        write_comparison(summary, plot)
    if as_json:
        print(json.dumps(_finite(summary), indent=2, allow_nan=False))
        return
    (show_comparison if "comparison" in summary else show_summary)(out, summary)
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

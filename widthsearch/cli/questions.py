"""Commands that ask more than one search of a study: compare, probe, pruners."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any

import typer

from widthsearch.cli.options import (
    Budgets,
    Changes,
    Found,
    NewName,
    StudyFile,
    Where,
    parts,
    spread,
    words_of,
)
from widthsearch.cli.search import begin, finish
from widthsearch.cli.summaries import check_plot
from widthsearch.show.console import err, out

if TYPE_CHECKING:
    from rich.console import Console

    from widthsearch.driver.launch import Question
    from widthsearch.plans.plan import Plan, StudyPlan
    from widthsearch.study.study import Study


@spread("compare")
def compare(
    study: StudyFile,
    where: Where,
    found: Found,
    changes: Changes,
    arms: Annotated[
        str | None,
        typer.Option(
            help="What to compare, comma-separated; tpe*10: at ten times the search cost; grow-shrink:l1: "
            "measured by another pruner (l1, taylor).  Default: "
            "grow-shrink, uniform, constant, cost-aware, equal-ratio, global, sensitivity, one-shot, "
            "random, tpe, gp.",
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
    budgets: Budgets = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each search is made.")] = 1,
    name: NewName = None,
) -> None:
    """Compare the width search with what else one might do, at equal cost and on the same fresh seeds."""
    _begin("compare", study, where, found, name)
    from widthsearch.driver.launch import Question
    from widthsearch.driver.questions import make_comparison

    options: dict[str, Any] = {"cost": cost, "repeats": repeats}
    for option, value in (("arms", arms), ("shares", budgets)):
        if value is not None:
            options[option] = parts(value)
    given = words_of({"arms": arms, "cost": cost, "budgets": budgets, "repeats": repeats})
    make = functools.partial(make_comparison, **options)
    _ask(study, Question("compare", make, tuple(given)), where, found, changes, name)


@spread("probe")
def probe(
    study: StudyFile,
    where: Where,
    found: Found,
    changes: Changes,
    inflate: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER=20", help="A start with this width variable times 20; repeatable."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="One start per width variable, inflated.")] = False,
    factor: Annotated[float, typer.Option(help="By how much --each inflates.")] = 20.0,
    scale: Annotated[
        str | None, typer.Option(metavar="2,0.5", help="Starts with all widths times such a factor.")
    ] = None,
    constant: Annotated[
        bool, typer.Option("--constant", help="A start with the same width everywhere.")
    ] = False,
    again: Annotated[
        int, typer.Option(min=0, help="The plain start so often again, with other seeds: what chance does.")
    ] = 0,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Go on to so many rounds at least, whatever would stop a search."),
    ] = None,
    name: NewName = None,
) -> None:
    """Search from changed seed networks: does a layer that was blown up come back, are the answers the same?

    All starts have the plain seed's budget, and rounds and settings of the study.  A layer is back once its
    width in the best network so far is within a factor 1.5 of what the search from the plain seed recommends,
    and stays so.
    """
    _begin("probe", study, where, found, name)
    from widthsearch.driver.launch import Question
    from widthsearch.driver.questions import make_probe

    def make(_: Study, plan: Plan) -> StudyPlan:
        return make_probe(
            plan,
            inflate=inflate or (),
            each=factor if each else None,
            scale=() if scale is None else parts(scale),
            constant=constant,
            again=again,
            rounds=rounds,
        )

    given = {"inflate": inflate, "each": each, "factor": factor if each else None, "scale": scale}
    given |= {"constant": constant, "again": again or None, "rounds": rounds}
    _ask(study, Question("probe", make, tuple(words_of(given))), where, found, changes, name)


@spread("pruners")
def pruners(
    study: StudyFile,
    where: Where,
    found: Found,
    changes: Changes,
    pruners: Annotated[
        str | None,
        typer.Option(
            help="What to compare, comma-separated; default: l0, l1, taylor, obd-neurons, obd.",
            show_default=False,
        ),
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            help="Shares of the over-wide network's MACs (for obd of its weights) to keep; default: "
            "1/2,1/4,1/8,1/16.",
            show_default=False,
        ),
    ] = None,
    name: NewName = None,
) -> None:
    """Prune the study's over-wide network by several pruners: what do they remove, save and cost?"""
    _begin("pruners", study, where, found, name)
    from widthsearch.driver.launch import Question
    from widthsearch.driver.questions import make_pruner_plan

    given = {"pruners": pruners, "levels": levels}
    options: dict[str, Any] = {name: parts(value) for name, value in given.items() if value is not None}
    make = functools.partial(make_pruner_plan, **options)
    _ask(study, Question("pruners", make, tuple(words_of(given))), where, found, changes, name)


def _console(found: Found) -> Console:
    """Where progress goes: an object is alone on stdout."""
    return err if found.as_json else out


def _begin(verb: str, study: str, where: Where, found: Found, name: str | None) -> None:
    check_plot(found.plot)
    begin(verb, study, where, name, console=_console(found))


def _ask(
    study: str,
    question: Question,
    where: Where,
    found: Found,
    changes: Changes,
    name: str | None,
) -> None:
    """Launch what is more than one search, and print what it found."""
    from widthsearch.driver.launch import launch

    with where.session(_console(found)) as session:
        ended = launch(study, session, name=name, changes=changes, question=question)
    finish(ended, session.url, as_json=found.as_json, plot=found.plot)

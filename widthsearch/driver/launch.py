"""Launching: a study file becomes a study in the database, or a family of them, and is run.

A family is one study per budget, run one after the other by one driver.  All members are in the database
before the first one starts, so that to resume a family is to resume its members in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from widthsearch.database.connection import Database
from widthsearch.database.ledger import Ledger
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import Family
from widthsearch.driver.create import create
from widthsearch.driver.names import member_name, name_of_new, refuse_taken
from widthsearch.driver.prepare import Prepared, budgets_of, prepare, under_budget
from widthsearch.driver.resume import run_members
from widthsearch.driver.run import Ended, Session, run
from widthsearch.errors import UsageError
from widthsearch.maths.latency import Fitted
from widthsearch.plans.comparison import most_cost
from widthsearch.plans.plan import Plan, StudyPlan
from widthsearch.plans.search import SearchPlan
from widthsearch.study.file import StudyFile, load_study
from widthsearch.study.study import Study


@dataclass(frozen=True)
class Question:
    """What is asked of a study: by which command, with which options, and the plan that follows from it.

    ``make`` gets the study and the plan of its single search.
    """

    verb: str
    make: Callable[[Study, Plan], StudyPlan]
    options: tuple[str, ...] = ()


ONE_SEARCH = Question("launch", lambda _, plan: SearchPlan(plan))


def launch(
    reference: str,
    session: Session,
    *,
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    budgets: Sequence[str] | None = None,
    question: Question = ONE_SEARCH,
) -> Ended:
    """Start a new study from a study file, or with ``budgets`` a family of them, and run it.

    ``changes`` replace fields of the file's ``Study`` (budget, rounds, ...); ``budgets``: shares of the
    seed's cost, such as ``1/16``, each the budget of one member, ``NAME-1-16``, in all resources that the
    study's own budget limits; ``question``: what is asked of the study.  Raises :class:`UsageError` for a bad
    study or share, or if a name is taken; nothing is written then.  (:func:`.names.check_new`
    looks that up first, before anything slow is imported.)
    """
    changes = dict(changes or {})
    file = load_study(reference).with_changes(**changes)
    name = name_of_new(reference, name, question.verb)
    command = [question.verb, *question.options]
    family, files = None, {name: file}
    if budgets is not None:
        if "budget" in changes:
            raise UsageError(
                f"--budgets {','.join(budgets)}: give one budget (--budget) or several, not both"
            )
        files = _members(name, file, budgets)
        family = Family(name, tuple(files))
        command += ["--budgets", ",".join(budgets)]
    prepared = _prepared(files, session)
    plans = {member: question.make(file.study, p.plan) for member, p in prepared.items()}
    session.progress.say(_price(list(plans.values())))
    with (
        closing(Database.open(session.url, create=True, patient=True)) as database,
        driver_lock(session.url, name) as lock,
    ):
        refuse_taken(database, {name, *files}, family)  # again: somebody may have been faster
        for member, plan in plans.items():
            with driver_lock(session.url, member) if family is not None else nullcontext():
                study = create(
                    database,
                    member,
                    files[member],
                    prepared[member],
                    plan=plan,
                    command=command,
                    checkpoints=session.checkpoints,
                    family=family,
                )
        if family is None:
            return run(Ledger(study, session.progress, lock), file, session)
        return run_members(family, database, session, file=file.reference)


def _price(plans: Sequence[StudyPlan]) -> str:
    """What all of it costs at most, before the first training starts."""
    trainings = sum(sum(plan.expected().values()) for plan in plans)
    if not all(isinstance(plan, SearchPlan) for plan in plans):
        return f"at most {trainings} trainings"
    cost = sum(most_cost(of.plan, of.plan.rounds) + 2 * of.plan.report_seeds for of in plans)
    return f"at most {trainings} trainings, as dear as {cost:.0f} of the uniform network"


def _members(family: str, file: StudyFile, shares: Sequence[str]) -> dict[str, StudyFile]:
    """Name -> study of each member, the smallest budget first."""
    budgets = dict(zip(shares, budgets_of(file.study, shares), strict=True))
    exact = {share: Fraction(share.removesuffix("x")) for share in budgets}
    if len(set(exact.values())) < len(shares):
        raise UsageError(f"--budgets {','.join(shares)}: give each budget once, e.g. 1/16,1/8,1/4,1/2")
    return {
        member_name(family, share): file.with_changes(budget=budgets[share])
        for share in sorted(budgets, key=lambda share: exact[share])
    }


def _prepared(files: Mapping[str, StudyFile], session: Session) -> dict[str, Prepared]:
    """What is to be written down of each: the network is traced once, they differ in their budget alone."""
    *_, largest = files.values()
    session.progress.say("tracing the network")
    if largest.study.budget.latency is not None:
        session.progress.say("measuring networks around the latency budget, before anything is trained")
    prepared = prepare(largest)
    for note in prepared.notes:
        session.progress.say(note)
    if (fitted := Fitted.of(prepared.plan.latency)) is not None:
        session.progress.say(str(fitted))
    return {name: under_budget(prepared, file.study) for name, file in files.items()}

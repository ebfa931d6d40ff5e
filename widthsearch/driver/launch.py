"""Launching: a study file becomes a study in the database, or a family of them, and is run.

A family is one study per budget, run one after the other by one driver.  All members are in the database
before the first one starts, so that to resume a family is to resume its members in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

from widthsearch.database.connection import Database
from widthsearch.database.ledger import Ledger
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import Family
from widthsearch.driver.create import check_names, create, refuse_taken
from widthsearch.driver.prepare import Prepared, budgets_of, prepare, under_budget
from widthsearch.driver.resume import run_members
from widthsearch.driver.run import Ended, Session, run
from widthsearch.errors import UsageError
from widthsearch.maths.latency import Fitted
from widthsearch.plans.plan import Plan, StudyPlan
from widthsearch.plans.search import SearchPlan
from widthsearch.study.file import StudyFile, load_study
from widthsearch.study.study import Study

#: Makes the plan of a study out of that of its single search.
Question = Callable[[Study, Plan], StudyPlan]


def one_search(study: Study, plan: Plan) -> StudyPlan:
    """The plan of a study that is a single search."""
    return SearchPlan(plan)


def launch(
    reference: str,
    session: Session,
    *,
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
    budgets: Sequence[str] | None = None,
    question: Question = one_search,
    suffix: str = "",
) -> Ended:
    """Start a new study from a study file, or with ``budgets`` a family of them, and run it.

    ``changes`` replace fields of the file's ``Study`` (budget, rounds, ...); ``budgets``: shares of the
    seed's cost, such as ``1/16``, each the budget of one member, ``NAME-1-16``, in all resources that the
    study's own budget limits; ``question``: what is asked of the study; ``suffix``: of the name, if none is
    given.  Raises :class:`UsageError` for a bad study or share, or if a name is taken; nothing is written
    then.
    """
    changes = dict(changes or {})
    file = load_study(reference).with_changes(**changes)
    name = file.path.stem + suffix if name is None else name
    family, files = None, {name: file}
    if budgets is not None:
        if "budget" in changes:
            raise UsageError(
                f"--budgets {','.join(budgets)}: give one budget (--budget) or several, not both"
            )
        files = _members(name, file, budgets)
        family = Family(name, tuple(files))
    check_names(session.url, {name, *files}, family)
    plans = {member: (p, question(file.study, p.plan)) for member, p in _prepared(files, session).items()}
    database = Database.open(session.url, create=True, patient=True)
    with driver_lock(session.url, name) as lock:
        refuse_taken(database, {name, *files}, family)  # again: somebody may have been faster
        for member, (prepared, plan) in plans.items():
            with driver_lock(session.url, member) if family is not None else nullcontext():
                study = create(
                    database,
                    member,
                    files[member],
                    prepared,
                    plan=plan,
                    changes=changes if family is None else {**changes, "budget": files[member].study.budget},
                    checkpoints=session.checkpoints,
                    family=family,
                )
        if family is None:
            return run(Ledger(study, session.progress, lock), file, session.backend)
        return run_members(family, session)


def _members(family: str, file: StudyFile, shares: Sequence[str]) -> dict[str, StudyFile]:
    """Name -> study of each member, the smallest budget first.

    Names are as good in a file name, a URL or a shell as that of the family.
    """
    budgets = dict(zip(shares, budgets_of(file.study, shares), strict=True))
    exact = {share: Fraction(share.removesuffix("x")) for share in budgets}
    if len(set(exact.values())) < len(shares):
        raise UsageError(f"--budgets {','.join(shares)}: give each budget once, e.g. 1/16,1/8,1/4,1/2")
    return {
        f"{family}-{share.removesuffix('x').replace('/', '-')}": file.with_changes(budget=budgets[share])
        for share in sorted(budgets, key=lambda share: exact[share])
    }


def _prepared(files: Mapping[str, StudyFile], session: Session) -> dict[str, Prepared]:
    """What is to be written down of each: the network is traced once, they differ in their budget alone."""
    *_, largest = files.values()
    if largest.study.budget.latency is not None:
        session.progress.say("measuring networks around the latency budget, before anything is trained")
    prepared = prepare(largest)
    if (fitted := Fitted.of(prepared.plan.latency)) is not None:
        session.progress.say(str(fitted))
    return {name: under_budget(prepared, file.study) for name, file in files.items()}

"""Resuming: going on with a study or family from the database, its checkpoints and the study file."""

from __future__ import annotations

import logging
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from widthsearch.database import records
from widthsearch.database.checks import reading
from widthsearch.database.connection import Database
from widthsearch.database.ledger import Ledger
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import Family, forgiven_in, plan_of, runs_of
from widthsearch.driver.create import checkpoint_folder, write_plan
from widthsearch.driver.prepare import fingerprint_of, prepare
from widthsearch.driver.run import Ended, Session, run
from widthsearch.errors import UsageError
from widthsearch.plans.history import state_of
from widthsearch.plans.plan import Done, Plan, Run, StudyPlan, identity
from widthsearch.stopping import stop_on_signals
from widthsearch.study.file import StudyFile, existing, load_study, python_files, study_in
from widthsearch.study.fingerprint import changed_code, changed_fields

log = logging.getLogger(__name__)


def resume(
    name: str | None,
    session: Session,
    *,
    file: str | None = None,
    force: bool = False,
    rounds: int | None = None,
) -> Ended:
    """Go on with a study or a family, from nothing but the database, its checkpoints and the study file.

    ``file`` and the session's ``checkpoints`` say where these are now, if they were moved.  ``rounds``: go on
    until there are so many, whatever had stopped the search.  Raises :class:`UsageError` if what the file
    holds has changed since launch; ``force`` goes on with the file as it is.
    """
    with closing(Database.open(session.url, patient=True)) as database:
        family = records.family_of(name, database.storage)
        if family is None:
            return _resume(name, database, session, file=file, force=force, rounds=rounds)
        if rounds is not None:
            several = ", ".join(family.members)
            raise UsageError(f"--rounds: {family.name!r} is a family; give more rounds to one of {several}")
        with driver_lock(session.url, family.name):
            return run_members(family, database, session, file=file, force=force)


def run_members(
    family: Family, database: Database, session: Session, *, file: str | None = None, force: bool = False
) -> Ended:
    """Run the members of a family one after the other; finished ones stay as they are.

    One that fails does not keep the others from their verdict.  Called under the family's driver lock.
    """
    failed: Ended | None = None
    with stop_on_signals(family.name):  # between two members; each has its own while it runs
        try:
            for number, member in enumerate(family.members, start=1):
                log.info("%s: member %d of %d is %s", family.name, number, len(family.members), member)
                ended = _resume(member, database, session, file=file, force=force)
                if ended.status == "interrupted":
                    return replace(ended, name=family.name)
                if ended.status == "failed" and failed is None:
                    failed = Ended(family.name, "failed", f"{member}: {ended.because}")
        except KeyboardInterrupt:
            return Ended(family.name, "interrupted", "interrupted")
    return failed or Ended(family.name, "finished", "every member is finished")


def _resume(
    name: str | None,
    database: Database,
    session: Session,
    *,
    file: str | None,
    force: bool,
    rounds: int | None = None,
) -> Ended:
    """Go on with one study."""
    name = records.load(name, database).study_name
    with driver_lock(session.url, name) as lock:
        study = records.load(name, database)
        attrs, plan = study.user_attrs, plan_of(study)
        with reading(name):
            trials = study.get_trials(deepcopy=False)
            forgiven = _forgiven(trials, forgiven_in(study), plan, session)
            runs = runs_of(trials, forgiven)
        if rounds is not None:
            plan = _with_rounds(name, plan, runs, rounds)
        elif attrs.get(records.STATUS) == "finished" and isinstance(plan.next_step(runs), Done):
            # (A status may be older than a plan with more rounds.)
            again = database.command("resume", name, "--rounds", "N")
            session.progress.say(f"study {name!r} is finished; more rounds: {again}")
            return Ended(name, "finished", attrs.get(records.STOPPED, ""))
        found = load_again(study, file, force=force)
        if found.changed:
            _follow_changes(study, found)
        if rounds is not None:  # one write: a crash leaves the one plan or the other
            study.set_user_attr(records.PLAN, _with_rounds(name, plan_of(study), runs, rounds).to_json())
        study.set_user_attr(records.FORGIVEN, sorted(forgiven))
        if session.checkpoints is not None:
            folder = checkpoint_folder(session.url, session.checkpoints, name, attrs[records.IDENTITY])
            study.set_user_attr(records.CHECKPOINTS, folder)
        return run(Ledger(study, session.progress, lock), found, session)


def _forgiven(
    trials: list[FrozenTrial], before: frozenset[int], plan: StudyPlan, session: Session
) -> frozenset[int]:
    """The failures that count no more: of all trainings by which nothing was decided yet.

    So what was given up is tried again, as often as at first, and the search stays the same: what it went on
    from without a training that was lost is not looked at again.  ``before``: those of earlier resumes.
    """
    runs = {t.number: made for t in trials for made in runs_of([t], before)}
    by_slot: dict[tuple[Any, ...], list[int]] = {identity(slot): [] for slot in plan.undecided(runs.values())}
    for number, made in runs.items():
        by_slot.get(identity(made), []).append(number)
    lost = [of for of in by_slot.values() if state_of([runs[n] for n in of], plan.plan.retries) == "lost"]
    if lost:
        many = f"{len(lost)} given-up training{'' if len(lost) == 1 else 's'}"
        last = runs[max(n for of in lost for n in of if runs[n].error)]
        session.progress.say(f"trying {many} again; the last one had failed with {last.error}")
    failed = (n for of in by_slot.values() for n in of if runs[n].state in ("failed", "died"))
    return before.union(failed)


def study_of(study: optuna.Study, file: str | None, *, force: bool = False) -> StudyFile:
    """What a study's file holds now, with the command line's changes at launch.

    ``file`` says where it is now.  Without it, the file that the database names is imported only if it lies
    in or below the working folder, and its code is what it was (or ``force``): whoever may write into the
    database must not choose the code that runs.  Raises :class:`UsageError` if it is not so, or it is gone.
    """
    changes = study.user_attrs[records.CHANGES]
    if file is not None:
        found = load_study(file)
    else:
        path = _path_of(study)
        if not force:
            _refuse_changes(path, changed_code(study.user_attrs[records.FINGERPRINT], python_files(path)))
        found = study_in(str(path), study.user_attrs[records.SOURCE]["name"])
    with reading(study.study_name):
        return found.with_plain_changes(changes)


def _path_of(study: optuna.Study) -> Path:
    """The study file that the database names, if it is in or below the working folder."""
    source = study.user_attrs[records.SOURCE]
    path, whole = existing(source["file"]), f"{source['file']}:{source['name']}"
    if path is None:
        raise UsageError(f"study file {source['file']!r} is gone; say where it is now with --study")
    if not path.is_relative_to(Path.cwd().resolve()):
        raise UsageError(
            f"study file {source['file']!r} lies outside of the working folder, and only the database "
            f"says that it belongs to {study.study_name!r}; if it does, give it: "
            f"--study {shlex.quote(whole)}"
        )
    return path


def load_again(study: optuna.Study, file: str | None, *, force: bool) -> StudyFile:
    """The study's file as it was at launch, or with ``force`` as it is now, and what has changed since.

    ``file``: where it is, if it was moved.  Raises :class:`UsageError` if something has changed, without
    ``force``.
    """
    found = study_of(study, file, force=force)
    before = study.user_attrs[records.FINGERPRINT]
    # Unchanged, its plan is that of the database: the network need not be traced again here.
    changed = changed_fields(before, fingerprint_of(found, before))
    if not force:
        _refuse_changes(found.path, changed)
    return replace(found, changed=tuple(changed))


def _refuse_changes(path: Path, changed: list[str]) -> None:
    if changed:
        raise UsageError(
            f"{path} has changed since launch: {'; '.join(changed)}; "
            f"undo that, launch it under a new --name, or go on all the same with --force"
        )


def _follow_changes(study: optuna.Study, file: StudyFile) -> None:
    """Write the plan of a changed file, if the trials so far still belong to it."""
    before = plan_of(study)
    prepared = prepare(file, before.plan)
    now = before.with_plan(prepared.plan)
    if other := _other_search(before.plan, now.plan):
        raise UsageError(
            f"{file.path}: {other}; the trials so far say nothing about that: launch it as a new study"
        )
    write_plan(study, prepared, now)


def _other_search(before: Plan, now: Plan) -> str:
    """Why trials under one plan cannot go on under another; empty if they can."""
    if before.cost.variables != now.cost.variables:
        return "the network has other width variables now"
    old, new = before.to_json(), now.to_json()
    what = {"cost": "layers", "widths": "widths"}
    fixed = (
        "cost",
        "widths",
        "budget",
        "minimum",
        "multiple_of",
        "pressure",
        "pruner",
        "cost_aware_start",
        "over",
        "seeds",
        "final_seeds",
        "seed",
    )
    changed = [what.get(name, name) for name in fixed if old[name] != new[name]]
    return f"the search has other {', '.join(changed)} now" if changed else ""


def _with_rounds(name: str, plan: StudyPlan, runs: list[Run], rounds: int) -> StudyPlan:
    """The plan, going on to so many rounds; :class:`UsageError` if that is not more, or rounds are fixed."""
    if not plan.grows:
        raise UsageError(f"--rounds: {name!r} is a comparison; its rounds are fixed")
    made = 1 + max((run.key[1] for run in runs), default=-1)
    if rounds <= made:
        raise UsageError(f"--rounds {rounds}: the study has made {made} rounds already; give more than that")
    return replace(plan, plan=replace(plan.plan, rounds=rounds, at_least=rounds))

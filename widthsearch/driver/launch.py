"""The driver: launches and resumes studies.  It alone asks, tells and writes to the database."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import unicodedata
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection

from widthsearch.database import records
from widthsearch.database.connection import open_storage, sqlite_path
from widthsearch.database.folder import OURS, Folder
from widthsearch.database.ledger import Ledger, Progress
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import load, plan_of, runs_of
from widthsearch.database.sampler import GrowShrinkSampler
from widthsearch.driver.prepare import Prepared, fingerprint_of, prepare
from widthsearch.errors import TrainingError, UsageError, describe_error
from widthsearch.maths.latency import Fitted
from widthsearch.plans.comparison import AnyPlan, Comparison, next_step, search_of
from widthsearch.plans.plan import Done, Failed, Plan, Run, Slot
from widthsearch.plans.probe import Probe
from widthsearch.stopping import Stop, stop_on_signals
from widthsearch.study.budget import Budget
from widthsearch.study.fingerprint import changed_fields
from widthsearch.study.study import Study, load_study
from widthsearch.training.trial import TrialRunner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a driver ended: ``finished``, ``interrupted`` or ``failed``, and why."""

    name: str
    status: str
    because: str


#: Runs the ledger's trials until there is nothing left to do or the user stops it.
Backend = Callable[[Ledger, Study, str, Stop], None]


def run_in_process(ledger: Ledger, study: Study, reference: str, stop: Stop) -> None:
    """Run one trial after the other right here, without Ray: the same results, and a debugger works."""
    runner = TrialRunner(study, ledger.plan, (ledger.checkpoints.url, ledger.identity))
    while isinstance(slot := ledger.next_step(), Slot):
        number = ledger.ask(slot)
        try:
            outcome = runner.run(slot)
        except TrainingError as error:
            ledger.fail(number, str(error))
        else:
            ledger.tell(number, outcome)


def launch(
    reference: str,
    *,
    name: str | None,
    url: str,
    changes: Mapping[str, Any],
    backend: Backend,
    progress: Progress,
    checkpoints: str | None = None,
    several: Callable[[Study, Plan], AnyPlan] | None = None,
    suffix: str = "",
) -> Ended:
    """Start a new study from a study file, and run it.

    ``changes`` replace fields of the file's ``Study`` (budget, rounds, ...); ``checkpoints``: the folder or
    URL that all workers share; ``several`` makes a plan of several searches out of its plan; ``suffix``: of
    the name, if none is given.  Raises :class:`UsageError` for a bad study, or if the name is taken; nothing
    is written then.
    """
    written, path, attribute = load_study(reference)
    study = replace(written, **changes)
    name = path.stem + suffix if name is None else name
    check_names(url, name)
    if study.budget.latency is not None:
        progress.say("measuring networks around the latency budget, before anything is trained")
    prepared = prepare(study, path)
    if (fitted := Fitted.of(prepared.plan.latency)) is not None:
        progress.say(str(fitted))
    plan = prepared.plan if several is None else several(study, prepared.plan)
    storage = open_storage(url, create=True, patient=True)
    with driver_lock(url, name) as lock:
        refuse_existing(storage, name)  # again: somebody may have been faster
        optuna_study = create(
            storage,
            url,
            name,
            source={"file": str(path), "name": attribute},
            changes=changes,
            prepared=prepared,
            plan=plan,
            checkpoints=checkpoints,
        )
        return _run(Ledger(optuna_study, progress, lock), study, f"{path}:{attribute}", backend)


def create(
    storage: optuna.storages.BaseStorage,
    url: str,
    name: str,
    *,
    source: Mapping[str, str],
    changes: Mapping[str, Any],
    prepared: Prepared,
    plan: AnyPlan,
    checkpoints: str | None,
    family: records.Family | None = None,
) -> optuna.Study:
    """Write a study down, for :func:`resume` to run.  Called under its driver lock."""
    identity = uuid.uuid4().hex
    folder = checkpoint_folder(url, checkpoints, name, identity)
    study = optuna.create_study(study_name=name, storage=storage, direction="minimize", load_if_exists=True)
    study.set_user_attr(records.SOURCE, dict(source))
    study.set_user_attr(records.CHANGES, {k: _plain(v) for k, v in changes.items()})
    study.set_user_attr(records.FROZEN, prepared.frozen)
    study.set_user_attr(records.IDENTITY, identity)
    study.set_user_attr(records.CHECKPOINTS, folder)
    if family is not None:
        study.set_user_attr(records.FAMILY, family._asdict())
    _write_plan(study, prepared, plan)
    return study


def resume(
    name: str | None,
    *,
    url: str,
    file: str | None,
    force: bool,
    backend: Backend,
    progress: Progress,
    rounds: int | None = None,
    checkpoints: str | None = None,
) -> Ended:
    """Go on with a study from nothing but the database, its checkpoints and the study file.

    ``file`` and ``checkpoints`` say where these are now, if they were moved.  ``rounds``: go on until there
    are so many, whatever had stopped the search.  Raises :class:`UsageError` if what the file holds has
    changed since launch; ``force`` goes on with the file as it is.
    """
    storage = open_storage(url, create=False, patient=True)
    name = load(name, storage, url).study_name
    with driver_lock(url, name) as lock:
        optuna_study = load(name, storage, url)
        attrs = optuna_study.user_attrs
        runs = runs_of(optuna_study.get_trials(deepcopy=False))
        if rounds is not None:
            _with_rounds(optuna_study, rounds)  # refuses what has no more rounds
            _check_more_rounds(runs, rounds)
        elif attrs.get(records.STATUS) == "finished" and _is_done(optuna_study, runs):
            again = f"widthsearch resume {shlex.quote(name)} --rounds N"
            progress.say(f"study {name!r} is finished; more rounds: {again}")
            return Ended(name, "finished", attrs[records.STOPPED])
        study, path, attribute, changed = load_again(optuna_study, file, force=force)
        if changed:
            _follow_changes(optuna_study, study, path)
        if rounds is not None:  # one write: a crash leaves the one plan or the other
            optuna_study.set_user_attr(records.PLAN, _with_rounds(optuna_study, rounds).to_json())
        if checkpoints is not None or records.CHECKPOINTS not in attrs:
            identity = attrs.get(records.IDENTITY) or uuid.uuid4().hex
            folder = checkpoint_folder(url, checkpoints, name, identity)
            optuna_study.set_user_attr(records.IDENTITY, identity)
            optuna_study.set_user_attr(records.CHECKPOINTS, folder)
        return _run(Ledger(optuna_study, progress, lock), study, f"{path}:{attribute}", backend)


def study_of(optuna_study: optuna.Study, file: str | None) -> tuple[Study, Path, str]:
    """What a study's file holds now, with the command line's changes at launch; its path and its name.

    ``file`` says where it is now, if it was moved.
    """
    attrs = optuna_study.user_attrs
    source = attrs[records.SOURCE]
    if file is None and not Path(source["file"]).is_file():
        raise UsageError(f"study file {source['file']!r} is gone; say where it is now with --study")
    written, path, attribute = load_study(file or f"{source['file']}:{source['name']}")
    changes = {k: _from_plain(k, v) for k, v in attrs[records.CHANGES].items()}
    return replace(written, **changes), path, attribute


def load_again(
    optuna_study: optuna.Study, file: str | None, *, force: bool
) -> tuple[Study, Path, str, list[str]]:
    """The study's file as it was at launch, or with ``force`` as it is now.

    ``file``: where it is, if it was moved.  Returns what :func:`study_of` does, and what has changed since
    launch.  Raises :class:`UsageError` if something has, without ``force``.
    """
    study, path, attribute = study_of(optuna_study, file)
    # Unchanged, its plan is that of the database: the network need not be traced again here.
    changed = changed_fields(optuna_study.user_attrs[records.FINGERPRINT], fingerprint_of(study, path))
    if changed and not force:
        raise UsageError(
            f"{path} has changed since launch: {'; '.join(changed)}; "
            f"undo that, launch it under a new --name, or go on all the same with --force"
        )
    return study, path, attribute, changed


def _follow_changes(optuna_study: optuna.Study, study: Study, path: Path) -> None:
    """Write the plan of a changed file, if the trials so far still belong to it."""
    before = plan_of(optuna_study)
    search = search_of(before)
    prepared = prepare(study, path, search)
    now = prepared.plan
    if isinstance(before, Comparison):
        now = replace(now, budget=search.budget)
    if other := _other_search(search, now):
        raise UsageError(
            f"{path}: {other}; the trials so far say nothing about that: launch it as a new study"
        )
    _write_plan(optuna_study, prepared, _kept(before, now))


def _kept(before: AnyPlan, now: Plan) -> AnyPlan:
    """The plan of a changed file, with what resume and compare have added to the one before."""
    if isinstance(before, Plan):
        return now.going_on(before.at_least)
    return replace(before, plan=now.going_on(before.plan.at_least))


def _is_done(optuna_study: optuna.Study, runs: list[Run]) -> bool:
    """Whether nothing is left to do: a status may be older than a plan with more rounds."""
    return isinstance(next_step(plan_of(optuna_study), runs), Done)


def _with_rounds(optuna_study: optuna.Study, rounds: int) -> AnyPlan:
    """The study's plan, going on to so many rounds; :class:`UsageError` where rounds are fixed."""
    plan = plan_of(optuna_study)
    if not isinstance(plan, Plan | Probe):
        raise UsageError(f"--rounds: {optuna_study.study_name!r} is a comparison; its rounds are fixed")
    more = replace(search_of(plan), rounds=rounds, at_least=rounds)
    return replace(plan, plan=more) if isinstance(plan, Probe) else more


def _check_more_rounds(runs: list[Run], rounds: int) -> None:
    made = 1 + max((run.key[1] for run in runs), default=-1)
    if rounds <= made:
        raise UsageError(f"--rounds {rounds}: the study has made {made} rounds already; give more than that")


def checkpoint_folder(url: str, given: str | None, name: str, identity: str) -> str:
    """The folder of a study's checkpoints, made to see that it can be; beside an SQLite file by default."""
    base = given or os.environ.get("WIDTHSEARCH_CHECKPOINTS")
    if base is None:
        file = sqlite_path(url)
        base = f"{file}{OURS}" if file is not None else f"widthsearch{OURS}"
    where, _, path = base.rpartition("://")
    if "@" in path.partition("/")[0]:
        raise UsageError(
            "checkpoints: a URL with a user or password would be kept in the database: leave it out"
        )
    try:
        folder = f"{base if where else Path(base).expanduser().resolve()}/{records.slug(name)}-{identity[:8]}"
    except (OSError, ValueError, RuntimeError) as error:  # too long, no text, the home of nobody
        raise UsageError(f"checkpoints {base!r} cannot be used: {describe_error(error)}") from None
    Folder(folder).check()
    return folder


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


def check_names(url: str, *wanted: str, family: records.Family | None = None) -> None:
    """Refuse names that a database would not keep or a terminal not show, and those that are taken."""
    for name in wanted:
        if not 0 < len(name) <= 512 or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
            raise UsageError(
                f"study name {name!r:.60}: give one of 1 to 512 characters, without control characters "
                "(--name)"
            )
    file = sqlite_path(url)
    if file is None or file.exists():
        refuse_existing(open_storage(url, create=False), *wanted, family=family)


def refuse_existing(
    storage: optuna.storages.BaseStorage, *wanted: str, family: records.Family | None = None
) -> None:
    """:class:`UsageError` if one of these names is taken; ``family``: they are its name and its members'.

    A study (or family) without trials is a launch that was stopped in its first moments: it is taken over.
    """
    for found in storage.get_all_studies():
        name, of = found.study_name, records.family_in(found.user_attrs)
        if name not in wanted and (of is None or of.name not in wanted):
            continue
        member = of is None and family is not None and name in family.members
        fits = of == family or member
        if (
            fits
            and found.directions == [StudyDirection.MINIMIZE]
            and not storage.get_n_trials(found._study_id)
        ):
            continue
        kind, name = ("family", of.name) if of is not None and of.name in wanted else ("study", name)
        hint = (
            f"go on with: widthsearch resume {shlex.quote(name)}; "
            if records.PLAN in found.user_attrs
            else ""
        )
        raise UsageError(f"{kind} {name!r} exists already; {hint}start a new one with --name")


def _write_plan(optuna_study: optuna.Study, prepared: Prepared, plan: AnyPlan) -> None:
    packages = ("widthsearch", "torch", "numpy")
    optuna_study.set_user_attr(records.VERSIONS, {package: version(package) for package in packages})
    optuna_study.set_user_attr(records.FROZEN, prepared.frozen)
    optuna_study.set_user_attr(records.MODULES, prepared.modules)
    optuna_study.set_user_attr(records.FINGERPRINT, prepared.fingerprint)
    optuna_study.set_user_attr(records.PLAN, plan.to_json())  # last: it makes the study one of ours


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Budget) else value


def _from_plain(field: str, value: Any) -> Any:
    return Budget(**value) if field == "budget" else value


def _run(ledger: Ledger, study: Study, reference: str, backend: Backend) -> Ended:
    """Run the backend and write down how it ended.  Called under the driver lock."""
    name = ledger.study.study_name
    family = records.family_in(ledger.study.user_attrs)
    ledger.study.sampler = GrowShrinkSampler()
    with stop_on_signals(name if family is None else family.name) as stop:
        ledger.close_orphans()
        ledger.write(records.DRIVER, f"{socket.gethostname()}, process {os.getpid()}")
        ledger.write(records.STATUS, "running")
        ledger.progress.begin(ledger.plan, ledger.study)
        log.info("driving %r; checkpoints in %s", name, ledger.checkpoints.url)
        try:
            backend(ledger, study, reference, stop)
        except KeyboardInterrupt:
            pass
        except BaseException as error:
            with suppress(Exception):  # if the database is what failed, the next driver does this
                ledger.close_orphans()
                ledger.write(records.STATUS, "interrupted")
            if isinstance(error, UsageError):
                raise UsageError(f"{error} (study {name!r} is kept and can be resumed)") from error
            raise
        ledger.close_orphans()
        match ledger.next_step():
            case Done(because=because):
                status = "finished"
            case Failed(because=because):
                status = "failed"
            case _:
                status, because = "interrupted", "interrupted"
        ledger.write(records.STOPPED, because)
        ledger.write(records.STATUS, status)
    log.info("%r is %s: %s", name, status, because)
    if status != "interrupted":
        ledger.checkpoints.remove()
    return Ended(name, status, because)

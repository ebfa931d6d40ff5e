"""The driver: launches and resumes studies.  It alone asks, tells and writes to the database."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from widthsearch import storage as names
from widthsearch.errors import TrainingError, UsageError
from widthsearch.plan import Done, Failed, Plan, Slot, Step, next_step
from widthsearch.prepare import Prepared, changed_fields, prepare
from widthsearch.sampler import GrowShrinkSampler, search_space
from widthsearch.storage import driver_lock, load, open_storage, plan_of, runs_of, sqlite_path
from widthsearch.study import Budget, Study, load_study
from widthsearch.trial import TrialRunner


class Progress(Protocol):
    """What a display is told while a search runs."""

    def begin(self, plan: Plan, study: optuna.Study) -> None:
        """The search starts or goes on."""

    def started(self, number: int, slot: Slot) -> None:
        """Trial ``number`` was handed to a worker."""

    def finished(self, number: int, slot: Slot, outcome: Mapping[str, Any]) -> None:
        """Trial ``number`` completed with these attributes and ``val_loss``."""

    def failed(self, number: int, slot: Slot, error: str) -> None:
        """Trial ``number`` failed."""


@dataclass(frozen=True)
class Ended:
    """How a driver ended: ``finished``, ``interrupted`` or ``failed``, and why."""

    name: str
    status: str
    because: str


class Ledger:
    """The driver's hand on the Optuna study: asks for trials, tells their results, closes orphans."""

    def __init__(self, study: optuna.Study, progress: Progress) -> None:
        self.study, self.progress = study, progress
        self.plan = plan_of(study)
        self._space = search_space(self.plan)
        self._live: dict[int, tuple[optuna.Trial, Slot]] = {}

    def next_step(self) -> Step:
        """What the search needs next, from the database alone."""
        return next_step(self.plan, runs_of(self.study.get_trials(deepcopy=False)))

    def ask(self, slot: Slot) -> int:
        """Open the slot's trial; its number.  The sampler reads the same trials, so it proposes this slot."""
        trial = self.study.ask(fixed_distributions=self._space)
        if trial.params != dict(slot.widths):
            raise RuntimeError(
                f"trial {trial.number}: the sampler proposed {trial.params}, not {slot.widths}"
            )
        for key, value in (
            (names.ROUND, slot.round),
            (names.REPLICA, slot.replica),
            (names.SEED, slot.random_seed(self.plan.seed)),
            (names.KIND, slot.kind),  # last: a trial without a kind is no run yet
        ):
            trial.set_user_attr(key, value)
        self._live[trial.number] = (trial, slot)
        self.progress.started(trial.number, slot)
        return trial.number

    def tell(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Write a completed run: its attributes, its constraints (cost over budget), its value."""
        trial, slot = self._live.pop(number)
        for key, value in outcome.items():
            if key != "val_loss":
                trial.set_user_attr(key, value)
        for resource, limit in self.plan.budget.items():
            # Feasible at 0 and below: over-wide measures are never `study.best_trial`.
            trial.set_constraint(resource, outcome[resource] / limit - 1)
        self.study.tell(trial, outcome["val_loss"])
        self.progress.finished(number, slot, outcome)

    def fail(self, number: int, error: str) -> None:
        """Write a failed run; its slot is open again until the retries are used up."""
        trial, slot = self._live.pop(number)
        trial.set_user_attr(names.ERROR, error)
        self.study.tell(trial, state=TrialState.FAIL)
        self.progress.failed(number, slot, error)

    def close_orphans(self) -> None:
        """Fail every trial that still counts as running.  Only under the lock: then none of them is."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            storage, trial_id = self.study._storage, trial._trial_id
            storage.set_trial_user_attr(trial_id, names.INTERRUPTED, True)  # an interruption is no failure
            self.study.tell(trial.number, state=TrialState.FAIL)
        self._live.clear()


#: Runs the ledger's trials until there is nothing left to do or the user stops it.
Backend = Callable[[Ledger, Study, str], None]


def run_in_process(ledger: Ledger, study: Study, reference: str) -> None:
    """Run one trial after the other right here, without Ray: the same results, and a debugger works."""
    runner = TrialRunner(study, ledger.plan)
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
) -> Ended:
    """Start a new study from a study file, and run it.

    ``changes`` replace fields of the file's ``Study`` (budget, rounds, ...).  Raises :class:`UsageError` for
    a bad study, or if the name is taken; nothing is written then.
    """
    written, path, attribute = load_study(reference)
    study = replace(written, **changes)
    name = name or path.stem
    file = sqlite_path(url)
    if file is None or file.exists():
        _refuse_existing(name, open_storage(url, create=False))
    prepared = prepare(study, path)
    storage = open_storage(url, create=True)
    with driver_lock(url, name):
        _refuse_existing(name, storage)  # again: somebody may have been faster
        optuna_study = optuna.create_study(
            study_name=name, storage=storage, direction="minimize", load_if_exists=True
        )
        optuna_study.set_user_attr(names.SOURCE, {"file": str(path), "name": attribute})
        optuna_study.set_user_attr(names.CHANGES, {k: _plain(v) for k, v in changes.items()})
        optuna_study.set_user_attr(names.FROZEN, prepared.frozen)
        _write_plan(optuna_study, prepared)
        return _run(optuna_study, study, f"{path}:{attribute}", backend, progress)


def resume(
    name: str | None,
    *,
    url: str,
    file: str | None,
    force: bool,
    backend: Backend,
    progress: Progress,
) -> Ended:
    """Go on with a study from nothing but the database and the study file.

    ``file`` says where the study file is now, if it was moved.  Raises :class:`UsageError` if what it holds
    has changed since launch; ``force`` goes on with the file as it is.
    """
    storage = open_storage(url, create=False)
    name = load(name, storage, url).study_name
    with driver_lock(url, name):
        optuna_study = load(name, storage, url)
        attrs = optuna_study.user_attrs
        if attrs.get(names.STATUS) == "finished":
            return Ended(name, "finished", attrs[names.STOPPED])
        source = attrs[names.SOURCE]
        if file is None and not Path(source["file"]).is_file():
            raise UsageError(f"study file {source['file']!r} is gone; say where it is now with --study")
        written, path, attribute = load_study(file or f"{source['file']}:{source['name']}")
        study = replace(written, **{k: _from_plain(k, v) for k, v in attrs[names.CHANGES].items()})
        prepared = prepare(study, path)
        if changed := changed_fields(attrs[names.FINGERPRINT], prepared.fingerprint):
            if not force:
                raise UsageError(
                    f"{path} has changed since launch: {'; '.join(changed)}; "
                    f"undo that, launch it under a new --name, or go on all the same with --force"
                )
            if other := _other_search(plan_of(optuna_study), prepared.plan):
                raise UsageError(
                    f"{path}: {other}; the trials so far say nothing about that: launch it as a new study"
                )
            _write_plan(optuna_study, prepared)
        return _run(optuna_study, study, f"{path}:{attribute}", backend, progress)


def _other_search(before: Plan, now: Plan) -> str:
    """Why trials under one plan cannot go on under another; empty if they can."""
    if before.cost.variables != now.cost.variables:
        return "the network has other width variables now"
    old, new = before.to_json(), now.to_json()
    what = {"cost": "layers", "widths": "widths"}
    fixed = ("cost", "widths", "budget", "minimum", "multiple_of", "pressure", "over", "seeds", "seed")
    changed = [what.get(name, name) for name in fixed if old[name] != new[name]]
    return f"the search has other {', '.join(changed)} now" if changed else ""


def _refuse_existing(name: str, storage: optuna.storages.BaseStorage) -> None:
    for summary in optuna.study.get_all_study_summaries(storage=storage, include_best_trial=False):
        # An empty study without a plan is a launch that was killed in its first moment: taken over.
        ours = summary.direction == StudyDirection.MINIMIZE and not summary.n_trials
        if summary.study_name == name and (names.PLAN in summary.user_attrs or not ours):
            hint = (
                f"go on with: widthsearch resume {shlex.quote(name)}; "
                if names.PLAN in summary.user_attrs
                else ""
            )
            raise UsageError(f"study {name!r} exists already; {hint}start a new one with --name")


def _write_plan(optuna_study: optuna.Study, prepared: Prepared) -> None:
    optuna_study.set_user_attr(names.FINGERPRINT, prepared.fingerprint)
    optuna_study.set_user_attr(names.PLAN, prepared.plan.to_json())  # last: it makes the study one of ours


def _plain(value: Any) -> Any:
    return {"macs": value.macs, "params": value.params} if isinstance(value, Budget) else value


def _from_plain(field: str, value: Any) -> Any:
    return Budget(**value) if field == "budget" else value


def _run(
    optuna_study: optuna.Study, study: Study, reference: str, backend: Backend, progress: Progress
) -> Ended:
    """Run the backend and write down how it ended.  Called under the driver lock."""
    optuna_study.sampler = GrowShrinkSampler()
    ledger = Ledger(optuna_study, progress)
    ledger.close_orphans()
    optuna_study.set_user_attr(names.DRIVER, f"{socket.gethostname()}, process {os.getpid()}")
    optuna_study.set_user_attr(names.STATUS, "running")
    progress.begin(ledger.plan, optuna_study)
    try:
        backend(ledger, study, reference)
    except KeyboardInterrupt:
        pass
    except BaseException:
        ledger.close_orphans()
        optuna_study.set_user_attr(names.STATUS, "interrupted")
        raise
    ledger.close_orphans()
    match ledger.next_step():
        case Done(because=because):
            status = "finished"
        case Failed(because=because):
            status = "failed"
        case _:
            status, because = "interrupted", "interrupted"
    optuna_study.set_user_attr(names.STOPPED, because)
    optuna_study.set_user_attr(names.STATUS, status)
    return Ended(optuna_study.study_name, status, because)

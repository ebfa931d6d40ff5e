"""The driver's hand on the Optuna study.  Nobody else writes into the database."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import optuna
import tenacity
from optuna.trial import FrozenTrial, TrialState

from widthsearch.database import records
from widthsearch.database.checks import reading
from widthsearch.database.connection import connection_was_lost, reason, using
from widthsearch.database.folder import Folder
from widthsearch.database.lock import DriverLock
from widthsearch.database.records import forgiven_in, plan_of, runs_of
from widthsearch.database.sampler import GivenWidths, search_space
from widthsearch.errors import DatabaseGoneError, describe_error
from widthsearch.plans.plan import Run, Slot, Step, StudyPlan, Together, Wait
from widthsearch.plans.words import joined

T = TypeVar("T")
#: What Optuna calls with its study and a trial that has ended.
Callback = Callable[[optuna.Study, FrozenTrial], object]
log = logging.getLogger(__name__)

#: How often in a row one operation may lose its connection (a server that is down is waited for elsewhere).
CONNECTIONS_LOST = 100


class Progress(Protocol):
    """What a display is told while a search runs."""

    def uses(self, workers: int) -> None:
        """So many trainings run at a time."""

    def begin(self, plan: StudyPlan, study: optuna.Study) -> None:
        """The search starts or goes on."""

    def started(self, number: int, slot: Slot) -> None:
        """Trial ``number`` was handed to a worker."""

    def finished(self, number: int, slot: Slot, outcome: Mapping[str, Any]) -> None:
        """Trial ``number`` completed with these attributes and ``val_loss``."""

    def failed(self, number: int, slot: Slot, error: str) -> None:
        """Trial ``number`` failed."""

    def dropped(self, number: int) -> None:
        """Trial ``number`` was interrupted; its slot is open again."""

    def say(self, text: str) -> None:
        """Something that a person should know."""


class Ledger:
    """The driver's hand on the Optuna study: asks for trials, tells their results, closes orphans.

    A database server that goes away is waited for, and what was under way is done again: so every operation
    here may be repeated after it came to any of its points.
    """

    def __init__(self, study: optuna.Study, progress: Progress, lock: DriverLock) -> None:
        self.study, self.progress = study, progress
        self.plan = plan_of(study)
        self.checkpoints = Folder.of_study(
            study.user_attrs[records.CHECKPOINTS], study.study_name, study.user_attrs[records.IDENTITY]
        )
        self._study_identity = study.user_attrs[records.IDENTITY]
        # Whose checkpoints they are: this study's, as long as code, data and settings are what they are.
        whose = [self._study_identity, study.user_attrs[records.FINGERPRINT]]
        self.identity = hashlib.sha256(json.dumps(whose, sort_keys=True).encode()).hexdigest()
        self._space = search_space(self.plan.plan)
        self._forgiven = forgiven_in(study)
        self._lock = lock
        self._live: dict[int, tuple[optuna.Trial, Slot]] = {}
        self._phase: object = None  # what was last handed out, or waited for
        self.callbacks: Sequence[Callback] = ()
        self.ended = 0  # trials that came to an end since this driver started

    def next_step(self) -> Step:
        """What the search needs next, from the database alone."""

        def look() -> tuple[Step, list[Run]]:
            trials = self.study.get_trials(deepcopy=False)
            with reading(self.study.study_name):
                runs = runs_of(trials, self._forgiven)
                return self.plan.next_step(runs), runs

        step, runs = self._patiently(look)
        self._log_step(step, runs)
        return step

    def together(self, slot: Slot) -> Together:
        """What is trained with the slot that comes next."""

        def look() -> Together:
            return self.plan.together(slot, runs_of(self.study.get_trials(deepcopy=False), self._forgiven))

        return self._patiently(look) if self.plan.plan_of(slot).pack else Together([slot], [slot])

    def _log_step(self, step: Step, runs: list[Run]) -> None:
        """Say why a slot is handed out again; and, once, when a phase begins or is waited for."""
        if not log.isEnabledFor(logging.INFO):
            return
        phase: object = type(step)
        if isinstance(step, Slot):
            phase = (step.kind, step.round, step.branch)
            before = [r for r in runs if (r.key, r.branch, r.widths) == (step.key, step.branch, step.widths)]
            if before:
                how = ", ".join(r.state for r in before)
                log.info("%s: again, after %s %s", step, how, before[-1].error)
        if phase == self._phase:
            return
        self._phase = phase
        if isinstance(step, Slot):
            plan = self.plan.plan_of(step)
            log.info(
                "phase: %s; budget %s, widths %s cost %s",
                step,
                plan.budget,
                joined(step.widths),
                plan.cost.at(step.widths),
            )
        elif isinstance(step, Wait):
            log.info("waiting for %d trainings before the next phase", len(self._live))

    def take(self, slot: Slot) -> list[tuple[Slot, int | None]]:
        """What is trained with the slot that comes next, each with its trial, opened now.

        ``None`` for one that has its result already.
        """
        slots, open_ = self.together(slot)
        return [(own, self.ask(own) if own in open_ else None) for own in slots]

    def end(self, number: int | None, outcome: Mapping[str, Any]) -> None:
        """Tell how a training that was taken ended: with its attributes, or an ``error``."""
        if number is None:
            return
        if "error" in outcome:
            self.fail(number, outcome["error"])
        else:
            self.tell(number, outcome)

    def ask(self, slot: Slot) -> int:
        """Open the slot's trial; its number."""
        start = time.monotonic()
        number = self._patiently(lambda: self._ask(slot), first=self._close_running)
        took = time.monotonic() - start
        log.info("trial %d: %s at widths %s", number, slot, joined(slot.widths))
        log.debug("trial %d: asked in %.3f s", number, took)
        self.progress.started(number, slot)
        return number

    def _ask(self, slot: Slot) -> int:
        self.study.sampler = GivenWidths(slot.widths)
        trial = self.study.ask(fixed_distributions=self._space)
        for key, value in attributes_of(slot, self.plan).items():
            trial.set_user_attr(key, value)
        self._live[trial.number] = (trial, slot)
        return trial.number

    def tell(self, number: int, outcome: Mapping[str, Any]) -> None:
        """Write a completed run: its attributes, its constraints (cost over budget), its value."""
        trial, slot = self._live[number]

        def write() -> None:
            for key, value in outcome.items():
                if key not in ("val_loss", "warnings"):
                    trial.set_user_attr(key, value)
            for resource, limit in self.plan.plan_of(slot).budget.items():
                # Feasible at 0 and below: over-wide measures are never `study.best_trial`.
                trial.set_constraint(resource, outcome[resource] / limit - 1)
            self.study.tell(trial, outcome["val_loss"], skip_if_finished=True)

        start = time.monotonic()
        self._patiently(write)
        log.info("trial %d: complete, loss %.6g", number, outcome["val_loss"])
        log.debug("trial %d: told in %.3f s", number, time.monotonic() - start)
        del self._live[number]
        self.ended += 1
        self.checkpoints.remove(slot.file)
        for warning in outcome.get("warnings", ()):
            self.progress.say(f"trial {number}: {warning}")
        self.progress.finished(number, slot, outcome)
        self._call_back(number)

    def fail(self, number: int, error: str, *, worker_died: bool = False) -> None:
        """Write a failed run; its slot is open again until the retries are used up."""
        trial, slot = self._live[number]

        def write() -> None:
            trial.set_user_attr(records.ERROR, error)
            if worker_died:
                trial.set_user_attr(records.DIED, True)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

        self._patiently(write)
        log.info("trial %d: %s: %s", number, "its worker was lost" if worker_died else "failed", error)
        del self._live[number]
        self.ended += 1
        self.progress.failed(number, slot, f"{error}; another worker takes over" if worker_died else error)
        self._call_back(number)

    def _call_back(self, number: int) -> None:
        """Tell the callbacks of a trial that has ended; what goes wrong in there does not stop the search."""
        for callback in self.callbacks:
            try:
                callback(self.study, copy.deepcopy(self.study.get_trials(deepcopy=False)[number]))
            except Exception as error:
                name = getattr(callback, "__qualname__", type(callback).__qualname__)
                self.progress.say(f"trial {number}: callback {name} raised {describe_error(error)}")

    def close_orphans(self) -> None:
        """Fail every trial that still counts as running.  Only under the lock: then none of them is."""
        for number in self._live:
            self.progress.dropped(number)
        self._live.clear()
        self._patiently(self._close_running)

    def write(self, attribute: str, value: Any) -> None:
        """Set an attribute of the study."""
        self._patiently(lambda: self.study.set_user_attr(attribute, value))

    def _close_running(self) -> None:
        """Fail the trials that count as running but are not ours; without an error, as they may go on."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self._live:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _confirm_study(self) -> None:
        """:class:`DatabaseGoneError` if the study was deleted, or another database copied over it."""
        try:
            found = self.study._storage.get_study_user_attrs(self.study._study_id)
        except KeyError:
            found = {}
        if found.get(records.IDENTITY) != self._study_identity:
            raise DatabaseGoneError(
                f"study {self.study.study_name!r} was deleted or replaced in its database while it ran; the "
                "search stops, its checkpoints are kept: put the database back, then resume"
            )

    def _patiently(self, operation: Callable[[], T], first: Callable[[], None] | None = None) -> T:
        """Do it, under the lock; and again (``first`` cleaning up) if the database went away meanwhile.

        Raises :class:`UsageError` for any other trouble with the database (a full disk, no rights).
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(connection_was_lost),
            wait=tenacity.wait_incrementing(start=1, increment=1, max=10),
            stop=tenacity.stop_after_attempt(CONNECTIONS_LOST),
            before_sleep=_log_loss,
            reraise=True,
        )

        def attempt() -> T:
            self._lock.confirm()
            self._confirm_study()
            if retrying.statistics["attempt_number"] > 1 and first is not None:
                first()
            return operation()

        with using():
            return retrying(attempt)


def _log_loss(state: tenacity.RetryCallState) -> None:
    if state.outcome is not None and (error := state.outcome.exception()):
        log.info("lost the database (%s); trying again", reason(error))


def attributes_of(slot: Slot, plan: StudyPlan) -> dict[str, Any]:
    """What a trial says of its slot, in the order to write it in."""
    return {
        records.ROUND: slot.round,
        records.REPLICA: slot.replica,
        **({records.STEP: slot.step} if slot.step else {}),
        **({records.ASKED: list(slot.asked)} if slot.asked else {}),
        records.SEED: slot.random_seed(plan.plan_of(slot).seed),
        records.CHECKPOINT: slot.file,
        **dict(zip((records.BUDGET, records.REPEAT, records.ARM), slot.branch or (), strict=False)),
        records.KIND: slot.kind,  # last: a trial without a kind is no run yet
    }

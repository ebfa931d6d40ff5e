"""Training runs on Ray Tune: a worker per training, fed by the ledger."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from widthsearch.cluster.environment import unpacked
from widthsearch.cluster.node import (
    cpus_of,
    daemons_live,
    reason_of,
    room_for,
    start_ray,
)
from widthsearch.database import records
from widthsearch.database.ledger import Ledger
from widthsearch.errors import TrainingError, UsageError
from widthsearch.plans.kinds import read_plan
from widthsearch.plans.plan import Branch, Slot
from widthsearch.stopping import Stop, interrupt
from widthsearch.study.file import StudyFile, load_study
from widthsearch.study.users_code import too_long
from widthsearch.training.ranks import HANGING_SECONDS, Ranks, runner_of
from widthsearch.training.trial import TrialRunner

log = logging.getLogger(__name__)

#: How long an idle worker sleeps before it asks again.
IDLE_SECONDS = 0.25
#: How often in a row Ray may go away without one training having ended between.
RAY_LOST = 5


def run_on_ray(
    ledger: Ledger, file: StudyFile, stop: Stop, *, workers: int | None, address: str | None
) -> None:
    """Run the trials with Ray Tune, ``workers`` at a time, on a local Ray or on a cluster.

    Without a number, as many as the cluster (or this machine) has room for now.  Where Ray itself goes away
    (its daemons are killed, the head of the cluster is restarted) it is started, or connected to, again.
    """
    start_ray(file.study, workers, address, ledger.progress.say)
    lost, ended = 0, 0
    while True:
        searcher = LedgerSearcher(ledger, file.study.timeout)
        try:
            stop.listen()  # Ray's own handler would abort the driver on SIGTERM
            stop.gently = searcher.stop
            return _run_tune(searcher, file, workers or room_for(file.study))
        except UsageError:
            raise
        except Exception as error:
            lost, ended = (lost + 1 if ledger.ended == ended else 1), ledger.ended
            if lost > RAY_LOST:
                raise UsageError(f"Ray went away {lost} times in a row: {reason_of(error)}") from error
            what = "starting Ray again" if address is None else f"waiting for the cluster at {address}"
            ledger.progress.say(f"Ray went away ({reason_of(error)}); {what}")
            log.info("lost Ray %d times in a row", lost, exc_info=True)
        finally:
            stop.gently = interrupt
            ray.shutdown()
        ledger.close_orphans()
        start_ray(file.study, workers, address, ledger.progress.say, again=True)


def _run_tune(searcher: LedgerSearcher, file: StudyFile, workers: int) -> None:
    study = file.study
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of a worker's death we tell in one line
    searcher.ledger.progress.uses(workers)
    log.info("%d workers with %g CPUs and %g GPUs each", workers, cpus_of(study), study.gpus)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(workers)  # start all workers at once
    with tempfile.TemporaryDirectory(prefix="widthsearch-") as folder, _driver_here(folder):
        try:
            tune.run(
                tune.with_parameters(TrialActor, study=what_workers_need(searcher.ledger, file)),
                resources_per_trial={"cpu": cpus_of(study), "gpu": study.gpus},
                search_alg=searcher,
                scheduler=_Deaths(searcher),
                callbacks=[_Stopping(searcher)],
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
                stop=searcher.idle_is_over,
                storage_path=folder,
                name="tune",
                verbose=0,
                raise_on_failed_trial=False,
                _remote=False,  # also with ray://, where Tune would move the driver to the cluster
            )
        except KeyboardInterrupt:
            if searcher.ray_died:
                raise RuntimeError("one of its daemons died") from None
            if searcher.error is None:
                raise
    if searcher.error is not None:
        raise searcher.error


@contextmanager
def _driver_here(folder: str) -> Iterator[None]:
    """Let Tune run in this process although it is only a client of the cluster (ray://).

    Tune asks the local node for a folder for its own files, and a client has no node.
    """
    from ray.train._internal import storage

    original = storage._get_ray_train_session_dir
    if ray.util.client.ray.is_connected():
        storage._get_ray_train_session_dir = lambda: folder
    try:
        yield
    finally:
        storage._get_ray_train_session_dir = original


def what_workers_need(ledger: Ledger, file: StudyFile) -> dict[str, Any]:
    """The study, by its file and what the call has changed in it, and how it is to be trained."""
    return {
        "file": str(file.path),
        "attribute": file.name,
        "changes": file.plain_changes,
        "files": file.files,
        "fingerprint": ledger.study.user_attrs[records.FINGERPRINT],
        "plan": ledger.plan.to_json(),
        "checkpoints": (ledger.checkpoints.url, ledger.identity),
        "timeout": file.study.timeout,
        "log_level": logging.getLogger("widthsearch").getEffectiveLevel(),
    }


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """A Ray Tune worker: loads the study once, then runs one slot per Tune trial.

    Without a slot it idles, until the searcher knows of one.  Tune would stop a worker that has nothing to
    do between two phases of the search, and a new one takes longer to start than many trainings take.
    """

    def setup(self, config: dict[str, Any], study: dict[str, Any]) -> None:
        """Remember what to load; loading is left to the first training, so that all workers start at once."""
        self._needs = study
        self._runner: TrialRunner | Ranks | None = None
        self._copy: Path | None = None
        self._slots = config["slots"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next slots, in the same process."""
        self._slots = new_config["slots"]
        return True

    def step(self) -> dict[str, Any]:
        """The whole training run, or a moment of idling.

        The outcome travels as JSON: Tune would flatten a dictionary and split its names at "/".
        """
        if not self._slots:
            time.sleep(IDLE_SECONDS)
            return {"ended": 0, "outcome": "", "done": False}
        with _collected(self._needs["log_level"]) as lines:
            try:
                if self._runner is None:
                    self._runner = self._load()
                if (limit := self._needs["timeout"]) is not None:
                    # The runner's own limit does not reach into libraries; this one ends the process.
                    limit = limit * len(self._slots) + HANGING_SECONDS
                    faulthandler.dump_traceback_later(limit, exit=True, file=2)
                ended: dict[str, Any] = {"outcomes": self._runner.run_all([*map(_slot_of, self._slots)])}
            except UsageError as error:  # no other try would help
                ended = {"stop": str(error), "host": socket.gethostname()}
            except TrainingError as error:  # what the workers are to load cannot be loaded
                ended = {"outcomes": [{"error": str(error)} for _ in self._slots]}
            finally:
                faulthandler.cancel_dump_traceback_later()
        return {"ended": 1, "outcome": json.dumps({**ended, "log": lines}), "done": True}

    def cleanup(self) -> None:
        """End the worker's own processes, and remove the copy of the study's files, if there are any."""
        if self._runner is not None:
            self._runner.close()
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)

    def _load(self) -> TrialRunner | Ranks:
        file = unpacked(self._needs["file"], self._needs["files"])
        self._copy = None if file == self._needs["file"] else Path(file).parent
        start = time.monotonic()
        found = load_study(f"{file}:{self._needs['attribute']}").with_plain_changes(self._needs["changes"])
        plan, checkpoints = read_plan(self._needs["plan"]), tuple(self._needs["checkpoints"])
        runner = runner_of(found, plan, checkpoints, self._needs["fingerprint"])
        log.info("study loaded on %s in %.1f s", socket.gethostname(), time.monotonic() - start)
        return runner


@contextmanager
def _collected(level: int) -> Iterator[list[str]]:
    """What the package logs in a worker: it travels to the driver with the outcome, to be logged there."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("widthsearch")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def _slot_of(config: dict[str, Any]) -> Slot:
    branch = config["branch"]
    return Slot(**{**config, "branch": None if branch is None else Branch(*branch)})


class _Stopping(tune.Callback):  # type: ignore[misc]
    """Leaves Tune between two of its steps: what runs goes on from its checkpoint some day.

    (Tune's own way out waits for trainings to end by themselves first, longer than a user waits.)
    """

    def __init__(self, searcher: LedgerSearcher) -> None:
        self._searcher = searcher

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called several times a second."""
        self._searcher.ray_died = not daemons_live()
        if self._searcher.stopped or self._searcher.ray_died:
            raise KeyboardInterrupt


class _Deaths(FIFOScheduler):  # type: ignore[misc]
    """Notes why a worker died or could not start: Tune tells its scheduler, but not its searcher."""

    def __init__(self, searcher: LedgerSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Called before the searcher hears that there was an error."""
        try:  # trial.get_error() looks where Tune copies it to only later
            error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        except (OSError, TypeError):  # Ray knows of none
            return
        if isinstance(error, ray.exceptions.ActorUnavailableError) or "node has died" in str(error):
            where = trial.temporary_state.location.hostname or "of its worker"
            self._searcher.reasons[trial.trial_id] = f"the host {where} died or was cut off"
        elif not isinstance(error, ray.exceptions.ActorDiedError) or "creation" in str(error):
            self._searcher.reasons[trial.trial_id] = reason_of(error)


class LedgerSearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's view of the ledger.  All state is in the database; this only remembers who runs what."""

    def __init__(self, ledger: Ledger, timeout: float | None = None) -> None:
        super().__init__(metric="ended", mode="max")  # Tune insists on a metric in every result
        self.ledger, self.timeout = ledger, timeout
        self.error: Exception | None = None
        # Tune's trial id -> Optuna's number of each slot (None: it has its result already), since when.
        self._numbers: dict[str, tuple[Sequence[int | None], float]] = {}
        self._waiting = False  # nothing new can start until a training ends
        self.reasons: dict[str, str] = {}  # Tune's trial id -> why its worker died
        self.stopped = False
        self.ray_died = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that we never do."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next slot, or none to idle; ``FINISHED`` when all is done."""
        if self.stopped:
            return Searcher.FINISHED
        try:
            step = self.ledger.next_step()
            if isinstance(step, Slot):
                slots, numbers = zip(*self.ledger.take(step), strict=True)
                self._numbers[trial_id] = (numbers, time.monotonic())
                return {"slots": [{**vars(slot), "widths": dict(slot.widths)} for slot in slots]}
        except Exception as error:  # an exception in here would abort Tune in the middle of something
            self._stop(error)
            return Searcher.FINISHED
        self._waiting = bool(self._numbers)
        return {"slots": []} if self._waiting else Searcher.FINISHED

    def idle_is_over(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tune's stopping test, asked at every result of a worker."""
        return result["ended"] == 0 and not self._waiting

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the ledger how the training ended."""
        if trial_id not in self._numbers:
            return  # an idle worker
        numbers, began = self._numbers.pop(trial_id)
        asked = [number for number in numbers if number is not None]
        self._waiting = False
        try:
            ended = json.loads(result["outcome"]) if result and not error else {}
            for line in ended.get("log", ()):
                log.info("trial %d, in its worker: %s", asked[0], line)
            if "stop" in ended:  # the trials stay as they are: they can go on once the trouble is mended
                where = "" if ended["host"] == socket.gethostname() else f" (on {ended['host']})"
                self._stop(UsageError(f"{ended['stop']}{where}"))
            elif "outcomes" in ended:
                for number, outcome in zip(numbers, ended["outcomes"], strict=True):
                    self.ledger.end(number, outcome)
            else:
                reason, late = self.reasons.pop(trial_id, "its worker process died"), False
                if self.timeout is not None:
                    took = time.monotonic() - began
                    late = took >= self.timeout * len(numbers) + HANGING_SECONDS
                    reason = too_long(self.timeout) if late else reason
                for number in asked:
                    self.ledger.fail(number, reason, worker_died=not late)
        except Exception as failure:
            self._stop(failure)

    def stop(self) -> None:
        """Start nothing more, and end what runs: it can be resumed."""
        self.stopped = True

    def _stop(self, error: Exception) -> None:
        self.error = error
        self.stop()

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the database is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

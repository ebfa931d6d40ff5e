"""Training runs on Ray Tune: a worker per training, fed by the ledger."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from widthsearch.cluster import python_files, unpacked
from widthsearch.errors import CheckpointError, TrainingError, UsageError, describe_error
from widthsearch.ledger import Ledger
from widthsearch.plan import Plan, Slot
from widthsearch.stopping import Stop, interrupt
from widthsearch.study import Study, load_study
from widthsearch.trial import TrialRunner

#: How long an idle worker sleeps before it asks again.
IDLE_SECONDS = 0.25


def run_on_ray(
    ledger: Ledger, study: Study, reference: str, stop: Stop, *, workers: int | None, address: str | None
) -> None:
    """Run the trials with Ray Tune, ``workers`` at a time, on a local Ray or on a cluster.

    Without a number, as many as the cluster (or this machine) has room for now.
    """
    folder = tempfile.mkdtemp(prefix="widthsearch-")
    searcher = LedgerSearcher(ledger)
    try:
        _start_ray(study, workers, address)
        stop.gently = _stop_tune
        stop.listen()  # Ray's own handler would abort the driver on SIGTERM
        with _driver_here(folder):
            workers = workers or _room_for(study)
            ledger.progress.workers = workers
            os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(workers))  # start all workers at once
            tune.run(
                tune.with_parameters(TrialActor, study=_what_workers_need(ledger, reference)),
                resources_per_trial={"cpu": _cpus(study), "gpu": study.gpus},
                search_alg=searcher,
                scheduler=_Deaths(searcher),
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
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    if searcher.error is not None:
        raise searcher.error


def _stop_tune() -> None:
    """Tune stops gracefully on SIGUSR1, once it runs."""
    if signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, signal.SIG_IGN, None):
        interrupt()
    os.kill(os.getpid(), signal.SIGUSR1)


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


def _cpus(study: Study) -> float:
    return study.threads if study.cpus is None else study.cpus


def _room_for(study: Study) -> int:
    """How many trainings the cluster can run at a time now, at least one."""
    there = ray.cluster_resources()
    room = there.get("CPU", 0.0) / _cpus(study)
    if study.gpus:
        room = min(room, there.get("GPU", 0.0) / study.gpus)
    return max(1, int(room))


def _what_workers_need(ledger: Ledger, reference: str) -> dict[str, Any]:
    file, _, attribute = reference.rpartition(":")
    return {
        "file": file,
        "attribute": attribute,
        "files": python_files(Path(file)),
        "plan": ledger.plan.to_json(),
        "checkpoints": (ledger.checkpoints.url, ledger.identity),
    }


def _start_ray(study: Study, workers: int | None, address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    # Only the driver talks to the database: its address, perhaps with a password, is not for Ray's processes.
    secret = {name: os.environ.pop(name) for name in ("WIDTHSEARCH_STORAGE",) if name in os.environ}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            cpus = -(-(workers or 1) * _cpus(study) // 1)  # rounded up
            # Small object store: results are a few numbers, data is loaded by each worker.
            ray.init(num_cpus=int(cpus), include_dashboard=False, object_store_memory=100 * 2**20, **quiet)
    except (ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError, ImportError) as error:
        token = " (is the token the cluster's? see RAY_AUTH_TOKEN_PATH)" if address is not None else ""
        raise UsageError(f"no Ray cluster at {address!r}: {describe_error(error)}{token}") from None
    finally:
        os.environ.update(secret)
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if address is None and study.gpus > gpus:
        raise UsageError(f"Study(gpus={study.gpus!r}): this machine has {gpus:g} GPUs that Ray can see")


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """A Ray Tune worker: loads the study once, then runs one slot per Tune trial.

    Without a slot it idles, until the searcher knows of one.  Tune would stop a worker that has nothing to
    do between two phases of the search, and a new one takes longer to start than many trainings take.
    """

    def setup(self, config: dict[str, Any], study: dict[str, Any]) -> None:
        """Remember what to load; loading is left to the first training, so that all workers start at once."""
        self._needs = study
        self._runner: TrialRunner | None = None
        self._slot = config["slot"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next slot, in the same process."""
        self._slot = new_config["slot"]
        return True

    def step(self) -> dict[str, Any]:
        """The whole training run, or a moment of idling.

        The outcome travels as JSON: Tune would flatten a dictionary and split its names at "/".
        """
        if self._slot is None:
            time.sleep(IDLE_SECONDS)
            return {"ended": 0, "outcome": "", "done": False}
        try:
            if self._runner is None:
                self._runner = self._load()
            outcome = self._runner.run(Slot(**self._slot))
        except CheckpointError as error:
            outcome = {"stop": str(error)}
        except (TrainingError, UsageError) as error:
            outcome = {"error": str(error)}
        return {"ended": 1, "outcome": json.dumps(outcome), "done": True}

    def _load(self) -> TrialRunner:
        file = unpacked(self._needs["file"], self._needs["files"])
        study, _, _ = load_study(f"{file}:{self._needs['attribute']}")
        return TrialRunner(study, Plan.from_json(self._needs["plan"]), tuple(self._needs["checkpoints"]))


class _Deaths(FIFOScheduler):  # type: ignore[misc]
    """Notes why a worker died or could not start: Tune tells its scheduler, but not its searcher."""

    def __init__(self, searcher: LedgerSearcher) -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Called before the searcher hears that there was an error."""
        self._searcher.reasons[trial.trial_id] = describe_error(trial.get_error())


class LedgerSearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's view of the ledger.  All state is in the database; this only remembers who runs what."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(metric="ended", mode="max")  # Tune insists on a metric in every result
        self.ledger = ledger
        self.error: Exception | None = None
        self._numbers: dict[str, int] = {}  # Tune's trial id -> Optuna's trial number
        self._waiting = False  # nothing new can start until a training ends
        self.reasons: dict[str, str] = {}  # Tune's trial id -> why its worker died

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that we never do."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """The next slot, or none to idle; ``FINISHED`` when all is done."""
        if self.error is not None:
            return Searcher.FINISHED
        try:
            step = self.ledger.next_step()
            if isinstance(step, Slot):
                self._numbers[trial_id] = self.ledger.ask(step)
                return {"slot": {**vars(step), "widths": dict(step.widths)}}
        except Exception as error:  # an exception in here would abort Tune in the middle of something
            self._stop(error)
            return Searcher.FINISHED
        self._waiting = bool(self._numbers)
        return {"slot": None} if self._waiting else Searcher.FINISHED

    def idle_is_over(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tune's stopping test, asked at every result of a worker."""
        return result["ended"] == 0 and not self._waiting

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the ledger how the training ended."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return  # an idle worker
        self._waiting = False
        try:
            outcome = json.loads(result["outcome"]) if result and not error else {}
            if "val_loss" in outcome:
                self.ledger.tell(number, outcome)
            elif "stop" in outcome:  # the trial stays as it is: it can go on once the trouble is mended
                self._stop(CheckpointError(outcome["stop"]))
            elif "error" in outcome:
                self.ledger.fail(number, outcome["error"])
            else:
                reason = self.reasons.pop(trial_id, "its worker process died")
                self.ledger.fail(number, reason, worker_died=True)
        except Exception as failure:
            self._stop(failure)

    def _stop(self, error: Exception) -> None:
        """End the search with this error; what runs is stopped too, and can be resumed."""
        self.error = error
        _stop_tune()

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the database is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

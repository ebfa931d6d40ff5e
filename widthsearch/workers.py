"""Training runs on Ray Tune: a worker per training, fed by the ledger."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import time
from typing import Any

from widthsearch.errors import TrainingError, UsageError
from widthsearch.plan import Plan, Slot
from widthsearch.search import Ledger
from widthsearch.study import Study, load_study
from widthsearch.trial import TrialRunner

# Before Ray is imported.  Nothing leaves the machine; trials run in the folder where the user started the
# driver (their data() may use relative paths); Tune's own log files and tables are not wanted: the database
# has it all.
for _name, _value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",  # Tune's snapshot of itself: a second truth, never read
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray import tune  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

#: How long an idle worker sleeps before it asks again.
IDLE_SECONDS = 0.25


def run_on_ray(ledger: Ledger, study: Study, reference: str, *, workers: int, address: str | None) -> None:
    """Run the trials with Ray Tune, ``workers`` at a time, on a local Ray or on a cluster."""
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(workers))  # start all workers at once
    _start_ray(workers * study.threads, address)
    folder = tempfile.mkdtemp(prefix="widthsearch-")
    # Ray's own SIGTERM handler aborts the driver; Tune stops gracefully on SIGUSR1.
    previous = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    searcher = LedgerSearcher(ledger)
    config = {"reference": reference, "plan": ledger.plan.to_json()}
    try:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(TrialActor, study=config), {"cpu": study.threads}),
            tune_config=tune.TuneConfig(
                search_alg=searcher, num_samples=-1, max_concurrent_trials=workers, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="tune",
                verbose=0,
                stop=searcher.idle_is_over,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        signal.signal(signal.SIGTERM, previous)
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    if searcher.error is not None:
        raise searcher.error


def _start_ray(cpus: int, address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    try:
        if address is not None:
            ray.init(address=address, **quiet)
        else:
            # Small object store: results are a few numbers, data is loaded by each worker.
            ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=100 * 2**20, **quiet)
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from None


def check_address(address: str) -> None:
    """Raise :class:`UsageError` if nothing answers there; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto", "local"
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UsageError(f"no Ray cluster at {address!r}: {error}") from None


class TrialActor(tune.Trainable):  # type: ignore[misc]
    """A Ray Tune worker: loads the study once, then runs one slot per Tune trial.

    Without a slot it idles, until the searcher knows of one.  Tune would stop a worker that has nothing to
    do between two phases of the search, and a new one takes longer to start than many trainings take.
    """

    def setup(self, config: dict[str, Any], study: dict[str, Any]) -> None:
        """Remember what to load; loading is left to the first training, so that all workers start at once."""
        self._study = study
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
        if self._runner is None:
            loaded, _, _ = load_study(self._study["reference"])
            self._runner = TrialRunner(loaded, Plan.from_json(self._study["plan"]))
        try:
            outcome = self._runner.run(Slot(**self._slot))
        except TrainingError as error:
            outcome = {"error": str(error)}
        return {"ended": 1, "outcome": json.dumps(outcome), "done": True}


class LedgerSearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's view of the ledger.  All state is in the database; this only remembers who runs what."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(metric="ended", mode="max")  # Tune insists on a metric in every result
        self.ledger = ledger
        self.error: Exception | None = None
        self._numbers: dict[str, int] = {}  # Tune's trial id -> Optuna's trial number
        self._waiting = False  # nothing new can start until a training ends

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
        except Exception as error:  # an exception in here would abort Tune with all of its running trials
            self.error = error
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
            else:
                self.ledger.fail(number, outcome.get("error", "the worker process died or raised"))
        except Exception as failure:
            self.error = failure

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the database is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

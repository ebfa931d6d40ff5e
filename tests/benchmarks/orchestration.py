"""What orchestration costs per trial beyond its own training.

    python tests/benchmarks/orchestration.py NAME --workers 2 [--storage URL]
    python tests/benchmarks/orchestration.py --fake [--trials 200] [--workers 2] [--seconds 0.2]

From the database of a study that finished without interruption: workers x wall seconds - sum of training
seconds, per trial.  With ``--fake``, the same for trials that only sleep, in three ways on the same kind of
SQLite database: widthsearch's own driver, Optuna's plain ``study.optimize`` (one trial after the other), and
Ray Tune's own Optuna searcher, set up like widthsearch's Ray (no loggers, hardly a snapshot).  Each way has a
process of its own.  The wall clock starts when the first objective does (start-up, which is printed apart) and
ends with the last.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from widthsearch.cluster.environment import prepare_environment
from widthsearch.database.connection import Database, open_storage, url_from
from widthsearch.database.records import SECONDS, load

STUDY = '''
"""Trials that only sleep: one look at the network, so that it counts as a training, and then nothing."""

import time

import torch
from torch import nn

from widthsearch import Budget, Study


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def data():
    return torch.ones(8, 8), torch.ones(8, 8)


def train(network, data, report):
    start = time.perf_counter()
    network.train()(data[0]).square().mean().backward()
    time.sleep(max(0.0, {seconds} - (time.perf_counter() - start)))
    report(val_loss=1.0)


study = Study(
    model=model,
    data=data,
    budget=Budget(params="0.5x", macs="any"),
    train=train,
    steps=1,
    rounds=1,
    replicas={tenth},
    seeds={tenth},
    report_seeds={report_seeds},
)
'''


class Timing(NamedTuple):
    """Of one way: when it began, and of each trial when its objective began and ended (time.time())."""

    began: float
    starts: list[float]
    ends: list[float]
    slots: int

    def line(self, way: str) -> str:
        n, wall = len(self.ends), max(self.ends) - min(self.starts)
        objective = sum(end - start for start, end in zip(self.starts, self.ends, strict=True))
        return (
            f"{way:<34} {n:>6} {self.slots:>5} {min(self.starts) - self.began:>10.1f} {wall:>7.1f} "
            f"{objective / n:>11.3f} {(self.slots * wall - objective) / n:>12.3f}"
        )


HEADER = (
    f"{'way':<34} {'trials':>6} {'slots':>5} {'start-up s':>10} {'wall s':>7} {'objective s':>11} "
    f"{'overhead s':>12}"
)


def timing_of(trials: list[FrozenTrial], slots: int, began: float | None = None) -> Timing:
    """From the database of a widthsearch study, which knows when a trial was told and how long it took."""
    told = [t.datetime_complete.timestamp() for t in trials if t.datetime_complete]
    starts = [end - t.user_attrs[SECONDS] for end, t in zip(told, trials, strict=True)]
    return Timing(min(starts) if began is None else began, starts, told, slots)


# From a finished study ---------------------------------------------------------------------------------


def finished_study(name: str, workers: int, storage: str | None) -> None:
    trials = load(name, Database.open(url_from(storage))).get_trials(states=(TrialState.COMPLETE,))
    print(HEADER, timing_of(trials, workers).line(name), sep="\n")


# Trials that only sleep --------------------------------------------------------------------------------


def by_widthsearch(folder: Path, trials: int, seconds: float, workers: int) -> Timing:
    from widthsearch.driver.launch import launch
    from widthsearch.driver.run import Session
    from widthsearch.show.progress import Tracker

    # One round, as nobody knows when a search stops before its last one: measures, scores and baselines of a
    # tenth each, the rest in pairs on fresh seeds.
    tenth = max(1, trials // 10)
    text = STUDY.replace("{seconds}", repr(seconds)).replace("{tenth}", str(tenth))
    file = folder / "fake.py"
    file.write_text(text.replace("{report_seeds}", str(max(2, (trials - 3 * tenth) // 2))))
    url = f"sqlite:///{folder / 'widthsearch.db'}"
    began = time.time()
    prepare_environment(None)
    from widthsearch.cluster.workers import (
        run_on_ray,  # only now: Ray reads its environment when it is imported
    )

    with Path(os.devnull).open("w") as nowhere:
        backend = partial(run_on_ray, workers=workers, address=None)
        ended = launch(str(file), Session(url, backend, Tracker(Console(file=nowhere))))
    assert ended.status == "finished", ended
    done = load("fake", Database.open(url)).get_trials(states=(TrialState.COMPLETE,))
    return timing_of(done, workers, began)


def by_optuna(folder: Path, trials: int, seconds: float, _workers: int) -> Timing:
    """``study.optimize``, one after the other: what asking and telling a database costs at the least."""
    starts, ends = [], []

    def objective(trial: optuna.Trial) -> float:
        starts.append(time.time())
        for name in ("0", "2"):
            trial.suggest_int(name, 1, 64)
        time.sleep(max(0.0, seconds - (time.time() - starts[-1])))
        ends.append(time.time())
        return 1.0

    began = time.time()
    storage = open_storage(f"sqlite:///{folder / 'optuna.db'}", create=True)
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=trials, n_jobs=1)
    return Timing(began, starts, ends, 1)


def by_ray_tune(folder: Path, trials: int, seconds: float, workers: int) -> Timing:
    """Ray Tune's own Optuna searcher; a class trainable, which is the kind that can reuse its process."""
    began = time.time()
    prepare_environment(None)
    import ray  # only now: Ray reads its environment when it is imported
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    class Sleep(tune.Trainable):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            start = time.time()
            time.sleep(seconds)
            return {"loss": 1.0, "start": start, "end": time.time(), "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level="error",
        log_to_driver=False,
    )
    try:
        searcher = OptunaSearch(
            {name: optuna.distributions.IntDistribution(1, 64) for name in ("0", "2")},
            metric="loss",
            mode="min",
            sampler=optuna.samplers.RandomSampler(seed=0),
            storage=open_storage(f"sqlite:///{folder / 'tune.db'}", create=True),
            study_name="tune",
        )
        tuner = tune.Tuner(
            Sleep,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=trials,
                max_concurrent_trials=workers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=str(folder / "tune"),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # nothing to keep
            ),
        )
        metrics = [result.metrics for result in tuner.fit()]
    finally:
        ray.shutdown()
    return Timing(began, [m["start"] for m in metrics], [m["end"] for m in metrics], workers)


WAYS: dict[str, Callable[[Path, int, float, int], Timing]] = {
    "widthsearch": by_widthsearch,
    "Ray Tune with OptunaSearch": by_ray_tune,
    "study.optimize(n_jobs=1)": by_optuna,
}


def timed(way: str, trials: int, seconds: float, workers: int) -> Timing:
    """One way, in its own process and folder, without what Ray and Optuna warn of while they work."""
    warnings.simplefilter("ignore")
    logging.getLogger("ray").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="widthsearch-", ignore_cleanup_errors=True) as name:
        return WAYS[way](Path(name), trials, seconds, workers)


def fake(trials: int, seconds: float, workers: int) -> None:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("ray", "optuna", "torch", "sqlalchemy"))
    print(
        f"{machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {libraries}, SQLite {sqlite3.sqlite_version}; {time.strftime('%F')}"
    )
    print(f"objective: {seconds} s of sleep; overhead: (slots x wall - all objectives) / trials")
    print(HEADER, flush=True)
    for way in WAYS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            print(process.submit(timed, way, trials, seconds, workers).result().line(way), flush=True)


def machine() -> str:
    """The processor's name, where the system tells it."""
    found = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            found = line.partition(":")[2].strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", nargs="?", help="a finished study")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--storage")
    parser.add_argument("--fake", action="store_true", help="trials that only sleep")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.2)
    args = parser.parse_args()
    if args.fake == (args.name is not None):
        parser.error("give the name of a finished study, or --fake")
    if args.fake:
        fake(args.trials, args.seconds, args.workers)
    else:
        finished_study(args.name, args.workers, args.storage)


if __name__ == "__main__":
    main()

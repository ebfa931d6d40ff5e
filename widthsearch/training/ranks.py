"""One training by several processes: each runs the user's own loop, as one rank of ``torch.distributed``.

They get the environment that ``torchrun`` would give them, and a process group, so a loop wraps its network
in ``DistributedDataParallel`` as ever.  Each rank has the network, and its gates: these draw the same noise
in all of them, and move by the mean of their gradients.  What rank 0 finds counts.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from widthsearch.errors import TrainingError, UsageError
from widthsearch.plans.kinds import read_plan
from widthsearch.plans.plan import Slot, StudyPlan
from widthsearch.stopping import SIGNALS
from widthsearch.study.file import StudyFile, load_study
from widthsearch.study.users_code import too_long
from widthsearch.training.trial import TrialRunner

#: How long a training whose time is over may take to notice that.
HANGING_SECONDS = 10.0
#: How often a process looks whether its time is over, or the one that started it is gone.
LOOK_SECONDS = 0.5


def runner_of(
    file: StudyFile,
    plan: StudyPlan,
    checkpoints: tuple[str, str],
    fingerprint: Mapping[str, str] | None = None,
) -> TrialRunner | Ranks:
    """Who runs the slots of a study: this process, or several of its own."""
    if file.study.processes == 1:
        return TrialRunner(file.study, plan, checkpoints, fingerprint)
    return Ranks(file, plan, checkpoints, fingerprint)


class Ranks:
    """Runs slots as :class:`TrialRunner` does, in several processes, which stay for the next training.

    They die with this process; where one of them dies or fails, all do, and the next training starts others.
    """

    def __init__(
        self,
        file: StudyFile,
        plan: StudyPlan,
        checkpoints: tuple[str, str],
        fingerprint: Mapping[str, str] | None,
    ) -> None:
        self._file, self._given = file, (plan, checkpoints, fingerprint)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection[Any, Any]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def run_all(self, slots: Sequence[Slot]) -> list[dict[str, Any]]:
        """As that of :class:`TrialRunner`."""
        try:
            if not self._processes:
                self._start()
            for pipe in self._pipes:
                pipe.send(list(slots))
            return self._answers()[0]
        except (TrainingError, OSError) as error:
            self.close()
            return [{"error": str(error)} for _ in slots]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        for pipe in self._pipes:
            pipe.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._pipes, self._folder = [], [], None

    def _answers(self) -> dict[int, list[dict[str, Any]]]:
        """What each rank says; :class:`TrainingError` as soon as one fails: the others would wait for it."""
        answers: dict[int, list[dict[str, Any]]] = {}
        limit = self._file.study.timeout
        ends = math.inf if limit is None else time.monotonic() + limit + HANGING_SECONDS
        while len(answers) < len(self._pipes):
            left = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            ready = wait(left, LOOK_SECONDS)
            if limit is not None and time.monotonic() > ends:
                raise TrainingError(too_long(limit))
            for rank, pipe in enumerate(self._pipes):
                if pipe in ready:
                    answers[rank] = self._answer(rank, pipe)
        return answers

    def _answer(self, rank: int, pipe: Connection[Any, Any]) -> list[dict[str, Any]]:
        who = f"process {rank} of {len(self._pipes)}"
        try:
            answer = pipe.recv()
        except (EOFError, ConnectionError):
            raise TrainingError(f"{who} of the training died") from None
        if isinstance(answer, UsageError):
            raise answer
        outcomes: list[dict[str, Any]] = answer
        for outcome in outcomes:
            if "error" in outcome:
                raise TrainingError(f"{outcome['error']} (in {who})")
        return outcomes

    def _start(self) -> None:
        number, (plan, *rest) = self._file.study.processes, self._given
        self._folder = tempfile.TemporaryDirectory(prefix="widthsearch-ranks-")
        store = Path(self._folder.name, "store")
        with socket.socket() as free:  # of a loop that starts a store of its own
            free.bind(("127.0.0.1", 0))
            own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        for rank in range(number):
            mine, theirs = Pipe()
            ranked = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno()), str(store)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **own, **{name: str(value) for name, value in ranked.items()}},
                )
            )
            theirs.close()
            self._pipes.append(mine)
            mine.send((self._file.reference, self._file.plain_changes, plan.to_json(), *rest))


def _serve(pipe: Connection[Any, Any], store: str) -> None:
    """What a rank does: load the study once, then train what it is sent."""
    for number in SIGNALS:  # it is the process that started us that is asked to stop
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    reference, changes, plan, checkpoints, fingerprint = pipe.recv()
    try:
        file = load_study(reference).with_plain_changes(changes)
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if torch.cuda.is_available():
            torch.cuda.set_device(rank % torch.cuda.device_count())
        distributed.init_process_group(init_method=f"file://{store}", rank=rank, world_size=size)
        runner = TrialRunner(file.study, read_plan(plan), checkpoints, fingerprint)
        with suppress(EOFError):
            while True:
                pipe.send(runner.run_all(pipe.recv()))
    except UsageError as error:
        pipe.send(error)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), sys.argv[2])

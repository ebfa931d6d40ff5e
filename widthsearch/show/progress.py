"""What a person sees while a search runs: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import optuna
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from widthsearch.database.records import KIND, REPLICA, SECONDS, forgiven_in, runs_of
from widthsearch.errors import UsageError
from widthsearch.plans.plan import LABELS, Slot, StudyPlan
from widthsearch.report.progress import seconds_left
from widthsearch.show.console import say
from widthsearch.show.formats import duration
from widthsearch.show.tensorboard import Board

#: A training stalls that takes so many times as long as the longest of its kind, and so long at least.
STALLED, STALLED_SECONDS = 3, 60.0


class Tracker:
    """Counts trials, remembers how long each kind takes, and prints one plain line per finished trial."""

    def __init__(self, console: Console, board: Board | None = None) -> None:
        self.console, self.workers, self.board = console, 1, board

    def uses(self, workers: int) -> None:
        """So many trainings run at a time: what is left takes that much less time."""
        self.workers = max(1, workers)

    def begin(self, plan: StudyPlan, study: optuna.Study) -> None:
        """Start, or go on from the trials that are there."""
        self.plan, self.study = plan, study
        self.start = time.monotonic()
        self.running: dict[int, tuple[Slot, float]] = {}  # and since when
        self.done: list[tuple[str, int]] = []  # kinds and replicas
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.round, self.failures = 0, 0
        self.gain: float | None = None
        if self.board is not None:
            self.board.begin(study)
        for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)):
            if KIND in trial.user_attrs:
                self._count(trial.user_attrs[KIND], trial.user_attrs[REPLICA], trial.user_attrs)
        self.say(f"{study.study_name}: {plan.headline()}")
        if self.done:
            self.say(f"going on after {len(self.done)} finished trials")

    def say(self, text: str) -> None:
        """Print one line; :class:`UsageError` where that cannot be: the search stops, and can be resumed."""
        try:
            say(text, self.console)
        except (SystemExit, ValueError) as error:  # Rich ends a process whose pipe was closed
            raise UsageError(
                "nothing can be printed any more (it was closed): write into a file: > search.log"
            ) from error

    def started(self, number: int, slot: Slot) -> None:
        """A trial was handed to a worker."""
        self.running[number] = (slot, time.monotonic())
        self.round = max(self.round, slot.round)

    def finished(self, number: int, slot: Slot, outcome: Mapping[str, Any]) -> None:
        """A trial completed."""
        self._note(number, slot, outcome)
        self.say(
            f"[{duration(time.monotonic() - self.start):>6}] trial {number}: {slot}  "
            f"loss {outcome['val_loss']:.4f}  {outcome[SECONDS]:.1f}s  ({self.state()})"
        )

    def failed(self, number: int, slot: Slot, error: str) -> None:
        """A trial failed."""
        self.running.pop(number, None)
        self.failures += 1
        self.say(f"trial {number}: {slot} failed: {error}")

    def dropped(self, number: int) -> None:
        """A trial was interrupted."""
        self.running.pop(number, None)

    def end(self) -> None:
        """Lines were printed as they came."""
        if self.board is not None:
            self.board.close()

    def _note(self, number: int, slot: Slot, outcome: Mapping[str, Any]) -> None:
        self.running.pop(number, None)
        self._count(slot.kind, slot.replica, outcome)
        if slot.kind == "score":
            self.gain = self._gain()
        if self.board is not None:
            self.board.add(number, slot.kind, slot.branch and slot.branch.arm, outcome)

    def _count(self, kind: str, replica: int, outcome: Mapping[str, Any]) -> None:
        self.done.append((kind, replica))
        self.seconds[kind].append(outcome[SECONDS])

    def stalled(self) -> list[str]:
        """A note on each training that runs much longer than any of its kind did so far."""
        notes = []
        for number, (slot, since) in self.running.items():
            took, longest = time.monotonic() - since, max(self.seconds[slot.kind], default=math.inf)
            if took > max(STALLED_SECONDS, STALLED * longest):
                notes.append(
                    f"trial {number} has run for {duration(took)}, the longest {LABELS[slot.kind]} so far "
                    f"for {duration(longest)}: does it hang?  Study(timeout=...) ends those that do"
                )
        return notes

    def state(self) -> str:
        """One phrase: how far, best gain so far, time left."""
        expected = self._expected()
        parts = [f"{len(self.done)} of at most {sum(expected.values())}"]
        if self.gain is not None:
            parts.append(f"best gain so far {self.gain:+.4f}")
        if (left := seconds_left(expected, self.seconds, self.workers)) is not None:
            parts.append(f"at most {duration(left)} left")
        return ", ".join(parts)

    def _expected(self) -> dict[str, int]:
        running = ((slot.kind, slot.replica) for slot, _ in self.running.values())
        return self.plan.expected_after([*self.done, *running])

    def _gain(self) -> float | None:
        """Best round against the baseline, on the seeds that select (optimistic; the verdict is not)."""
        runs = runs_of(self.study.get_trials(deepcopy=False), forgiven_in(self.study))
        return self.plan.gain_so_far(runs)


class LiveTracker(Tracker):
    """The same facts as a panel that redraws itself; failures still scroll by above it."""

    def begin(self, plan: StudyPlan, study: optuna.Study) -> None:
        """Start the panel; that of a family's member before stays above it."""
        self.end()
        super().begin(plan, study)
        self.live = Live(get_renderable=self.render, console=self.console, refresh_per_second=4)
        self.live.start()

    def end(self) -> None:
        """Leave the last panel on the screen."""
        super().end()
        if hasattr(self, "live"):
            self.live.stop()

    def finished(self, number: int, slot: Slot, outcome: Mapping[str, Any]) -> None:
        """Count; the panel shows it at its next refresh."""
        self._note(number, slot, outcome)

    def render(self) -> Group:
        """The panel."""
        expected = self._expected()
        grid = Table.grid(padding=(0, 2))
        for kind, label in LABELS.items():
            if kind not in expected:
                continue
            done = len(self.seconds[kind])
            bar = ProgressBar(total=expected[kind], completed=done, width=30)
            grid.add_row(label, bar, f"{done} / {expected[kind]}")
        idle = "ending" if self.done else "starting workers"
        running = ", ".join(str(s) for s, _ in self.running.values()) or idle
        elapsed = duration(time.monotonic() - self.start)
        failures = f", {self.failures} failed" if self.failures else ""
        where: str = self.plan.kind
        if where == "search":
            where = f"round {self.round + 1} of at most {self.plan.plan.rounds}"
        return Group(
            Text(f"{where}   {elapsed}   {self.state()}{failures}"),
            grid,
            Text(f"running: {running}", style="dim"),
            *(Text(note, style="yellow") for note in self.stalled()),
        )

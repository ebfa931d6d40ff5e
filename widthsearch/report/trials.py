"""The trials of a study, read in one way: for summaries, tables, frames and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial

from widthsearch.database import records
from widthsearch.maths.intervals import Stats, mean_se
from widthsearch.plans.plan import Branch, Kind, Run, Slot
from widthsearch.plans.words import candidate_name
from widthsearch.report.types.common import Spent
from widthsearch.report.types.kinds import Level
from widthsearch.report.types.search import SearchSummary

Source = tuple[str, int, float]  # kind, round, step
BySource = Mapping[Source, Sequence["Trial"]]
Measured = Literal["val_loss", "val_accuracy", "test_loss", "test_accuracy"]


@dataclass(frozen=True)
class Trial:
    """One training run; ``None`` for what is not known.

    ``state``: Optuna's name for it; ``kind`` to ``branch``: as in its slot; ``widths`` and ``prune_ratio``
    are by width variable; ``levels``: of a pruner's run, the over-wide network first; ``run``: what plans
    go by.
    """

    number: int
    state: str
    kind: Kind
    round: int
    replica: int
    step: float
    branch: Branch | None
    arm: str | None
    val_loss: float | None
    val_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    macs: int | None
    params: int | None
    training_macs: int | None
    seconds: float | None
    host: str | None
    widths: Mapping[str, int]
    prune_ratio: Mapping[str, float] | None
    error: str | None
    levels: Sequence[Level]
    run: Run

    @property
    def complete(self) -> bool:
        """Whether it came to its end."""
        return self.state == "COMPLETE"

    @property
    def source(self) -> Source:
        """What it has in common with the other replicas."""
        return (self.kind, self.round, self.step)

    def __str__(self) -> str:
        """What it was for: ``round 0 measure 2``."""
        return str(Slot(self.kind, self.round, self.replica, self.widths, self.step, self.branch))

    @property
    def network(self) -> str:
        """What was trained, in words: ``over-wide``, ``uniform widths``, ``round 1, step 0.3``."""
        over_wide = self.kind in ("measure", "pruned", "sweep")
        return "over-wide" if over_wide else candidate_name(self.round, self.step)

    def flat(self) -> dict[str, Any]:
        """One row of a frame: ``width_NAME`` and ``prune_ratio_NAME`` for every variable.

        Rounds count from 1 here, as on all pages; what belongs to none has no round and no step.
        """
        other = ("branch", "widths", "prune_ratio", "levels", "run")
        in_round = self.round >= 0
        return {
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in other},
            "round": 1 + self.round if in_round else None,
            "step": self.step if in_round and self.kind != "measure" else None,
            "network": self.network,
            **{f"width_{v}": w for v, w in self.widths.items()},
            **{f"prune_ratio_{v}": p for v, p in (self.prune_ratio or {}).items()},
        }


def trials_of(study: optuna.Study) -> list[Trial]:
    """The training runs of a study, in the order of their numbers."""
    return read(study.get_trials(deepcopy=False), study)


def read(found: Iterable[FrozenTrial], study: optuna.Study) -> list[Trial]:
    """The training runs among Optuna's trials of a study: none that somebody asked for by hand."""
    forgiven = records.forgiven_in(study)
    return [_read(trial, run) for trial in found for run in records.runs_of([trial], forgiven)]


def _read(trial: FrozenTrial, run: Run) -> Trial:
    a = trial.user_attrs
    _, round_, replica, step = run.key
    return Trial(
        number=trial.number,
        state=trial.state.name,
        kind=a[records.KIND],
        round=round_,
        replica=replica,
        step=step,
        branch=run.branch,
        arm=None if run.branch is None else run.branch.arm,
        val_loss=trial.value,
        val_accuracy=a.get(records.ACCURACY),
        test_loss=a.get(records.TEST_LOSS),
        test_accuracy=a.get(records.TEST_ACCURACY),
        macs=a.get(records.MACS),
        params=a.get(records.PARAMS),
        training_macs=a.get(records.TRAINING_MACS),
        seconds=a.get(records.SECONDS),
        host=a.get(records.HOST),
        widths=run.widths,
        prune_ratio=run.prune_ratio,
        error=a.get(records.ERROR),
        levels=a.get(records.LEVELS, ()),
        run=run,
    )


def completed(trials: Iterable[Trial]) -> list[Trial]:
    """Those that came to their end."""
    return [t for t in trials if t.complete]


def by_source(trials: Iterable[Trial]) -> BySource:
    """The replicas of everything that was trained to its end."""
    found: dict[Source, list[Trial]] = {}
    for trial in completed(trials):
        found.setdefault(trial.source, []).append(trial)
    return found


def by_seed(trials: BySource, source: Source, replicas: range, of: Measured = "val_loss") -> dict[int, float]:
    """replica -> loss, or what else was measured, where the trial has it."""
    found = ((t.replica, getattr(t, of)) for t in trials.get(source, ()))
    return {replica: value for replica, value in found if replica in replicas and value is not None}


def mean_of(trials: BySource, source: Source, replicas: range, of: Measured = "val_loss") -> Stats | None:
    """Its mean over these replicas."""
    return mean_se(list(by_seed(trials, source, replicas, of).values()))


def spent(trials: Iterable[Trial]) -> Spent:
    """What all trainings that came to their end cost."""
    done = completed(trials)
    return {
        "training_macs": sum(t.training_macs or 0 for t in done),
        "seconds": round(sum(t.seconds or 0.0 for t in done), 3),
    }


# What figures of a search are made of --------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """A network that the search scored: a start (round -1) or a proposal, perhaps once more in the run-off.

    ``search_cost``: what the search had cost by then, in uniform trainings; ``rank``: the less, the better,
    as the search itself ranks: the run-off has the last word, then lost trainings count, then the mean loss.
    """

    round: int
    step: float
    widths: Mapping[str, int]
    val_loss: Stats
    search_cost: float
    rank: tuple[bool, int, float]

    @property
    def is_baseline(self) -> bool:
        """Whether it is the seed network, scaled uniformly."""
        return self.round < 0 and not self.step


def scored_candidates(summary: SearchSummary, trials: Iterable[Trial]) -> list[Scored]:
    """The baseline and all proposals that have a loss, in the order in which they were first known.

    The cost is that of all searching trials up to the candidate's last, in the order of their numbers; of a
    start up to its last before the first measure: the search goes on from there.  Those of the run-off come
    once more, on all of their seeds.
    """
    selecting = range(summary["selection_seeds"])
    first = selecting[: len(selecting) - summary["run_off_seeds"]]
    so_far, price, measured = 0, None, False
    losses: dict[tuple[Source, bool], list[float]] = {}
    last: dict[tuple[Source, bool], tuple[int, Trial]] = {}
    for t in completed(trials):
        if t.kind == "baseline" and price is None:
            price = t.training_macs
        if t.kind == "report" or (t.kind != "measure" and t.replica not in selecting):
            continue
        so_far += t.training_macs or 0
        measured = measured or t.kind == "measure"
        if t.kind != "measure" and t.val_loss is not None:
            run_off = t.replica not in first
            before = losses.get((t.source, False), []) if run_off else []
            losses.setdefault((t.source, run_off), list(before)).append(t.val_loss)
            if run_off or t.round >= 0 or not measured or (t.source, run_off) not in last:
                last[t.source, run_off] = (so_far, t)
    found = []
    for (source, run_off), (cost, t) in sorted(last.items(), key=lambda item: item[1][0]):
        stats = mean_se(losses[source, run_off])
        if stats is not None and price:
            lost = len(selecting if run_off else first) - stats["n"]
            rank = (not run_off, lost, stats["mean"])
            found.append(Scored(t.round, t.step, t.widths, stats, cost / price, rank))
    return found


def paired_losses(
    summary: SearchSummary, trials: Iterable[Trial]
) -> tuple[dict[int, float], dict[int, float], bool]:
    """Replica -> loss of the baseline and of the best candidate; and whether these are fresh seeds."""
    first, candidate = summary["selection_seeds"], summary["candidate"]
    done = completed(trials)

    def losses(kind: str, fresh: bool) -> dict[int, float]:
        of = None if candidate is None or kind == "baseline" else (candidate["round"], candidate["step"])
        return {
            t.replica: t.val_loss
            for t in done
            if t.kind == kind and of in (None, (t.round, t.step)) and (t.replica >= first) == fresh
            if t.val_loss is not None
        }

    own = {} if candidate is None else losses("report", True)
    fresh = bool(own or (candidate is None and losses("baseline", True)))
    if candidate is not None and not fresh:
        own = losses("score", False)
    return losses("baseline", fresh), own, fresh

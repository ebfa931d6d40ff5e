"""Studies with many trials of which none was trained: the search played in memory, its trials written at once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from commands import interrupt
from optuna.trial import FrozenTrial, create_trial

from widthsearch.database import records
from widthsearch.database.connection import Database
from widthsearch.database.records import load, plan_of
from widthsearch.database.sampler import search_space
from widthsearch.plans.history import PAIR, History
from widthsearch.plans.plan import Plan, Run, Slot


def play(file: Path, url: str, many: int, **changes: Any) -> optuna.Study:
    """Launch a study, and play its first ``many`` trials in a copy in memory, which is faster than a database.

    ``changes`` replace fields of the file's ``Study``.
    """
    interrupt(file, 0, url, **changes)
    launched = load(file.stem, Database.open(url))
    study = optuna.create_study(study_name=launched.study_name)
    for name, value in launched.user_attrs.items():
        study.set_user_attr(name, value)
    fill(study, many)
    return study


def fill(study: optuna.Study, many: int, units: float = 1.0) -> None:
    """Add the first ``many`` trials of the search to a study that was launched and stopped before its first.

    ``units``: by how many the measures of a round differ, up or down.
    """
    plan, noise = plan_of(study).plan, random.Random(0)
    space = search_space(plan)
    runs: list[Run] = []
    made: list[FrozenTrial] = []
    for slot, _ in zip(slots_in_order(plan, runs), range(many), strict=False):
        # The proposals of each round are better than those before, so that it is long until none is new.
        level = 0.7 * 0.97**slot.round if slot.round >= 0 and slot.kind != "measure" else 1.0
        value, outcome = level + noise.gauss(0, 0.01), outcome_of(plan, slot, noise, units)
        attributes = {
            records.ROUND: slot.round,
            records.REPLICA: slot.replica,
            records.STEP: slot.step,
            records.SEED: slot.random_seed(plan.seed),
            records.CHECKPOINT: slot.file,
            records.KIND: slot.kind,
        }
        made.append(
            create_trial(
                value=value,
                params=dict(slot.widths),
                distributions=space,
                user_attrs={**attributes, **outcome},
                constraints={r: outcome[r] / limit - 1 for r, limit in plan.budget.items()},
            )
        )
        runs.append(Run(slot.key, "complete", slot.widths, value, outcome.get(records.PRUNE_RATIO)))
    study.add_trials(made)


def slots_in_order(plan: Plan, runs: list[Run]) -> Iterator[Slot]:
    """All slots of a search in which nothing fails, given the runs of those before.

    ``next_step`` would give the same (test_large_studies.py compares them), but not in a second.
    """
    yield from History(plan, runs).start()
    for round_ in range(plan.rounds):
        for k in range(0, plan.replicas, PAIR):
            if not History(plan, runs).measured(round_):
                pair = range(k, min(k + PAIR, plan.replicas))
                over_wide = History(plan, runs).over_wide(round_)
                yield from (Slot("measure", round_, i, over_wide) for i in pair)
        for given in itertools.count():  # each phase says whether there is another one
            phases = History(plan, runs).proposals(round_)
            if given == len(phases):
                break
            yield from phases[given]
    best = History(plan, runs).best(plan.rounds)
    assert best is not None
    for k in range(plan.seeds, plan.seeds + plan.report_seeds):
        yield Slot("report", best.round, k, best.widths, best.step)
        yield Slot("baseline", -1, k, plan.baseline)


def outcome_of(plan: Plan, slot: Slot, noise: random.Random, units: float = 1.0) -> dict[str, Any]:
    """The attributes of a trained trial.  Layers take turns in being too wide, so no round is balanced."""
    cost = plan.cost.at(slot.widths)
    outcome: dict[str, Any] = {
        records.ACCURACY: noise.uniform(0.5, 1.0),
        records.MACS: cost["macs"],
        records.PARAMS: cost["params"],
        records.TRAINING_MACS: 3 * cost["macs"] * 64,
        records.SECONDS: 0.01,
        records.HOST: "somewhere",
    }
    if slot.kind == "measure":
        pruned = shares(len(slot.widths), slot.round)
        kept = {
            v: max(1, min(w, round(w * (1 - share) + noise.uniform(-units, units))))
            for (v, w), share in zip(slot.widths.items(), pruned, strict=True)
        }
        outcome[records.KEPT] = kept
        outcome[records.PRUNE_RATIO] = {v: 1 - k / slot.widths[v] for v, k in kept.items()}
    return outcome


def shares(many: int, round_: int) -> Sequence[float]:
    """What part of each layer is pruned: 0.2 to 0.7, rising along the network from a layer that moves by round."""
    rising = [0.2 + 0.5 * k / max(1, many - 1) for k in range(many)]
    first = round_ % many
    return rising[first:] + rising[:first]

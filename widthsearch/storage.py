"""What is written into the Optuna database, and reading it back.

The database is the only state of a search.  A study's attributes hold its plan, a trial's attributes one
training run; this file knows what they are called.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from widthsearch.comparison import AnyPlan, read_plan
from widthsearch.database import hide_password
from widthsearch.errors import UsageError
from widthsearch.plan import Branch, Run

# Attributes of a study
PLAN = "widthsearch:plan"  # Plan.to_json()
SOURCE = "widthsearch:source"  # {"file", "name"}: where the Study was loaded from
CHANGES = "widthsearch:changes"  # field of the Study -> value given on the command line
FINGERPRINT = "widthsearch:fingerprint"  # name -> text, what must not change between launch and resume
FROZEN = "widthsearch:frozen"  # [{"name", "width", "reason"}]: would-be width variables
STATUS = "widthsearch:status"  # running | finished | interrupted | failed
STOPPED = "widthsearch:stopped_because"
DRIVER = "widthsearch:driver"  # host and process of the latest driver
IDENTITY = "widthsearch:identity"  # random, so that no other study's checkpoints are taken for this one's
CHECKPOINTS = "widthsearch:checkpoints"  # folder or fsspec URL that all workers share

# Attributes of a trial
KIND, ROUND, REPLICA, SEED = "kind", "round", "replica", "seed"
STEP = "step"  # of a proposal: how far it goes along the round's direction
KEPT, PRUNE_RATIO = "kept", "prune_ratio"
MACS, PARAMS, TRAINING_MACS = "macs", "params", "training_macs"
ACCURACY, TEST_LOSS, TEST_ACCURACY = "accuracy", "test_loss", "test_accuracy"
SECONDS, HOST = "seconds", "host"
LEVELS = "levels"  # of a pruner's run: one dictionary per network, see pruners/sweep.py
ERROR, INTERRUPTED, DIED = "error", "interrupted", "worker_died"
ARM, REPEAT, BUDGET = "arm", "repeat", "budget"  # of a comparison's trials: their branch
CHECKPOINT = "checkpoint"  # the file's name in the study's folder, as long as the trial runs


def study_names(storage: optuna.storages.BaseStorage) -> list[str]:
    """The names of all widthsearch studies in the database, oldest first."""
    return [
        s.study_name
        for s in storage.get_all_studies()  # (Optuna's summaries would read all trials as well)
        if PLAN in s.user_attrs
    ]


def load(name: str | None, storage: optuna.storages.BaseStorage, url: str) -> optuna.Study:
    """Load a widthsearch study; without a name, the latest.  :class:`UsageError` on an unknown name."""
    names = study_names(storage)
    if not names:
        raise UsageError(f"no study in {hide_password(url)!r} yet; launch one first")
    if name is not None and name not in names:
        raise UsageError(f"no study {name!r} in {hide_password(url)!r}; it has {', '.join(names)}")
    return optuna.load_study(study_name=name or names[-1], storage=storage)


def plan_of(study: optuna.Study) -> AnyPlan:
    """The plan written at launch."""
    return read_plan(study.user_attrs[PLAN])


def runs_of(trials: Sequence[FrozenTrial]) -> list[Run]:
    """The training runs among the trials of a study, in the order of their numbers."""
    runs = []
    for trial in trials:
        attrs = trial.user_attrs
        if KIND not in attrs or trial.state == TrialState.WAITING:
            continue  # not (yet) one of ours: asked for by hand, or orphaned before it got its slot
        states = {TrialState.COMPLETE: "complete", TrialState.RUNNING: "running"}
        ended = "interrupted" if attrs.get(INTERRUPTED) else "died" if attrs.get(DIED) else "failed"
        state = states.get(trial.state, ended)
        runs.append(
            Run(
                key=(attrs[KIND], attrs[ROUND], attrs[REPLICA], attrs.get(STEP, 0.0)),
                state=state,  # type: ignore[arg-type]
                widths=trial.params,
                value=trial.value if trial.state == TrialState.COMPLETE else None,
                prune_ratio=attrs.get(PRUNE_RATIO),
                error=attrs.get(ERROR, ""),
                branch=Branch(attrs[BUDGET], attrs[REPEAT], attrs[ARM]) if ARM in attrs else None,
            )
        )
    return runs

"""What is written into the Optuna database, and reading it back.

The database is the only state of a search.  A study's attributes hold its plan, a trial's attributes one
training run; this file knows what they are called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from widthsearch.database.connection import Database
from widthsearch.errors import UsageError
from widthsearch.plans.kinds import read_plan
from widthsearch.plans.plan import Branch, Run, StudyPlan

# Attributes of a study
PLAN = "widthsearch:plan"  # Plan.to_json()
SOURCE = "widthsearch:source"  # {"file", "name"}: where the Study was loaded from
COMMAND = "widthsearch:command"  # [verb, option, ...] that began the study, beside its changes
CHANGES = "widthsearch:changes"  # field of the Study -> value given on the command line
FINGERPRINT = "widthsearch:fingerprint"  # name -> text, what must not change between launch and resume
VERSIONS = "widthsearch:versions"  # package -> version at launch: results depend on torch's
FROZEN = "widthsearch:frozen"  # [{"name", "width", "reason"}]: would-be width variables
MODULES = "widthsearch:modules"  # [[module, the variable whose units it makes]], in order of execution
STATUS = "widthsearch:status"  # running | finished | interrupted | failed
STOPPED = "widthsearch:stopped_because"
DRIVER = "widthsearch:driver"  # host and process of the latest driver
IDENTITY = "widthsearch:identity"  # random, so that no other study's checkpoints are taken for this one's
CHECKPOINTS = "widthsearch:checkpoints"  # folder or fsspec URL that all workers share
FORGIVEN = "widthsearch:forgiven"  # numbers of failed trials that count no more: resume tries again
FAMILY = "widthsearch:family"  # {"name", "members"}: of a study that is one of several, one per budget

# Attributes of a trial
KIND, ROUND, REPLICA, SEED = "kind", "round", "replica", "seed"
STEP = "step"  # of a proposal: how far it goes along the round's direction
KEPT, PRUNE_RATIO = "kept", "prune_ratio"
MACS, PARAMS, TRAINING_MACS = "macs", "params", "training_macs"
ACCURACY, TEST_LOSS, TEST_ACCURACY = "accuracy", "test_loss", "test_accuracy"
SECONDS, HOST = "seconds", "host"
LEVELS = "levels"  # of a pruner's run: one dictionary per network, see pruners/sweep.py
ERROR, DIED = "error", "worker_died"  # a failed trial without an error was interrupted
ARM, REPEAT, BUDGET = "arm", "repeat", "budget"  # of a comparison's trials: their branch
ASKED = "asked"  # by an arm's sampler: log(width / uniform width) per variable, before they are scaled
CHECKPOINT = "checkpoint"  # the file's name in the study's folder, as long as the trial runs


def study_names(storage: optuna.storages.BaseStorage) -> list[str]:
    """The names of all widthsearch studies in the database, oldest first."""
    return [
        s.study_name
        for s in storage.get_all_studies()  # (Optuna's summaries would read all trials as well)
        if PLAN in s.user_attrs
    ]


def load(name: str | None, database: Database) -> optuna.Study:
    """Load a widthsearch study; without a name, the latest.  :class:`UsageError` on an unknown name."""
    names = study_names(database.storage)
    if not names:
        raise UsageError(f"no study in {database.shown!r} yet; launch one first")
    if name is not None and name not in names:
        raise UsageError(f"no study {name!r} in {database.shown!r}; it has {', '.join(names)}")
    return optuna.load_study(study_name=name or names[-1], storage=database.storage)


class Family(NamedTuple):
    """Studies of one study file that differ in their budget alone."""

    name: str
    members: tuple[str, ...]  # names of studies, from the smallest budget to the largest


def family_in(attributes: Mapping[str, Any]) -> Family | None:
    """The family that a study with these attributes belongs to."""
    found = attributes.get(FAMILY)
    return None if found is None else Family(found["name"], tuple(found["members"]))


def family_of(name: str | None, storage: optuna.storages.BaseStorage) -> Family | None:
    """The family of that name; without a name, that of the latest study.  ``None`` if there is none.

    Raises :class:`UsageError` for a family whose launch was killed before all members were written.
    """
    ours = {s.study_name: s.user_attrs for s in storage.get_all_studies() if PLAN in s.user_attrs}
    for attributes in reversed(ours.values()):
        family = family_in(attributes)
        if family is not None and name in (None, family.name):
            if not ours.keys() >= set(family.members):
                raise UsageError(f"the launch of family {family.name!r} was cut short: launch it again")
            return family
        if name is None:
            return None
    return None


def plan_of(study: optuna.Study) -> StudyPlan:
    """The plan written at launch; :class:`UsageError` if another version of this package wrote it."""
    try:
        return read_plan(study.user_attrs[PLAN])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"study {study.study_name!r} was written by another version of widthsearch ({error}): read it "
            "with that one, or launch it again under another name"
        ) from error


def modules_of(study: optuna.Study) -> list[tuple[str, str]]:
    """Which modules make which variable's units, in order of execution."""
    return [(module, variable) for module, variable in study.user_attrs.get(MODULES, [])]


def forgiven_in(study: optuna.Study) -> frozenset[int]:
    """The numbers of the trials whose failures `resume` has taken back."""
    return frozenset(study.user_attrs.get(FORGIVEN, ()))


def runs_of(trials: Sequence[FrozenTrial], forgiven: Collection[int] = ()) -> list[Run]:
    """The training runs among the trials of a study, in the order of their numbers.

    Those ``forgiven`` count as interrupted: see :func:`forgiven_in`.
    """
    runs = []
    for trial in trials:
        attrs = trial.user_attrs
        if KIND not in attrs or trial.state == TrialState.WAITING:
            continue  # not (yet) one of ours: asked for by hand, or orphaned before it got its slot
        states = {TrialState.COMPLETE: "complete", TrialState.RUNNING: "running"}
        taken_back = ERROR not in attrs or trial.number in forgiven
        ended = "interrupted" if taken_back else "died" if attrs.get(DIED) else "failed"
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
                asked=tuple(attrs.get(ASKED, ())),
            )
        )
    return runs

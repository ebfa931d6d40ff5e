"""What is written into the Optuna database, and reading it back.

The database is the only state of a search.  A study's attributes hold its plan, a trial's attributes one
training run; this file knows what they are called.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from widthsearch.database.checks import (
    Check,
    check_family,
    check_run,
    check_study,
    check_widths,
    has,
    is_list_of,
    is_map_of,
    is_pair,
    is_text,
    is_whole,
    reading,
)
from widthsearch.database.connection import Database
from widthsearch.errors import UsageError
from widthsearch.plans.kinds import read_plan
from widthsearch.plans.plan import Branch, Run, StudyPlan
from widthsearch.plans.settings import OPTIONS, check_settings

# Attributes of a study
PLAN = "widthsearch:plan"  # Plan.to_json()
SOURCE = "widthsearch:source"  # {"file", "name"}: where the Study was loaded from
COMMAND = "widthsearch:command"  # [verb, option, ...] that began the study, beside its changes
CHANGES = "widthsearch:changes"  # field of the Study -> value given on the command line
FINGERPRINT = "widthsearch:fingerprint"  # name -> text, what must not change between launch and resume
CODE = "widthsearch:code"  # the study file's text at launch, empty if that is long
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

#: What the attributes of a study must be, where they are there.
CHECKS: Mapping[str, Check] = {
    SOURCE: has(file=is_text, name=is_text),
    COMMAND: lambda v: is_list_of(is_text)(v) and v[:1] and v[0] in OPTIONS,
    CHANGES: lambda v: isinstance(v, dict),
    FINGERPRINT: is_map_of(is_text),
    CODE: is_text,
    VERSIONS: is_map_of(is_text),
    FROZEN: is_list_of(has(name=is_text, width=is_whole, reason=is_text)),
    MODULES: is_list_of(is_pair),
    STATUS: lambda v: v in ("running", "finished", "interrupted", "failed"),
    STOPPED: is_text,
    DRIVER: is_text,
    IDENTITY: lambda v: is_text(v) and re.fullmatch("[0-9a-f]{32}", v) is not None,
    CHECKPOINTS: is_text,
    FAMILY: check_family,
}
NEEDED = {SOURCE, COMMAND, CHANGES, FINGERPRINT, VERSIONS, IDENTITY, CHECKPOINTS}


#: Optuna's table of studies, for what its interface does not offer.
STUDIES = sqlalchemy.table(
    "studies", sqlalchemy.column("study_id"), sqlalchemy.column("study_name", sqlalchemy.String)
)


def studies_in(storage: optuna.storages.BaseStorage) -> dict[str, dict[str, Any]]:
    """Name -> attributes of all widthsearch studies in the database, oldest first."""
    return {name: found for name, found in all_studies(storage).items() if PLAN in found}


def all_studies(storage: optuna.storages.BaseStorage) -> dict[str, dict[str, Any]]:
    """Name -> attributes of all studies in the database, whosever they are, oldest first.

    One whose attributes are no JSON has nothing but an empty plan here, and is refused when it is loaded.
    """
    try:  # (Optuna's summaries would read all trials as well)
        return {s.study_name: s.user_attrs for s in storage.get_all_studies()}
    except ValueError:
        return {name: _attributes_of(name, storage) for name in _names_in(storage)}


def _attributes_of(name: str, storage: optuna.storages.BaseStorage) -> dict[str, Any]:
    try:
        return storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    except ValueError:
        return {PLAN: {}}


def _names_in(storage: optuna.storages.BaseStorage) -> list[str]:
    """The names of all studies, not one of which Optuna lists while a single one holds what is no JSON."""
    assert isinstance(storage, optuna.storages.RDBStorage)
    with storage.engine.connect() as connection:
        names = sqlalchemy.select(STUDIES.c.study_name).order_by(STUDIES.c.study_id)
        return list(connection.scalars(names))


def load(name: str | None, database: Database) -> optuna.Study:
    """Load a widthsearch study; without a name, the latest.

    Raises :class:`UsageError` for an unknown name, and for a study with attributes that no search writes.
    """
    names = list(studies_in(database.storage))
    if not names:
        raise UsageError(f"no study in {database.shown!r} yet; launch one first")
    if name is not None and name not in names:
        raise UsageError(f"no study {name!r} in {database.shown!r}; it has {', '.join(names)}")
    return load_known(name or names[-1], database)


def load_known(name: str, database: Database) -> optuna.Study:
    """Load a study that is in the database, without a look at the others."""
    study = optuna.load_study(study_name=name, storage=database.storage)
    with reading(study.study_name):
        check_study(study.study_name, study.user_attrs, CHECKS, NEEDED)
    return study


class Family(NamedTuple):
    """Studies of one study file that differ in their budget alone."""

    name: str
    members: tuple[str, ...]  # names of studies, from the smallest budget to the largest


def family_in(attributes: Mapping[str, Any]) -> Family | None:
    """The family that a study with these attributes belongs to."""
    found = attributes.get(FAMILY)
    if found is None or not check_family(found):  # a study that is not in order hides no other
        return None
    return Family(found["name"], tuple(found["members"]))


def family_of(name: str | None, storage: optuna.storages.BaseStorage) -> Family | None:
    """The family of that name; without a name, that of the latest study.  ``None`` if there is none.

    Raises :class:`UsageError` for a family whose launch was killed before all members were written.
    """
    ours = studies_in(storage)
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
        plan = read_plan(study.user_attrs[PLAN])
        check_settings(plan.plan)
        check_widths(plan.plan.widths, plan.plan.minimum, plan.plan.multiple_of)
        return plan
    except Exception as error:  # whatever a plan of any content may lead to
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

    Those ``forgiven`` count as interrupted: see :func:`forgiven_in`.  Raises
    ``ValueError`` for one with attributes that no search writes; see :func:`.checks.reading`.
    """
    runs = []
    for trial in trials:
        attrs = trial.user_attrs
        if KIND not in attrs or trial.state == TrialState.WAITING:
            continue  # not (yet) one of ours: asked for by hand, or orphaned before it got its slot
        check_run(trial.number, attrs, trial.params)
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

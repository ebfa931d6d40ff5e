"""What is needed to make a study again: its command, settings, versions and study file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import optuna

from widthsearch.database import records
from widthsearch.plans.settings import OPTIONS
from widthsearch.plans.words import named
from widthsearch.study.fingerprint import CODE


@dataclass(frozen=True)
class Repeat:
    """Command, settings, versions, and the study file's text at launch, empty if that was not kept.

    ``command`` has a line for each command; ``unsaid``: what none of their options can say.
    """

    command: str
    unsaid: Sequence[str]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    code: str


def repeat_of(study: optuna.Study, name: str | None = None) -> Repeat:
    """Read it back from the database alone: a file that it names may be any file.

    ``name``: of a family that the study is a member of, to make all of it again.
    """
    attrs = study.user_attrs
    verb, *options = attrs[records.COMMAND]
    changes, unsaid = dict(attrs[records.CHANGES]), []
    family = records.family_in(attrs)
    if family is not None and name is not None:
        del changes["budget"]  # the member's own
    elif family is not None:
        options = []  # --budgets
        unsaid.append(f"one of the family {family.name!r}, whose page has the command for all of them")
    for setting, value in changes.items():
        if setting == "budget":
            given = {k: v for k, v in value.items() if v is not None and (k, v) != ("batch", 1)}
            options += ["--budget", ",".join(f"{k}={v}" for k, v in given.items())]
        elif setting in OPTIONS[verb]:
            options += [f"--{setting.replace('_', '-')}", str(value)]
        else:
            options += ["--set", f"{setting}={value!r}"]
    plan = records.plan_of(study).plan
    if plan.latency is not None:
        unsaid.append("the latency budget is measured again, and comes out a little different")
    source = attrs[records.SOURCE]
    file = f"{source['file']}:{source['name']}"
    called = name or study.study_name
    naming = [f"--name={called}"] if called.startswith("-") else ["--name", called]
    lines = [shlex.join(["widthsearch", verb, file, *naming, *options])]
    if plan.at_least and ["--rounds", str(plan.at_least)] not in map(list, pairwise(options)):
        lines.append(
            shlex.join(["widthsearch", "resume", *named(study.study_name, "--rounds", str(plan.at_least))])
        )
    return Repeat(
        command="\n".join(lines),
        unsaid=unsaid,
        settings={k: v for k, v in attrs[records.FINGERPRINT].items() if not k.startswith(CODE)},
        versions=attrs[records.VERSIONS],
        code=attrs.get(records.CODE, ""),
    )

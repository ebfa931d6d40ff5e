"""What is needed to make a study again: its command, settings, versions and study file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna

from widthsearch.database import records
from widthsearch.plans.settings import OPTIONS
from widthsearch.study.fingerprint import code_of


@dataclass(frozen=True)
class Repeat:
    """Command, settings, versions, the study file's text, and a remark on whether that was changed since.

    ``command`` has a line for each command; ``unsaid``: what none of their options can say.
    """

    command: str
    unsaid: Sequence[str]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    code: str | None
    remark: str


def repeat_of(study: optuna.Study, name: str | None = None) -> Repeat:
    """Read it back from the database; the study file where it lay at launch, if it is still there.

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
            unsaid.append(f"{setting} was {value!r} instead of the study file's: write it in there")
    plan = records.plan_of(study).plan
    if plan.latency is not None:
        unsaid.append("the latency budget is measured again, and comes out a little different")
    source = attrs[records.SOURCE]
    file = f"{source['file']}:{source['name']}"
    lines = [shlex.join(["widthsearch", verb, file, "--name", name or study.study_name, *options])]
    if plan.at_least and ["--rounds", str(plan.at_least)] not in _pairs(options):
        lines.append(shlex.join(["widthsearch", "resume", study.study_name, "--rounds", str(plan.at_least)]))
    code, remark = _code_of(study)
    return Repeat(
        command="\n".join(lines),
        unsaid=unsaid,
        settings={k: v for k, v in attrs[records.FINGERPRINT].items() if not k.startswith("code of ")},
        versions=attrs[records.VERSIONS],
        code=code,
        remark=remark,
    )


def _pairs(words: Sequence[str]) -> list[list[str]]:
    return [list(pair) for pair in zip(words, words[1:], strict=False)]


def _code_of(study: optuna.Study) -> tuple[str | None, str]:
    """The study file's text, if it is still there, and whether it was changed since launch."""
    path = Path(study.user_attrs[records.SOURCE]["file"])
    fingerprint = study.user_attrs[records.FINGERPRINT]
    try:
        code = path.read_text("utf-8")
        now = code_of({path.name: code.encode()})
        changed = [name for name, digest in now.items() if fingerprint.get(name) != digest]
    except (OSError, SyntaxError, ValueError) as error:
        return None, f"{path} cannot be read: {error}"
    return code, f"changed since launch: {', '.join(changed)}" if changed else "unchanged since launch"

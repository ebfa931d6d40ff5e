"""What is needed to make a study again: its command, settings, versions and study file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import optuna

from widthsearch.database import records
from widthsearch.study.fingerprint import changed_fields, code_of


@dataclass(frozen=True)
class Repeat:
    """Command, settings, versions, the study file's text, and a remark on whether that was changed since."""

    command: str
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    code: str | None
    remark: str


def repeat_of(study: optuna.Study) -> Repeat:
    """Read it back from the database; the study file where it lay at launch, if it is still there."""
    attrs = study.user_attrs
    source, fingerprint = attrs[records.SOURCE], attrs[records.FINGERPRINT]
    path = Path(source["file"])
    before = {k: v for k, v in fingerprint.items() if k.startswith("code of ")}
    code, remark = None, f"{path} is gone"
    try:
        code = path.read_text("utf-8")
        changed = changed_fields(before, code_of(path))
        remark = f"changed since launch: {', '.join(changed)}" if changed else "unchanged since launch"
    except (OSError, SyntaxError, ValueError) as error:
        remark = f"{path} cannot be read: {error}"
    return Repeat(
        command=_command(study.study_name, source, attrs.get(records.CHANGES, {})),
        settings={k: v for k, v in fingerprint.items() if k not in before},
        versions=attrs.get(records.VERSIONS, {}),
        code=code,
        remark=remark,
    )


def _command(name: str, source: Mapping[str, str], changes: Mapping[str, object]) -> str:
    parts = ["widthsearch", "launch", f"{source['file']}:{source['name']}", "--name", name]
    for option, value in changes.items():
        if isinstance(value, Mapping):  # the budget
            value = ",".join(f"{k}={v}" for k, v in value.items() if v is not None)
        parts += [f"--{option}", str(value)]
    return " ".join(map(shlex.quote, parts))

"""A study file: finding the ``Study`` in it, and finding it again later."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from widthsearch.errors import UsageError, describe_error
from widthsearch.study.study import Study


@dataclass(frozen=True)
class StudyFile:
    """A ``Study`` and where it stands: the absolute path of its file, and its name in there.

    ``changes``: the fields of the study that the command line replaced; ``changed``: what is not as it was at
    launch, where that was looked for.
    """

    study: Study
    path: Path
    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    changed: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """``path/to/file.py:name``."""
        return f"{self.path}:{self.name}"

    def with_changes(self, **changes: Any) -> StudyFile:
        """The same file, some fields of its study replaced, as the command line does."""
        return replace(self, study=replace(self.study, **changes), changes={**self.changes, **changes})


def load_study(reference: str) -> StudyFile:
    """Load the ``Study`` of ``path/to/file.py`` or ``path/to/file.py:name``.

    The file's folder is put on ``sys.path``, so that it can import modules beside it.  Raises
    :class:`UsageError` if there is no such file or study, or if the file itself raises.
    """
    file, colon, name = reference.rpartition(":")
    if not colon or not file.endswith(".py"):
        file, name = reference, ""
    return study_in(file, name)


def study_in(file: str, name: str = "") -> StudyFile:
    """The ``Study`` called ``name`` of a file; see :func:`load_study`."""
    path = existing(file)
    if path is None:
        raise UsageError(f"no study file {file!r}; give the path of a Python file that holds a Study")
    module = import_file(path)
    studies = {k: v for k, v in vars(module).items() if isinstance(v, Study)}
    if name and name not in studies:
        raise UsageError(f"{file}: no Study named {name!r}; it has {', '.join(studies) or 'none'}")
    if not studies:
        raise UsageError(f"{file}: no Study in it; it should end with a line study = Study(model=..., ...)")
    if not name and len(studies) > 1 and "study" not in studies:
        raise UsageError(
            f"{file}: several studies ({', '.join(studies)}); say which: {file}:{next(iter(studies))}"
        )
    name = name or ("study" if "study" in studies else next(iter(studies)))
    return StudyFile(studies[name], path, name)


def existing(file: str) -> Path | None:
    """The path without links, if there is such a file."""
    try:
        path = Path(file).expanduser().resolve()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, no text, the home of nobody
        return None


def import_file(path: Path) -> Any:
    """Import a file of the user's; :class:`UsageError` with the line number if it raises."""
    spec = importlib.util.spec_from_file_location(f"_study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path}: {describe_error(error, path)}") from error
    return module

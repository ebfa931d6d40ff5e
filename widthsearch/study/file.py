"""A study file: finding the ``Study`` in it, and finding it again later."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from widthsearch.errors import UsageError
from widthsearch.plans.words import file_and_name
from widthsearch.study.budget import Budget
from widthsearch.study.recipe import Recipe
from widthsearch.study.study import Study
from widthsearch.study.users_code import users_code

#: What the command line may change: the plain fields of a study, and of its recipe.
_CODE = {"model", "data", "recipe", "init", "train", "evaluate", "example", "examples", "callbacks"}
OF_RECIPE = tuple(f.name for f in fields(Recipe) if f.name not in ("loss", "metric", "collate_fn"))
OF_STUDY = tuple(f.name for f in fields(Study) if f.name not in _CODE)


@dataclass(frozen=True)
class StudyFile:
    """A ``Study`` and where it stands: the absolute path of its file, and its name in there.

    ``files``: the study's own code as it was read, which is what workers train (:func:`python_files`).
    ``changes``: the fields of the study that the command line replaced; ``changed``: what is not as it was at
    launch, where that was looked for.
    """

    study: Study
    path: Path
    name: str
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    changes: Mapping[str, Any] = field(default_factory=dict)
    changed: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """``path/to/file.py:name``."""
        return f"{self.path}:{self.name}"

    def with_changes(self, **changes: Any) -> StudyFile:
        """The same file, some plain fields of its study or its recipe replaced, as the command line does.

        Raises :class:`UsageError` for what is no such field.
        """
        check_changes(changes)
        # As the database gives them back: what resume compares is a list then.
        changes = {k: list(v) if isinstance(v, tuple) else v for k, v in changes.items()}
        of_recipe = {name: value for name, value in changes.items() if name in OF_RECIPE}
        own = {name: value for name, value in changes.items() if name not in of_recipe}
        if of_recipe:
            own["recipe"] = replace(self.study.recipe, **of_recipe)
        return replace(self, study=replace(self.study, **own), changes={**self.changes, **changes})

    @property
    def plain_changes(self) -> dict[str, Any]:
        """The changes in JSON's types."""
        return {k: asdict(v) if isinstance(v, Budget) else v for k, v in self.changes.items()}

    def with_plain_changes(self, changes: Mapping[str, Any]) -> StudyFile:
        """The same file with the :attr:`plain_changes` of another time or place."""
        budget = {"budget": Budget(**changes["budget"])} if "budget" in changes else {}
        return self.with_changes(**{**changes, **budget})


def check_changes(changes: Mapping[str, Any]) -> None:
    """:class:`UsageError` for a field that a command line cannot change."""
    known = (*OF_STUDY, *OF_RECIPE)
    for name, value in changes.items():
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"{name}={value!r:.60}: no setting of a study that can be changed here; {hint}")


def load_study(reference: str) -> StudyFile:
    """Load the ``Study`` of ``path/to/file.py`` or ``path/to/file.py:name``.

    The file's folder is put on ``sys.path``, so that it can import modules beside it.  Raises
    :class:`UsageError` if there is no such file or study, or if the file itself raises.
    """
    return study_in(*file_and_name(reference))


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
    return StudyFile(studies[name], path, name, python_files(path))


def python_files(study_file: Path) -> dict[str, bytes]:
    """What a study is made of in its folder, by relative path: Python code, not data.

    The study file, first, modules and packages beside it, and whatever else of the folder is imported by now.
    Where the study is in a package, that is the folder of the package.
    """
    folder = root_of(study_file)
    found = {study_file, *study_file.parent.glob("*.py")}
    packages = {package.parent for package in study_file.parent.glob("*/__init__.py")}
    if folder != study_file.parent:
        packages.add(folder / study_file.relative_to(folder).parts[0])
    for package in packages:
        found.update(package.rglob("*.py"))
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and Path(file).is_relative_to(folder):
            found.add(Path(file))
    found.discard(study_file)
    inside = [path.relative_to(folder) for path in found if "site-packages" not in path.parts]
    names = [study_file.relative_to(folder), *sorted(inside)]
    return {name.as_posix(): (folder / name).read_bytes() for name in names}


def existing(file: str) -> Path | None:
    """The path without links, if there is such a file."""
    try:
        path = Path(file).expanduser().resolve()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, no text, the home of nobody
        return None


def import_file(path: Path) -> Any:
    """Import a file of the user's; :class:`UsageError` with the line number if it raises.

    In a package, it may import relative to that.
    """
    root = root_of(path)
    folders = path.parent.relative_to(root).parts
    name = ".".join((*folders, f"_study_{path.stem}"))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file")
    for folder in (root, path.parent):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their own module up there
    with users_code(what=f"{path}: ", path=path):
        if folders:
            _import_package(".".join(folders), path)
        spec.loader.exec_module(module)
    return module


def _import_package(name: str, path: Path) -> None:
    package = importlib.import_module(name)
    if str(path.parent) not in map(str, getattr(package, "__path__", ())):
        raise UsageError(
            f"{path}: its folder has the name of another package, {name!r} "
            f"({getattr(package, '__file__', 'built in')}), so it cannot import relative to it: rename it"
        )


def root_of(path: Path) -> Path:
    """The folder that a file of the user's is imported from: its own, or that of its outermost package.

    It is taken as a part of a package only where it imports relative to it.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return path.parent  # whoever imports it will say so
    levels = max((n.level for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)), default=0)
    root = path.parent
    while root != root.parent and (levels > 0 or (root != path.parent and (root / "__init__.py").exists())):
        root, levels = root.parent, levels - 1
    return root

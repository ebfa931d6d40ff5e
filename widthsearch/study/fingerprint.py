"""What must not change between launch and resume, as text by name: here a study's code.  Needs no torch."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from widthsearch.errors import describe_error

CODE = "code of "  # how the names of code begin
#: Fields of Study and Recipe that hold code: of a ``Study(...)`` these count, the others are settings.
_CALLED = ("model", "data", "init", "train", "evaluate", "example", "loss", "metric", "collate_fn")
#: A longer study file is not kept in the database.
MOST_BYTES = 50_000


def changed_fields(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, as ``recipe.lr: 0.1 -> 0.2``."""
    changes = []
    for name in sorted({*before, *now}):
        old, new = before.get(name, "absent"), now.get(name, "absent")
        if old != new:
            changes.append(name if name.startswith(CODE) else f"{name}: {old} -> {new}")
    return changes


def changed_code(before: Mapping[str, str], files: Mapping[str, bytes]) -> list[str]:
    """What of the code differs from a fingerprint, as far as that is known before any of it is imported.

    (Which modules of a package without ``__init__.py`` a study imports is only known afterwards.)
    """
    try:
        now = code_of(files)
    except SyntaxError as error:
        return [f"{CODE}the top level ({describe_error(error)})"]
    own = {n: digest for n, digest in before.items() if n in now or (n.startswith(CODE) and "." not in n)}
    return changed_fields(own, now)


def text_of(content: bytes) -> str:
    """The text of a Python file, empty if it is long or cannot be read."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return content.decode(encoding) if len(content) <= MOST_BYTES else ""
    except (SyntaxError, ValueError):
        return ""


def code_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """A digest per function, class and constant of the study file and of what it imports among ``files``.

    ``files``: relative path -> content, the study file first.  They are compared as syntax trees: comments,
    layout and docstrings do not count.  The rest of a file's top level (imports, statements) has one digest.
    Of a ``Study(...)`` only what it calls counts: its other settings are compared one by one.
    """
    digests: dict[str, str] = {}
    study = next(iter(files), "")
    for file in _imported(files, study):
        where = "" if file == study else f"{_module_of(file)}."
        for name, trees in _parts(ast.parse(files[file])).items():
            text = "\n".join(ast.dump(tree) for tree in trees)
            digests[f"{CODE}{where}{name}"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return digests


def _parts(tree: ast.Module) -> dict[str, list[ast.AST]]:
    """The syntax trees of a file by the name that they define, without docstrings."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    parts: dict[str, list[ast.AST]] = {}
    for node in tree.body:
        name, trees = "the top level", list[ast.AST]([node])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = ", ".join(ast.unparse(t) for t in targets)
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("Study"):
                trees = list(_called(node.value))
        parts.setdefault(name, []).extend(trees)
    return parts


def _called(study: ast.Call) -> Iterator[ast.AST]:
    """What a ``Study(...)`` is given that may hold code: by position, by these names, or all at once (**)."""
    for call in ast.walk(study):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("Study", "Recipe")):
            yield from (arg for arg in call.args if not isinstance(arg, ast.Call))
            yield from (k for k in call.keywords if k.arg in _CALLED or k.arg is None)


def _imported(files: Mapping[str, bytes], study: str) -> list[str]:
    """The study file and all that it imports among these files, directly or not, in order of their names."""
    reached = {study} & files.keys()
    waiting = list(reached)
    while waiting:
        file = waiting.pop()
        for name in _imports(ast.parse(files[file]), file):
            for candidate in (f"{name}.py", f"{name}/__init__.py"):
                if candidate in files and candidate not in reached:
                    reached.add(candidate)
                    waiting.append(candidate)
    return sorted(reached)


def _imports(tree: ast.Module, file: str) -> Iterator[str]:
    """The modules that a file may mean by its imports, as paths: ``from a.b import c`` is a/b or a/b/c."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = list(PurePosixPath(file).parts[: -node.level]) if node.level else []
            base = package + (node.module.split(".") if node.module else [])
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in names:  # a package's own file runs, too
            yield from ("/".join(parts[:k]) for k in range(1, len(parts) + 1))


def _module_of(file: str) -> str:
    return ".".join(PurePosixPath(file).with_suffix("").parts).removesuffix(".__init__")

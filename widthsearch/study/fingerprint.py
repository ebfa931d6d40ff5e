"""What must not change between launch and resume: a study's settings, code and data, as text by name."""

from __future__ import annotations

import ast
import hashlib
import tokenize
from collections.abc import Mapping
from pathlib import Path


def changed_fields(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, as ``recipe.lr: 0.1 -> 0.2``."""
    changes = []
    for name in sorted({*before, *now}):
        old, new = before.get(name, "absent"), now.get(name, "absent")
        if old != new:
            changes.append(name if name.startswith("code of") else f"{name}: {old} -> {new}")
    return changes


#: A longer study file is not kept in the database.
MOST_BYTES = 50_000


def text_of(path: Path) -> str:
    """The text of a Python file, empty if it is long or cannot be read."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
    except (OSError, SyntaxError, ValueError):
        return ""
    return text if len(text.encode()) <= MOST_BYTES else ""


def code_of(path: Path) -> dict[str, str]:
    """A digest per function, class and constant of the study file.

    Comments, layout and docstrings do not count; neither does the ``Study`` itself, whose settings are
    compared one by one.
    """
    digests = {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = ", ".join(ast.unparse(t) for t in targets)
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("Study"):
                continue
        else:
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
                inner.body = inner.body[1:]
        digests[f"code of {name}"] = hashlib.sha256(ast.dump(node).encode()).hexdigest()[:12]
    return digests

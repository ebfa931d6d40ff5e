"""Imports point one way, and nothing that `show` needs imports torch or Ray."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "widthsearch"


def listed():
    """What ARCHITECTURE.md's two tables of files name: the package, and the inside of space/."""
    for text in (ROOT / "ARCHITECTURE.md").read_text().split("### Inside `space/`"):
        rows = re.findall(r"^\| (`.+?`) \|", text, flags=re.MULTILINE)
        yield [
            name.removesuffix(".py").removesuffix("/") for row in rows for name in re.findall(r"`(.+?)`", row)
        ]


def order():
    """The modules in the order of the table."""
    return next(listed())


def imports(path):
    """The packages and widthsearch modules that a file imports at its top level (types aside)."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "widthsearch":
            yield from (f"widthsearch.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def files(module):
    return sorted((PACKAGE / module).rglob("*.py")) if module == "space" else [PACKAGE / f"{module}.py"]


def test_every_module_is_in_the_table():
    found = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"} | {"space"}
    assert set(order()) == found
    inside = {p.stem for p in (PACKAGE / "space").iterdir() if not p.name.startswith("__")}
    assert set(list(listed())[1]) == inside


def test_imports_point_upwards():
    modules = order()
    for i, module in enumerate(modules):
        for path in files(module):
            ours = {name.split(".")[1] for name in imports(path) if name.startswith("widthsearch.")}
            assert ours <= set(modules[: i + 1]), f"{path.name} imports {ours - set(modules[: i + 1])}"


def test_what_show_needs_is_light():
    modules = order()
    for module in modules[: modules.index("progress") + 1]:
        packages = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py")}
        assert not packages & {"torch", "ray", "pandas"}, module

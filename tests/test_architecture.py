"""Imports point one way, and nothing that `show` needs imports torch or Ray."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "widthsearch"


PACKAGES = ("space", "pruners", "views", "cli")


def listed(section):
    """What a table of files in ARCHITECTURE.md names, in its order."""
    text = (ROOT / "ARCHITECTURE.md").read_text().split(f"{section}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| (`.+?`) \|", text, flags=re.MULTILINE)
    return [
        name.removesuffix(".py").removesuffix("/") for row in rows for name in re.findall(r"`(.+?)`", row)
    ]


def order():
    """The modules in the order of the table."""
    return listed("## Where things are")


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
    return sorted((PACKAGE / module).rglob("*.py")) if module in PACKAGES else [PACKAGE / f"{module}.py"]


def test_every_module_is_in_the_table():
    found = {p.stem for p in PACKAGE.glob("*.py") if not p.name.startswith("__")} | set(PACKAGES)
    assert set(order()) == found
    for package in PACKAGES:
        inside = {p.stem for p in (PACKAGE / package).iterdir() if not p.name.startswith("__")}
        assert set(listed(f"### Inside `{package}/`")) == inside


def test_imports_point_upwards():
    modules = order()
    for i, module in enumerate(modules):
        for path in files(module):
            ours = {name.split(".")[1] for name in imports(path) if name.startswith("widthsearch.")}
            assert ours <= set(modules[: i + 1]), f"{path.name} imports {ours - set(modules[: i + 1])}"


def test_imports_inside_views_point_upwards():
    modules = listed("### Inside `views/`")
    for i, module in enumerate(modules):
        names = [name.split(".") for name in imports(PACKAGE / "views" / f"{module}.py")]
        ours = {name[2] for name in names if name[:2] == ["widthsearch", "views"]}
        assert ours <= set(modules[:i]), f"{module} imports {ours - set(modules[:i])}"


def test_what_show_needs_is_light():
    modules = order()
    for path in (path for module in modules[: modules.index("views") + 1] for path in files(module)):
        packages = {name.split(".")[0] for name in imports(path)}
        assert not packages & {"torch", "ray", "pandas", "plotly"}, path

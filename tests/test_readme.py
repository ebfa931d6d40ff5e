"""Every command of the README and of docs/ runs as it stands there, on a tiny study called my_study.py.

(Those of the tutorial, on a study of its own, in test_docs.py.)
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import clean_process, command, write_study

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "studies/README.md", "studies/RESULTS.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)
WITH_COMMANDS = [page for page in PAGES if page.startswith(("README", "docs")) and "tutorial" not in page]
TEXT = "\n".join((ROOT / page).read_text() for page in WITH_COMMANDS)
WIDER = (
    "nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 3)",
    "nn.Linear(8, 96), nn.Linear(96, 80), nn.Linear(80, 3)",
)

#: What needs a cluster, a server, or somebody's own files; where it is tested.
ELSEWHERE = {
    "--address": "tests/test_cluster.py",
    "--submit": "tests/test_cluster.py",
    "widthsearch dashboard": "tests/test_pages.py",
    "widthsearch serve": "tests/test_serve.py",
    "widthsearch new": "tests/test_new.py",
    "better_name": "tests/test_manage.py",
    "my_package": "tests/test_widths.py",
    "STUDY": "a placeholder",
    "NAME": "a placeholder",
    "mnist1d_conv": "figures, not run by tests",
    "studies/": "figures, not run by tests",
}


def blocks(language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """All lines ``widthsearch ...`` of blocks, and what stands so in the text, in their order."""
    found = []
    for match in re.finditer(r"^(widthsearch .*)$|`(widthsearch [^`]+)`", TEXT, flags=re.MULTILINE):
        line = " ".join((match[1] or match[2]).split())
        line = re.sub(r"\s+#.*| \[--json\]", "", line)
        if line not in found and " " in line and not any(sign in line for sign in ELSEWHERE):
            found.append(line)
    return found


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all of them: what one makes the next one looks at."""
    with clean_process(), pytest.MonkeyPatch.context() as patch:
        where = tmp_path_factory.mktemp("readme")
        patch.chdir(where)
        for name in ("WIDTHSEARCH_STORAGE", "NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        write_study(where, WIDER, name="my_study")
        yield where


def test_there_are_commands() -> None:
    verbs = {line.split()[1] for line in commands()}
    assert verbs >= {"launch", "show", "resume", "list", "report", "draw", "export"}
    assert verbs >= {"compare", "probe", "pruners", "bench", "widths"}


def anchors(page: Path) -> set[str]:
    """What GitHub makes of its headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", (ROOT / page).read_text())
    for path, anchor in links:
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_runs(line: str) -> None:
    for long, short in (("conv1", "fc1"), ("1/16,1/4 --repeats 3", "1/4 --repeats 1"), ("*10", "*2")):
        line = line.replace(long, short)
    words = shlex.split(line)[1:]
    if words[0] in ("compare", "probe", "pruners"):
        words += ["--workers", "0"]
    if words[0] == "bench":
        words += ["--batch", "1", "--no-compile"]
    if words[0] == "compare":
        words += ["--name", f"compared {len(words)} {words[-3]}"]
    if words[0] == "probe":
        words += ["--name", " ".join(words[2:4])]
    result = command(*words)
    assert result.code == 0, result.err


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks("python") if "my_study.py" in b])
def test_python_of_the_readme_runs(block: str) -> None:
    exec(compile(block.replace("n_trials=50", "n_trials=3"), "README.md", "exec"), {})

"""The tutorial works as it stands, and the pages are a site without a broken link."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("working_folder")
def test_a_strangers_path_leads_to_a_network_of_their_own() -> None:
    """Block after block of the tutorial: what is installed is here already."""
    ran = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", TUTORIAL, flags=re.MULTILINE | re.DOTALL):
        if language == "python" and block.startswith("def model"):
            file = Path("my_study.py")
            text, n = re.subn(r"^def model.*?(?=^def )", f"{block}\n\n", file.read_text(), flags=re.M | re.S)
            assert n == 1
            file.write_text(text)
        elif language == "python":
            Path(block.splitlines()[0].removeprefix("# ")).write_text(block)
        for line in block.splitlines() if language == "bash" else ():
            words = line.split()
            if words[0] == "widthsearch":
                result = command(*words[1:])
                assert result.code == 0, result.err
                ran.append(words[1])
            elif words[0] == "python":
                made = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
                assert made.returncode == 0 and "BatchNorm1d" in made.stdout, made.stderr
                ran.append("python")
    assert ran == ["new", "widths", "launch", "report", "export", "python"]
    assert {path.name for path in Path("net").iterdir()} >= {"widths.json", "widths.md", "model.pt"}


@pytest.mark.nightly
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    mkdocs = shutil.which("mkdocs", path=str(Path(sys.executable).parent))
    if mkdocs is None:
        pytest.skip("no mkdocs: pip install 'widthsearch[docs]'")
    config = ROOT / "docs" / "mkdocs.yml"
    result = subprocess.run(
        [mkdocs, "build", "--strict", "-f", config, "-d", tmp_path / "site"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert not re.findall(
        r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"', (tmp_path / "site/index.html").read_text()
    )

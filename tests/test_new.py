"""What ``widthsearch new`` writes launches as it is (for classification that is shown by test_docs.py)."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from commands import assert_refused, command

from widthsearch.cli.new import Kind

pytestmark = pytest.mark.usefixtures("working_folder")

QUICK = "--rounds 1 --replicas 1 --seeds 1 --final-seeds 0 --report-seeds 2 --set step_sizes=[0.6] --set doublings=0"


@pytest.mark.parametrize("kind", get_args(Kind)[1:])
def test_what_is_written_launches_as_it_is(kind: str) -> None:
    written = command("new", "my_study.py", "--kind", kind)
    assert written.code == 0 and "widthsearch launch my_study.py" in written.out
    one_epoch = ("--set", "steps=20") if kind == "own-loop" else ("--epochs", "1")
    if kind == "own-loop":
        file = Path("my_study.py")
        file.write_text(file.read_text().replace("EPOCHS, BATCH = 10", "EPOCHS, BATCH = 1"))
    result = command("launch", "my_study.py", *QUICK.split(), *one_epoch)
    assert result.code == 0, result.err


def test_nothing_is_overwritten() -> None:
    Path("mine.py").write_text("precious")
    assert_refused(command("new", "mine.py"), "'mine.py'", "exists already")
    assert Path("mine.py").read_text() == "precious"
    assert_refused(command("new", "mine.txt"), "'mine.txt'", ".py")
    assert_refused(command("new", "nowhere/mine.py"), "'nowhere/mine.py'", "cannot be written")
    assert command("new", "x.py", "--kind", "poetry").code == 2

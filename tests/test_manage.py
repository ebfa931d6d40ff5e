"""Studies are renamed and deleted, with what belongs to them, while nobody runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import (
    URL,
    Finished,
    Quiet,
    assert_refused,
    command,
    complete,
    here,
    interrupt,
    trials,
    write_study,
)

from widthsearch.database.lock import driver_lock
from widthsearch.driver.launch import launch

pytestmark = pytest.mark.usefixtures("working_folder")


def names() -> list[str]:
    listed = command("list")
    return [] if listed.code else [line.split()[0] for line in listed.out.splitlines()[1:]]


def test_a_renamed_study_goes_on_to_the_same_end(finished: Finished, tiny: Path) -> None:
    interrupt(tiny, 5)
    folder = [path.name for path in Path("widthsearch.db.checkpoints").iterdir()]
    assert command("rename", "tiny", "--", "-x").code == 0
    assert names() == ["-x"]
    assert command("resume", "--workers", "0", "--", "-x").code == 0
    assert folder and not Path("widthsearch.db.checkpoints").exists()  # the same, cleared at the end
    assert complete(trials(name="-x")) == complete(finished.trials)


def test_a_deleted_study_leaves_nothing(tiny: Path) -> None:
    interrupt(tiny, 5)
    interrupt(tiny, 2, name="other")
    assert_refused(command("delete", "tiny"), "'tiny'", "--yes")
    assert names() == ["tiny", "other"]
    assert command("delete", "tiny", "--yes").code == 0
    assert names() == ["other"]
    assert len(list(Path("widthsearch.db.checkpoints").iterdir())) == 1
    interrupt(tiny, 1)  # its name is free


def test_a_family_keeps_together(tmp_path: Path) -> None:
    launch(str(write_study(tmp_path)), here(Quiet(0)), name="curve", budgets=["1/2", "1/4"])
    for words in (("rename", "curve-1-2", "x"), ("delete", "curve-1-2", "--yes")):
        assert_refused(command(*words), "'curve-1-2' belongs to the family 'curve'")
    assert command("rename", "curve", "bend").code == 0
    shown = json.loads(command("show", "bend", "--json").out)
    assert [member["study"] for member in shown["members"]] == ["bend-1-4", "bend-1-2"]
    assert {member["family"] for member in shown["members"]} == {"bend"}
    assert command("delete", "bend", "--yes").code == 0
    assert names() == []


def test_what_runs_or_is_taken_or_unknown_is_left_alone(tiny: Path) -> None:
    interrupt(tiny, 1)
    interrupt(tiny, 1, name="other")
    with driver_lock(URL, "tiny"):
        for words in (("rename", "tiny", "x"), ("delete", "tiny", "--yes")):
            assert_refused(command(*words), "'tiny' is running on", "process")
    assert_refused(command("rename", "tiny", "other"), "study 'other' exists already")
    assert_refused(command("rename", "tiny", "a\nb"), "control characters")
    assert_refused(command("rename", "nope", "x"), "'nope'", "tiny, other")
    assert_refused(command("delete", "nope", "--yes"), "'nope'", "tiny, other")
    assert names() == ["tiny", "other"]

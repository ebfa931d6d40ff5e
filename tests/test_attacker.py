"""Whoever may write into the database, or into the folder that it lies in, changes a study and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from commands import (
    RECIPE,
    URL,
    Edit,
    Finished,
    Result,
    assert_refused,
    command,
    interrupt,
    start,
    trials,
    write_study,
)

from widthsearch.database.lock import driver_lock, driver_of, is_driven

pytestmark = pytest.mark.usefixtures("working_folder")

LONG: Edit = (RECIPE, "recipe=Recipe(epochs=600, batch_size=32, lr=0.1)")


def begun(folder: Path, *words: str | Path) -> tuple[subprocess.Popen[str], Path]:
    """A driver of long trainings that has finished one, and its log."""
    log = folder / "driver.log"
    with log.open("w") as out:
        process = start(*words, "--workers", "0", stdout=out, stderr=out, PYTHONUNBUFFERED="1")
    found = Path("widthsearch.db.checkpoints")
    wait_until(
        lambda: "trial 0:" in log.read_text() and any(found.rglob("*.ckpt")) or process.poll() is not None
    )
    assert process.poll() is None, log.read_text()
    return process, log


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def left_over() -> list[str]:
    """Lock files, and write-ahead logs."""
    ends = (".lock", ".driver", "-wal", "-shm")
    return [p.name for p in Path().iterdir() if p.name.endswith(ends)]


# The database under a driver -----------------------------------------------------------------------------


def deleted(finished: Finished) -> None:
    for file in Path().glob("widthsearch.db*"):
        if file.is_file():
            file.unlink()


def moved_over(finished: Finished) -> None:
    shutil.copy(finished.url.removeprefix("sqlite:///"), "other.db")
    Path("other.db").replace("widthsearch.db")


def folder_moved(finished: Finished) -> None:
    Path("moved").mkdir()
    Path("widthsearch.db").rename("moved/widthsearch.db")


def study_deleted(finished: Finished) -> None:
    optuna.delete_study(study_name="tiny", storage=URL)


@pytest.mark.parametrize("harm", [deleted, moved_over, folder_moved, study_deleted])
def test_a_database_that_goes_away_stops_its_driver(
    harm: Callable[[Finished], None], tmp_path: Path, finished: Finished
) -> None:
    process, log = begun(tmp_path, "launch", write_study(tmp_path, LONG))
    before = log.read_text().count("loss")
    harm(finished)
    assert process.wait(120) == 2, log.read_text()
    said = log.read_text().splitlines()
    assert said[-1].startswith("error: ") and "Traceback" not in log.read_text()
    assert "deleted or replaced" in said[-1] and "checkpoints are kept" in said[-1]
    assert log.read_text().count("loss") <= before + 1
    assert list(Path("widthsearch.db.checkpoints").rglob("*.ckpt"))


@pytest.mark.parametrize("way", ["symlink", "locks removed", "folder"])
def test_a_second_driver_by_another_way_is_refused_and_the_first_goes_on(way: str, tmp_path: Path) -> None:
    process, log = begun(tmp_path, "launch", write_study(tmp_path, LONG))
    url = "sqlite:///link.db"
    if way == "symlink":
        Path("link.db").symlink_to("widthsearch.db")
    elif way == "folder":
        Path("elsewhere").symlink_to(tmp_path)
        url = "sqlite:///elsewhere/../elsewhere/widthsearch.db"
    else:
        url = URL
        for file in Path().glob("*.lock"):
            file.unlink()
    assert_refused(command("resume", "tiny", "--storage", url), f"process {process.pid}")
    assert "running" in command("show", "tiny", "--storage", url).out
    n = log.read_text().count("loss")
    wait_until(lambda: log.read_text().count("loss") > n)
    assert len(list(Path().glob("*.lock"))) == 1  # put back
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not [name for name in left_over() if name.endswith(".lock")]


def test_a_hard_link_to_a_database_is_the_same_database(tiny: Path) -> None:
    interrupt(tiny, 1)
    os.link("widthsearch.db", "link.db")
    with driver_lock(URL, "tiny"):
        assert_refused(command("resume", "--storage", "sqlite:///link.db"), f"process {os.getpid()}")


def test_a_lock_file_that_another_host_holds_keeps_a_driver_out(tiny: Path) -> None:
    """(Which is what a lock looks like without the socket that only this host knows.)"""
    import fcntl

    interrupt(tiny, 1)
    with Path("widthsearch.db.tiny.lock").open("w") as held:
        held.write("far away, process 7")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert is_driven(URL, "tiny") and driver_of(URL, "tiny") == "far away, process 7"
        assert_refused(command("resume", "tiny"), "far away, process 7")
        assert_refused(command("launch", tiny), "far away, process 7")
    assert command("resume", "tiny").code == 0
    assert not left_over()


def test_a_driver_whose_lock_was_taken_on_another_host_stops(tiny: Path) -> None:
    import fcntl

    interrupt(tiny, 1)
    lock = Path("widthsearch.db.tiny.lock")
    with driver_lock(URL, "tiny") as ours:
        lock.unlink()
        with lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(Exception, match="being run by another driver"):
                ours.confirm()
        ours.confirm()
    assert not lock.exists()


def test_of_two_launches_at_once_the_loser_names_the_winner(tmp_path: Path) -> None:
    file = write_study(tmp_path, LONG)
    both = [start("launch", file, "--workers", "0") for _ in range(2)]
    wait_until(lambda: any(p.poll() is not None for p in both))
    (loser,) = [p for p in both if p.poll() is not None]
    (winner,) = [p for p in both if p is not loser]
    out, err = loser.communicate()
    assert_refused(Result(loser.returncode, out, err), f"process {winner.pid}")
    winner.send_signal(signal.SIGINT)
    assert winner.wait(60) == 130


def test_locks_that_are_taken_and_given_back_at_once_never_have_two_holders(tmp_path: Path) -> None:
    inside, most, refused = [0], [0], [0]

    def take() -> None:
        for _ in range(20):
            try:
                with driver_lock(URL, "tiny"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0.001)
                    inside[0] -= 1
            except Exception as error:
                assert f"process {os.getpid()}" in str(error)
                refused[0] += 1

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and not left_over()


@pytest.mark.parametrize("end", ["by itself", "Ctrl-C", "an error"])
def test_at_its_end_the_one_file_has_everything(end: str, tmp_path: Path) -> None:
    if end == "by itself":
        assert command("launch", write_study(tmp_path)).code == 0
    elif end == "Ctrl-C":
        process, _ = begun(tmp_path, "launch", write_study(tmp_path, LONG))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    else:
        file = write_study(tmp_path, (RECIPE, "recipe=Recipe(epochs=1, batch_size=32, lr=1e30)"))
        assert command("launch", file).code == 2
    assert not left_over()
    Path("copy").mkdir()
    shutil.copy("widthsearch.db", "copy/widthsearch.db")
    assert len(trials("sqlite:///copy/widthsearch.db")) == len(trials()) > 0

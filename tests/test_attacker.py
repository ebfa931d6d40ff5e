"""Whoever may write into the database, or into the folder that it lies in, changes a study and nothing else."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    custom_loss,
    interrupt,
    real_command,
    setting,
    start,
    trials,
    write_study,
)
from examples import NIGHTLY

from widthsearch.database.lock import driver_lock, driver_of, is_driven
from widthsearch.plans.words import in_code
from widthsearch.show.console import table
from widthsearch.show.markup import markdown_of

pytestmark = pytest.mark.usefixtures("working_folder")

LONG: Edit = (RECIPE, "recipe=Recipe(epochs=600, batch_size=32, lr=0.1)")
HANGS = """    def forward(self, x):
        import pathlib, time

        while pathlib.Path("hang").exists():
            try:
                pathlib.Path("hanging").touch()
                time.sleep(0.05)
            except BaseException:
                pass
"""
STUBBORN: Edit = ("    def forward(self, x):\n", HANGS)


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


@pytest.mark.sample(1)
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


@pytest.mark.sample(1)
@pytest.mark.parametrize("way", ["symlink", "locks removed", "folder"])
def test_a_second_driver_by_another_way_is_refused_and_the_first_goes_on(way: str, tmp_path: Path) -> None:
    process, log = begun(tmp_path, "launch", write_study(tmp_path, LONG, STUBBORN))
    Path("hang").touch()  # a training that lasts until all is tried
    wait_until(Path("hanging").exists)
    url = "sqlite:///link.db"
    if way == "symlink":
        Path("link.db").symlink_to("widthsearch.db")
    elif way == "folder":
        Path("elsewhere").symlink_to(tmp_path)
        url = "sqlite:///elsewhere/widthsearch.db"
    else:
        url = URL
        for file in Path().glob("*.lock"):
            file.unlink()
    assert_refused(command("resume", "tiny", "--storage", url), f"process {process.pid}")
    assert "running" in command("show", "tiny", "--storage", url).out
    n = log.read_text().count("loss")
    Path("hang").unlink()
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
            with pytest.raises(Exception, match="is running on"):
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


@pytest.mark.sample(1)
@pytest.mark.parametrize("end", ["by itself", "Ctrl-C", "Ctrl-C twice", "an error"])
def test_at_its_end_the_one_file_has_everything(end: str, tmp_path: Path) -> None:
    if end == "by itself":
        assert command("launch", write_study(tmp_path)).code == 0
    elif end == "Ctrl-C":
        process, _ = begun(tmp_path, "launch", write_study(tmp_path, LONG))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    elif end == "Ctrl-C twice":
        process, log = begun(tmp_path, "launch", write_study(tmp_path, LONG, STUBBORN))
        Path("hang").touch()
        wait_until(Path("hanging").exists)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)  # (two equal signals at once are one)
        assert process.wait(60) == 130 and "left at once" in log.read_text()
    else:
        file = write_study(tmp_path, (RECIPE, "recipe=Recipe(epochs=1, batch_size=32, lr=1e30)"))
        assert command("launch", file).code == 2
    if end == "Ctrl-C twice":  # the connections were not closed, the log has been folded all the same
        assert Path("widthsearch.db-wal").stat().st_size == 0 and not list(Path().glob("*.lock"))
    else:
        assert not left_over()
    Path("copy").mkdir()
    shutil.copy("widthsearch.db", "copy/widthsearch.db")
    assert len(trials("sqlite:///copy/widthsearch.db")) == len(trials()) > 0


# What the database says ----------------------------------------------------------------------------------


def lie(attribute: str, value: Any, name: str = "tiny") -> None:
    optuna.load_study(study_name=name, storage=URL).set_user_attr(f"widthsearch:{attribute}", value)


def attribute(name: str) -> Any:
    return optuna.load_study(study_name="tiny", storage=URL).user_attrs[f"widthsearch:{name}"]


def test_a_folder_that_the_database_names_is_not_removed(tiny: Path) -> None:
    assert command("launch", tiny).code == 0
    thesis = Path("victim/sub/thesis.txt")
    thesis.parent.mkdir(parents=True)
    thesis.write_text("thesis")
    lie("checkpoints", str(Path("victim").resolve()))
    assert_refused(command("export", "-o", "net"), "victim", "--checkpoints")
    assert_refused(command("resume", "--rounds", "2"), "victim", "--checkpoints")
    assert thesis.exists()
    assert command("export", "-o", "net", "--checkpoints", "mine").code == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize("verb", [("export", "-o", "net"), ("resume", "--rounds", "2")])
def test_of_a_folder_with_the_right_name_only_checkpoints_are_removed(
    verb: tuple[str, ...], tiny: Path
) -> None:
    assert command("launch", tiny).code == 0
    folder = Path(attribute("checkpoints"))
    (folder / "sub").mkdir(parents=True)
    kept = {
        "thesis.txt": b"thesis",
        "score-0-7.ckpt": b"not ours",
        "sub/measure-0-1.ckpt": b'{"widthsearch": 1',
    }
    gone = {"score-0-8.ckpt": b'{"widthsearch": 1, ', "score-0-9.ckpt.0123abcd.tmp": b"", "check": b""}
    for name, content in {**kept, **gone}.items():
        (folder / name).write_bytes(content)
    (folder / "measure-0-5.ckpt").symlink_to(folder / "sub/measure-0-1.ckpt")
    assert command(*verb).code == 0
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}
    assert left == {*kept, "measure-0-5.ckpt"}


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "url",
    [
        "reference::data:x;base64,e30=/{}",
        "simplecache::file:///tmp/{}",
        "data:x;base64,e30=/{}",
        "http://127.0.0.1:1/{}",
        "ssh://host/{}",
        "memory://x/{}",
        "relative/{}",
        "file:///tmp/../{}",
        "local:///tmp/{}",
    ],
)
def test_only_plain_urls_are_opened(url: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tiny, 2)
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda *_: pytest.fail("opened"))
    lie("checkpoints", url.format(Path(attribute("checkpoints")).name))
    assert_refused(command("resume"), "cannot be used", "s3")


def test_a_study_file_elsewhere_is_not_imported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert command("launch", tiny).code == 0
    evil = tmp_path_factory.mktemp("elsewhere") / "evil.py"
    evil.write_text("open('PWNED', 'w')\n")
    Path("link.py").symlink_to(evil)
    up = "/".join([".."] * 20)
    named = [
        {"file": str(evil), "name": "study"},
        {"file": str(Path("link.py").resolve().parent / "link.py"), "name": "study"},
        {"file": str(tiny.parent / ".." / evil.parent.name / "evil.py"), "name": "study"},
        {"file": f"{tiny}", "name": f"{up}{evil}"},
        {"file": f"{tiny.parent}/a:{up}{evil}", "name": "study"},
    ]
    for source in named:
        lie("source", source)
        for words in (("export", "-o", "net"), ("resume", "--rounds", "2"), ("bench",)):
            assert_refused(command(*words))
            assert not Path("PWNED").exists()
    Path("evil.py").write_text(evil.read_text())  # in the working folder: not what was launched
    lie("source", {"file": str(Path("evil.py").resolve()), "name": "study"})
    for words in (("export", "-o", "net"), ("resume", "--rounds", "2"), ("bench",)):
        assert_refused(command(*words), "evil.py has changed since launch: code of Net")
        assert not Path("PWNED").exists()
    lie("source", named[0])
    assert_refused(command("export", "-o", "net"), "outside of the working folder", f"--study {evil}:study")
    assert command("export", "-o", "net", "--study", tiny).code == 0


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "changes", [{"model": "x"}, {"budget": {"no": 1}}, {"budget": 3}, {"rounds": "x"}, {"__class__": 1}]
)
def test_settings_that_no_command_line_changes_are_one_line(tiny: Path, changes: Any) -> None:
    interrupt(tiny, 2)
    lie("changes", changes)
    assert_refused(command("resume"))


def test_the_report_shows_the_code_of_the_launch_and_no_file(tiny: Path) -> None:
    text = tiny.read_text() + "\n# </pre><script>alert(1)</script>\n"
    tiny.write_text(text)
    interrupt(tiny, 2)
    secret = Path("secret.key")
    secret.write_text("CANARY")
    lie("source", {"file": str(secret.resolve()), "name": "study"})
    tiny.unlink()
    assert command("report", "-o", "page.html").code == 0
    page = Path("page.html").read_text()
    assert "CANARY" not in page and "class Net(nn.Module)" in page and "<script>alert" not in page
    lie("code", "")
    assert command("report", "-o", "page.html").code == 0
    assert "class Net" not in Path("page.html").read_text()


def test_a_long_study_file_is_not_kept(tiny: Path) -> None:
    tiny.write_text(tiny.read_text() + "# x\n" * 20_000)
    interrupt(tiny, 2)
    assert attribute("code") == ""
    assert command("report", "-o", "page.html").code == 0


ODD = [
    None,
    7,
    -1.5,
    "paused",
    "",
    [],
    [1],
    {},
    {"a": 1},
    True,
    "\ud800",
    [[]],
    {"file": 1, "name": 2},
    10**30,
]


def some_odd(which: str) -> list[Any]:
    """Six of them for each attribute; at night all."""
    return ODD if NIGHTLY else [[1], *random.Random(which).sample([v for v in ODD if v != [1]], 5)]


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "which",
    ["status", "plan", "source", "command", "changes", "fingerprint", "code", "versions", "frozen", "modules"]
    + ["stopped_because", "driver", "identity", "checkpoints", "family"],
)
def test_an_odd_attribute_is_one_line_and_hides_no_other_study(which: str, finished: Finished) -> None:
    shutil.copy(finished.url.removeprefix("sqlite:///"), "widthsearch.db")
    optuna.copy_study(from_study_name="tiny", from_storage=URL, to_storage=URL, to_study_name="other")
    looks = [
        ("show",),
        ("show", "--json"),
        ("report", "-o", "p.html"),
        ("draw", "-o", "d.svg"),
        ("export", "-o", "n"),
    ]
    for value in some_odd(which):
        lie(which, value)
        told = command("list")
        assert told.code == 0 and "other  " in told.out and "Traceback" not in told.err, value
        for words in looks if value == [1] else ():
            result = command(words[0], "tiny", *words[1:])
            assert result.code == 0 or len(result.err.splitlines()) == 1, (value, result.err)
    assert command("report", "other", "-o", "p.html").code == 0


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    "which",
    [
        "kind",
        "round",
        "replica",
        "step",
        "prune_ratio",
        "macs",
        "training_macs",
        "seconds",
        "error",
        "host",
        "arm",
        "levels",
        "accuracy",
        "budget",
        "asked",
    ],
)
def test_an_odd_trial_is_one_line_and_hides_no_other_study(which: str, finished: Finished) -> None:
    shutil.copy(finished.url.removeprefix("sqlite:///"), "widthsearch.db")
    optuna.copy_study(from_study_name="tiny", from_storage=URL, to_storage=URL, to_study_name="other")
    study = optuna.load_study(study_name="tiny", storage=URL)
    for value in some_odd(which):
        trial = study.get_trials(deepcopy=False)[0]
        rewrite(trial._trial_id, which, value)
        told = command("list")
        assert told.code == 0 and "other  " in told.out and "Traceback" not in told.err, value
        for words in (("show",), ("report", "-o", "p.html"))[: 2 * (value == [1])]:
            result = command(words[0], "tiny", *words[1:])
            assert result.code == 0 or len(result.err.splitlines()) == 1, (value, result.err)


def rewrite(trial: int, key: str, value: Any) -> None:
    """As whoever may write into the tables can: Optuna itself changes no trial that has ended."""
    rewrite_text(trial, key, json.dumps(value))


def rewrite_text(trial: int, key: str, text: str) -> None:
    with sqlite3.connect("widthsearch.db") as connection:
        connection.execute("DELETE FROM trial_user_attributes WHERE trial_id = ? AND key = ?", (trial, key))
        connection.execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)",
            (trial, key, text),
        )


@pytest.mark.parametrize("where", ["study", "trial"])
def test_what_is_no_json_is_one_line_and_hides_no_other_study(where: str, finished: Finished) -> None:
    shutil.copy(finished.url.removeprefix("sqlite:///"), "widthsearch.db")
    optuna.copy_study(from_study_name="tiny", from_storage=URL, to_storage=URL, to_study_name="other")
    if where == "trial":
        study = optuna.load_study(study_name="tiny", storage=URL)
        rewrite_text(study.get_trials(deepcopy=False)[0]._trial_id, "kind", "{")
    else:
        with sqlite3.connect("widthsearch.db") as connection:
            connection.execute(
                "UPDATE study_user_attributes SET value_json = '{' WHERE key = 'widthsearch:status' "
                "AND study_id = (SELECT study_id FROM studies WHERE study_name = 'tiny')"
            )
    told = command("list")
    assert told.code == 0 and "other  " in told.out and "study 'tiny' cannot be read" in told.out
    for words in (("show",), ("resume",), ("report", "-o", "p.html")):
        assert_refused(command(words[0], "tiny", *words[1:]), "study 'tiny' cannot be read")
    assert command("show", "other").code == 0
    assert command("launch", Path(finished.file), "--name", "third", "--rounds", "1").code == 0


def test_a_database_with_other_tables_is_one_line(finished: Finished, tiny: Path) -> None:
    shutil.copy(finished.url.removeprefix("sqlite:///"), "widthsearch.db")
    with sqlite3.connect("widthsearch.db") as connection:
        connection.execute("ALTER TABLE study_user_attributes RENAME COLUMN value_json TO value")
    for words in (
        ("list",),
        ("show",),
        ("resume",),
        ("launch", tiny, "--name", "new"),
        ("export", "-o", "n"),
    ):
        assert_refused(command(*words), "the database cannot be used", "no such column")


# Names and texts -----------------------------------------------------------------------------------------


def test_the_commands_for_a_name_like_an_option_can_be_pasted(tiny: Path) -> None:
    interrupt(tiny, 2, name="-x")
    hint = command("show", "--", "-x").out.partition("go on with:")[2].strip()
    assert hint == "widthsearch resume -- -x"
    assert command(*shlex.split(hint)[1:-2], "--workers", "0", "--", "-x").code == 0
    shown = command("show").out.splitlines()
    for line in shown[-2:]:
        words = shlex.split(line.partition(":")[2])
        assert command(*words[1:]).code == 0, line
    page = Path("-x.html").read_text()
    assert "--name=-x" in page
    assert "widthsearch resume --rounds N -- -x" in command("resume", "--workers", "0", "--", "-x").out


def test_names_in_markdown_stay_in_their_cells() -> None:
    assert in_code("a|b") == "`a\\|b`" and in_code("a`b") == "`` a`b ``"
    cells = table("x")
    cells.add_row("a|b`c\nd")
    assert markdown_of([cells]).splitlines()[-1] == "| a\\|b\\`c d |"


def test_half_a_character_in_an_error_breaks_no_page(tmp_path: Path) -> None:
    file = write_study(
        tmp_path, *custom_loss("if len(output) > 4: raise ValueError('a\\udc80')"), setting("retries=0")
    )
    assert command("launch", file).code == 2
    trial = optuna.load_study(study_name="tiny", storage=URL).get_trials()[0]
    rewrite(trial._trial_id, "error", "b\udc81")  # of an earlier version
    assert command("report", "-o", "page.html").code == 0
    page = Path("page.html").read_text()
    assert "ValueError: a?" in page and "b\\udc81" in page
    assert real_command("show").code == 0

"""Whatever dies, whenever: the search is the one that an undisturbed run would have been, to the last bit."""

from __future__ import annotations

import ipaddress
import os
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import (
    RECIPE,
    TRIALS,
    Edit,
    assert_refused,
    command,
    complete,
    real_command,
    setting,
    start,
    trials,
    write_study,
)
from optuna.trial import FrozenTrial, TrialState
from postgres import Postgres, postgres_server  # noqa: F401

from widthsearch.database.connection import open_storage
from widthsearch.database.records import studies_in

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("working_folder")]

EPOCHS = 600  # about a second
LONG = (RECIPE, f"recipe=Recipe(epochs={EPOCHS}, batch_size=32, lr=0.1)")
# More than ten trials although these trainings recommend the uniform widths, which are trained but once.
SEARCH = (setting("seed=3"), ("report_seeds=2", "report_seeds=4"))
BRIEF = (RECIPE, "recipe=Recipe(epochs=50, batch_size=32, lr=0.1)")
LONGER = (RECIPE, f"recipe=Recipe(epochs={4 * EPOCHS}, batch_size=32, lr=0.1)")
FAULTS = 20
Found = dict[tuple[Any, ...], Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the study finds when nothing happens to it (without Ray, one trial after the other)."""
    return found_in(tmp_path_factory.mktemp("undisturbed"), LONG)


@pytest.fixture(scope="module")
def briefly(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The same with trainings that take no time."""
    return found_in(tmp_path_factory.mktemp("briefly"), BRIEF)


def found_in(folder: Path, recipe: Edit) -> Found:
    url = f"sqlite:///{folder / 'widthsearch.db'}"
    result = command("launch", write_study(folder, recipe, *SEARCH), "--storage", url)
    assert result.code == 0, result.err
    found = complete(trials(url))
    assert len(found) >= TRIALS
    return found


# Processes ------------------------------------------------------------------------------------------------


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process and command line of everything that this process started."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    for child in parents:
        above = child
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and child != pid:
            try:
                line = (Path("/proc") / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            yield child, line


def kill_child(pid: int, word: str) -> bool:
    """kill -9 the first of the process's descendants whose command line has the word."""
    for child, line in descendants(pid):
        if word in line:
            os.kill(child, signal.SIGKILL)
            return True
    return False


TRAINS = "ray::_Inner.train"  # as Ray names a process in which our class is at work


def kill_worker(pid: int) -> bool:
    """kill -9 the worker that computes most: one that waits for its next training would not be missed."""

    def used(child: int) -> int:
        with suppress(OSError):
            return sum(
                map(int, (Path("/proc") / str(child) / "stat").read_text().rpartition(")")[2].split()[11:13])
            )
        return 0

    before = {child: used(child) for child, line in descendants(pid) if TRAINS in line}
    time.sleep(0.2)
    if not before:
        return False
    os.kill(max(before, key=lambda child: used(child) - before[child]), signal.SIGKILL)
    return True


def quietly_signal(process: subprocess.Popen[str], number: int) -> bool:
    process.send_signal(number)
    return True


FAULT: dict[str, Callable[[subprocess.Popen[str]], bool]] = {
    "kill -9 driver": lambda p: quietly_signal(p, signal.SIGKILL),
    "kill -9 worker": lambda p: kill_worker(p.pid),
    "kill -9 raylet": lambda p: kill_child(p.pid, "/raylet/raylet"),
    "kill -9 GCS": lambda p: kill_child(p.pid, "gcs_server"),
    "SIGTERM": lambda p: quietly_signal(p, signal.SIGTERM),
    "Ctrl-C": lambda p: quietly_signal(p, signal.SIGINT),
}
DRIVER_ENDS = ("kill -9 driver", "SIGTERM", "Ctrl-C")
WEIGHTS = dict(zip(FAULT, (2, 4, 1, 1, 1, 1), strict=True))


def under_fire(file: Path, url: str, seed: int) -> list[str]:
    """Launch the study and let faults rain on it; returns those that hit once it is finished.

    After ``FAULTS`` of them it is left in peace.  Half of the drivers run without Ray: they start sooner, so
    that more faults find them in the middle of a training.
    """
    chance, hits = random.Random(seed), []
    # To a file: what Ray leaves behind for some seconds would keep a pipe open.
    log = file.with_name(f"{seed}.log").open("w")
    deadline = time.monotonic() + 540
    while time.monotonic() < deadline:
        workers = chance.choice((0, 2))
        faults = FAULT if workers else DRIVER_ENDS
        arguments = (*go_on(url, file), "--workers", str(workers))
        process = start(*arguments, stdout=log, stderr=log, WIDTHSEARCH_STORAGE=url)
        while process.poll() is None:
            # Any moment of the start, or of the trainings: these would else be met too seldom.
            begun = time.monotonic()
            patient = workers > 0 and chance.random() < 0.5
            while patient and time.monotonic() < begun + 20 and not is_training(process):
                time.sleep(0.2)
            try:
                process.wait(chance.uniform(0.2, 3) if len(hits) < FAULTS else 180)
            except subprocess.TimeoutExpired:
                (fault,) = chance.choices(list(faults), [WEIGHTS[f] for f in faults])
                if FAULT[fault](process):
                    hits.append(fault)
                if fault in DRIVER_ENDS:
                    process.wait(30)
        if process.returncode == 0:
            return hits
    raise AssertionError(f"not finished after {hits}")


def is_training(process: subprocess.Popen[str]) -> bool:
    """Whether it has ended, or has workers that train (without Ray: nothing to wait for)."""
    return process.poll() is not None or any(TRAINS in line for _, line in descendants(process.pid))


def go_on(url: str, file: Path) -> tuple[str | Path, ...]:
    """Resume; launch again if the driver died before it had written anything."""
    return ("resume", "tiny") if "tiny" in studies_in(open_storage(url, create=True)) else ("launch", file)


def check(found: list[FrozenTrial], undisturbed: Found) -> None:
    """The same completed trials, none twice; whatever else there is was cut short by a fault."""
    assert complete(found) == undisturbed  # (complete() refuses a slot completed twice)
    for trial in found:
        if trial.state != TrialState.COMPLETE:
            assert trial.state == TrialState.FAIL
            assert "error" not in trial.user_attrs or trial.user_attrs.get("worker_died"), trial


@pytest.mark.nightly
def test_a_storm_on_both_databases(server: Postgres, tmp_path: Path) -> None:
    """20 random faults on each: no trial lost, none twice, all as if nothing had happened."""
    urls = {"sqlite": f"sqlite:///{tmp_path / 'fire.db'}", "postgresql": server.new_database()}
    file, seed = write_study(tmp_path, LONGER, *SEARCH), random.SystemRandom().randrange(10**6)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(under_fire, file, url, seed + i) for i, url in enumerate(urls.values())]
        at_home = f"sqlite:///{tmp_path / 'undisturbed.db'}"
        result = real_command("launch", file, "--workers", "0", "--storage", at_home, timeout=540)
    assert result.code == 0, result.err
    for i, (name, url) in enumerate(urls.items()):
        hits = running[i].result()
        print(f"{name}, seed {seed + i}: {', '.join(hits)}")  # shown if the test fails
        check(trials(url), complete(trials(at_home)))
        assert len(hits) >= FAULTS


def written(folder: Path) -> set[tuple[str, int]]:
    """All checkpoints, with the moment at which they were written."""
    found = set()
    for file in (folder / "widthsearch.db.checkpoints").rglob("*.ckpt"):
        with suppress(FileNotFoundError):  # its training has ended meanwhile
            found.add((file.name, file.stat().st_mtime_ns))
    return found


@pytest.mark.nightly
def test_kills_in_the_run_off_and_among_the_fresh_seeds(tmp_path: Path) -> None:
    """Seed 2 is that of the run-off, seeds 3 and 4 are fresh."""
    file, url = (
        write_study(tmp_path, LONG, ("final_seeds=0", "final_seeds=1"), setting("seed=5")),  # has a run-off
        f"sqlite:///{tmp_path}/killed.db",
    )
    at_home = f"sqlite:///{tmp_path}/undisturbed.db"
    assert command("launch", file, "--storage", at_home).code == 0

    running = (
        "select count(*) from trials join trial_user_attributes using (trial_id) "
        "where state = 'RUNNING' and key = 'replica' and value_json = ?"
    )

    def trains(seed: int) -> bool:  # (of no measure: these have replicas 0 and 1)
        with closing(sqlite3.connect(tmp_path / "killed.db")) as database, suppress(sqlite3.OperationalError):
            return bool(database.execute(running, [str(seed)]).fetchone()[0])
        return False

    for seed in (2, 3):
        log = (tmp_path / "log").open("w")
        process = start(*go_on(url, file), "--storage", url, "--workers", "0", stdout=log, stderr=log)
        wait_until(lambda: trains(seed))  # noqa: B023
        process.kill()
        process.wait()
    assert command("resume", "tiny", "--storage", url).code == 0
    check(found := trials(url), complete(trials(at_home)))
    assert sum(t.state == TrialState.FAIL for t in found) == 2


#: What hits one driver after the other, and what it says; nothing, where it was its end.
ONE_OF_EACH = (
    {"kill -9 worker": "its worker process died", "kill -9 raylet": "starting Ray again", "SIGTERM": ""},
    {"kill -9 GCS": "starting Ray again", "kill -9 driver": ""},
)
ENDS = {"SIGTERM": 130, "kill -9 driver": -signal.SIGKILL}


def test_one_fault_of_each_kind(undisturbed: Found, tmp_path: Path) -> None:
    """In trainings that run, one after the other; at the end there is peace, and no Ray."""
    url, moments = f"sqlite:///{tmp_path / 'widthsearch.db'}", random.Random(1)
    file = write_study(tmp_path, LONG, *SEARCH)
    for faults in ONE_OF_EACH:
        log, before = tmp_path / f"{len(faults)}.log", written(tmp_path)
        with log.open("w") as out:
            process = start(
                *go_on(url, file), "--workers", "2", stdout=out, stderr=out, WIDTHSEARCH_STORAGE=url
            )
        for fault, says in faults.items():
            wait_until(lambda: is_training(process) and written(tmp_path) - before)  # noqa: B023
            time.sleep(moments.uniform(0, 0.4))
            assert process.poll() is None and FAULT[fault](process), log.read_text()
            before = written(tmp_path)
            if says:
                wait_until(lambda: says in log.read_text())  # noqa: B023
            else:
                assert process.wait(300) == ENDS[fault], log.read_text()
    assert command("resume", "tiny", "--storage", url).code == 0
    check(found := trials(url), undisturbed)
    died = [t.user_attrs["error"] for t in found if "worker_died" in t.user_attrs]
    assert died[0] == "its worker process died"
    faults = sum(map(len, ONE_OF_EACH))
    assert len(found) <= len(undisturbed) + 2 * faults  # what was running was run again, no more


def test_a_database_server_that_is_restarted_is_waited_for(
    undisturbed: Found, server: Postgres, tmp_path: Path
) -> None:
    url = server.new_database()
    log = tmp_path / "log"
    with log.open("w") as file:
        process = start(
            "launch",
            write_study(tmp_path, LONG, *SEARCH),
            "--workers",
            "2",
            stdout=file,
            stderr=file,
            WIDTHSEARCH_STORAGE=url,
            PYTHONUNBUFFERED="1",
        )
    wait_until(lambda: "trial 2:" in log.read_text())
    for child, line in descendants(process.pid):  # only the driver knows how to get into the database
        assert server.password not in line
        assert server.password.encode() not in (Path("/proc") / str(child) / "environ").read_bytes(), line
    server.stop()
    wait_until(lambda: "the database does not answer" in log.read_text())
    assert process.poll() is None, log.read_text()
    server.start()
    assert process.wait(300) == 0, log.read_text()
    assert "answers again" in log.read_text()
    assert server.password not in log.read_text()
    check(trials(url), undisturbed)


def wait_until(condition: Callable[[], object], seconds: float = 300) -> None:
    """Only against hanging: how long it takes depends on what else the machine does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("workers", ["2", "0"])
def test_ctrl_c_in_a_training_that_takes_hours(tmp_path: Path, workers: str) -> None:
    """It is not waited for.  (What a second Ctrl-C does, and how long the first one has: test_stopping.py.)"""
    study = write_study(tmp_path, (RECIPE, "recipe=Recipe(epochs=10**7, batch_size=32, lr=0.1)"))
    log = tmp_path / "log"
    with log.open("w") as file:
        process = start(
            "launch",
            study,
            "--workers",
            workers,
            stdout=file,
            stderr=file,
            HOME=str(tmp_path),
            start_new_session=True,
        )
    wait_until(lambda: any((tmp_path / "widthsearch.db.checkpoints").rglob("*.ckpt")))
    if workers == "2":
        assert listens_on(process.pid) <= {"127.0.0.1", "::1"}
        assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    started = [child for child, _ in descendants(process.pid)]
    assert len(started) > 5 or workers == "0"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    assert process.wait(120) == 130
    assert "widthsearch resume tiny" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert "interrupted" in command("show", "tiny").out
    wait_until(lambda: not any((Path("/proc") / str(child)).exists() for child in started))


def listens_on(pid: int) -> set[str]:
    """The addresses on which the process and all that it started accept connections."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                words = bytes.fromhex(fields[1].partition(":")[0])
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                address = ipaddress.ip_address(packed)
                sockets[f"socket:[{fields[9]}]"] = str(getattr(address, "ipv4_mapped", None) or address)
    found = set()
    for process in [pid, *(child for child, _ in descendants(pid))]:
        for link in (Path("/proc") / str(process) / "fd").iterdir():
            with suppress(OSError):
                if (target := str(link.readlink())) in sockets:
                    found.add(sockets[target])
    return found


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[], None]]:
    """A file system of this size; what it yields makes room on it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=20m", folder], check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_disk_full_of_checkpoints_stops_the_search_until_there_is_room(
    briefly: Found, tmp_path: Path
) -> None:
    with small_disk(disk := tmp_path / "disk", "8k") as make_room:
        result = real_command(
            "launch", write_study(tmp_path, BRIEF, *SEARCH), "--workers", "2", "--checkpoints", disk
        )
        assert_refused(result, "No space left on device", str(disk))
        assert not complete(trials())
        assert "interrupted" in command("show", "tiny").out
        make_room()
        assert command("resume", "tiny").code == 0
        check(trials(), briefly)
        assert not list(disk.iterdir())  # nothing is left of a finished study


def test_a_disk_full_of_the_database_itself(briefly: Found, tmp_path: Path) -> None:
    with small_disk(disk := tmp_path / "disk", "512k") as make_room:
        url = f"sqlite:///{disk / 'widthsearch.db'}"
        where = ("--storage", url, "--checkpoints", tmp_path / "checkpoints")
        assert_refused(command("launch", write_study(tmp_path, BRIEF, *SEARCH), *where), "disk is full")
        make_room()
        assert command("resume", "tiny", *where).code == 0
        check(trials(url), briefly)

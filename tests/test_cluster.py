"""A real cluster of three hosts and a laptop: a search spreads, moves, and is the one it would have been at home.

The hosts are network namespaces with names of their own; the study's folder is hidden from all that the
cluster runs, so that whatever is trained there was brought there.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import (
    DATA,
    HEADER,
    RECIPE,
    TRIALS,
    Edit,
    Result,
    assert_refused,
    command,
    complete,
    custom_loss,
    setting,
    trials,
    write_study,
)
from hosts import Hosts, why_not
from optuna.trial import FrozenTrial, TrialState

pytest.importorskip("aiohttp_cors", reason="job server and ray:// addresses need ray[default,client]")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

BIN = Path(sys.executable).parent
STARTED = "Ray runtime started"
EPOCHS = 1200  # about two seconds
OWN_MODULES: tuple[Edit, ...] = (
    (HEADER, f"from factor import FACTOR\nfrom parts.sign import SIGN\n\n\n{HEADER}"),
    (DATA, f"x = FACTOR * SIGN * x\n    {DATA}"),
)
# A pulled cable is noticed within ten seconds.  With Ray's own settings it takes a minute, nothing else differs.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}


class Cluster:
    """A head without CPUs and two workers with one each; the laptop is in the network, not in the cluster.

    Every host has a name, processes and files of its own: it does not see the folders of the others.
    """

    NAMES = ("head", "w1", "w2", "laptop")

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.token = self.token_file("token")
        ip = hosts["head"].ip
        self.gcs, self.client, self.jobs = f"{ip}:6379", f"ray://{ip}:10001", f"http://{ip}:8265"
        self._inits: dict[str, int] = {}
        for name in self.NAMES:
            (folder / name).mkdir()
        for name in self.NAMES:
            self.boot(name)

    def token_file(self, name: str) -> Path:
        path = self.folder / name
        path.touch(0o600)
        path.write_text(secrets.token_hex(32))
        return path

    def boot(self, host: str) -> None:
        """The first process of a host; all others are started beside it."""
        others = [self.folder / name for name in self.NAMES if name != host]
        script = (
            'hostname "$0"; for folder; do mount -t tmpfs tmpfs "$folder"; done; echo; sleep infinity & wait'
        )
        unshare = ("unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
        process = self.hosts[host].start(
            [*unshare, "sh", "-c", script, host, *others], stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == "\n"
        pid = process.pid
        self._inits[host] = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())

    def start(
        self, host: str, *args: str | Path, log: Path | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start a program of the package's environment there, its output in a file."""
        own = str(self.folder / host)
        variables = {
            "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": own,
            "TMPDIR": own,
            "RAY_TMPDIR": own,  # where `--address auto` looks
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
            "TERM": "dumb",
            "PYTHONUNBUFFERED": "1",
            **HEALTH,
        }
        with (log or self.log(host)).open("w") as file:
            return self.hosts[host].start(
                [
                    "nsenter",
                    f"--target={self._inits[host]}",
                    "--pid",
                    "--mount",
                    "--uts",
                    f"--wd={own}",
                    *args,
                ],
                {**variables, **environment},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def log(self, host: str) -> Path:
        return self.folder / f"{host}.log"

    def start_ray(self, host: str, *options: str) -> None:
        own = (f"--node-ip-address={self.hosts[host].ip}", f"--temp-dir={self.folder / host / 'ray'}")
        self.start(host, "ray", "start", "--block", *own, "--object-store-memory=100000000", *options)

    def start_head(self) -> None:
        self.start_ray("head", "--head", "--num-cpus=0", f"--dashboard-host={self.hosts['head'].ip}")
        wait_until(lambda: "Ray runtime started" in self.log("head").read_text())

    def start_worker(self, host: str) -> None:
        self.start_ray(host, f"--address={self.gcs}", "--num-cpus=1")

    def trains(self, host: str) -> bool:
        """Whether a worker of a search lives there."""
        for pid in self.hosts[host].pids():
            with suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith((b"ray::TrialActor", b"ray::_Inner")):
                    return True
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 300, note: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, note()
        time.sleep(0.05)


def end(process: subprocess.Popen[str], log: Path, seconds: float = 300) -> Result:
    """What a command printed (stdout and stderr together), once it has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it goes on after {seconds} s: {log.read_text()}") from None
    return Result(process.returncode, log.read_text(), log.read_text())


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """In the terminal of a command; not to ``nsenter``, whose exit code is the command's."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGINT)


def write_studies(folder: Path, shared: Path) -> None:
    """The same study for a CPU per training and for half of one, with modules of its own.

    A training waits while there is a file ``hold-HOST`` in the shared folder.
    """
    wait = custom_loss(f"""
        import os, socket, time
        while os.path.exists("{shared}/hold-" + socket.gethostname()):
            time.sleep(0.05)
    """)
    recipe = (RECIPE, wait[1][1].replace("epochs=1,", f"epochs={EPOCHS},"))
    # With this seed a proposal wins, so there is one of each kind of training.
    study = (wait[0], recipe, *OWN_MODULES, setting("seed=8"))
    (folder / "parts").mkdir()
    for file, text in (("factor", "FACTOR = 2.0"), ("parts/__init__", ""), ("parts/sign", "SIGN = -1.0")):
        (folder / f"{file}.py").write_text(f"{text}\n")
    write_study(folder, *study)
    # Half of the seeds of both starts are four trainings that can start at once.
    write_study(folder, *study, ("    seeds=2,", "    cpus=0.5,\n    seeds=4,"), name="half")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="wc-", dir="/tmp"))
    try:
        with Hosts(*Cluster.NAMES) as hosts:
            cluster = Cluster(hosts, folder)
            write_studies(folder / "head", cluster.shared)
            write_studies(folder / "laptop", cluster.shared)
            cluster.start_head()
            for name in ("w1", "w2"):
                cluster.start_worker(name)
            wait_until(lambda: all(STARTED in cluster.log(name).read_text() for name in ("w1", "w2")))
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Found = dict[tuple[str, int, int], Any]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the study finds here, without Ray, one trial after the other."""
    found = found_here(tmp_path_factory.mktemp("undisturbed"), "tiny")
    assert len(found) == TRIALS
    return found


def found_here(folder: Path, name: str) -> Found:
    write_studies(folder, folder)
    url = f"sqlite:///{folder / 'undisturbed.db'}"
    result = command("launch", folder / f"{name}.py", "--storage", url)
    assert result.code == 0, result.err
    return complete(trials(url, name))


@pytest.mark.nightly
def test_a_search_uses_all_workers_and_brings_its_code(cluster: Cluster, undisturbed: Found) -> None:
    """From the head, whose address Ray finds; the number of trainings at a time is what there is room for."""
    url, log = f"sqlite:///{cluster.folder}/head/auto.db", cluster.log("auto")
    arguments = ("--address", "auto", "--checkpoints", cluster.shared, "--storage", url)
    result = end(cluster.start("head", "widthsearch", "launch", "tiny.py", *arguments, log=log), log)
    assert result.code == 0, result.out
    found = trials(url)
    assert complete(found) == undisturbed
    assert {t.user_attrs["host"] for t in found} == {"w1", "w2"}
    assert most_at_once(found) == 2
    for worker in ("w1", "w2"):
        assert not (cluster.folder / worker / "tiny.py").exists()


def most_at_once(found: list[FrozenTrial]) -> int:
    """How many trainings ran at the same time, by the time that each one took in its worker."""
    spans = []
    for trial in found:
        assert trial.datetime_complete is not None
        seconds = timedelta(seconds=trial.user_attrs["seconds"])
        spans.append((trial.datetime_complete - seconds, trial.datetime_complete))
    return max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)


@pytest.mark.nightly
def test_a_laptop_drives_a_search_with_two_trainings_per_cpu(cluster: Cluster, tmp_path: Path) -> None:
    """The laptop is only a client: driver and database stay there."""
    log = cluster.log("client")
    arguments = ("--address", cluster.client, "--checkpoints", cluster.shared)
    result = end(cluster.start("laptop", "widthsearch", "launch", "half.py", *arguments, log=log), log)
    assert result.code == 0, result.out
    found = trials(f"sqlite:///{cluster.folder}/laptop/widthsearch.db", "half")
    assert complete(found) == found_here(tmp_path, "half")
    first = found[:4]  # those of the start, which all can start at once
    assert sorted(t.user_attrs["host"] for t in first) == ["w1", "w1", "w2", "w2"]
    assert most_at_once(found) > 2


REFUSALS: dict[str, tuple[str, tuple[str, ...], dict[str, str], tuple[str, ...]]] = {
    "token, GCS": ("head", ("--address", "GCS"), {"RAY_AUTH_TOKEN_PATH": "WRONG"}, ("refused our token",)),
    "token, auto": ("head", ("--address", "auto"), {"RAY_AUTH_TOKEN_PATH": "WRONG"}, ("refused our token",)),
    "token, client": (
        "laptop",
        ("--address", "CLIENT"),
        {"RAY_AUTH_TOKEN_PATH": "WRONG"},
        ("refused our token",),
    ),
    "token, job": ("laptop", ("--submit", "JOBS"), {"RAY_AUTH_TOKEN_PATH": "WRONG"}, ("refused our token",)),
    "no token": (
        "laptop",
        ("--address", "CLIENT"),
        {"RAY_AUTH_TOKEN_PATH": "/nothing"},
        ("no token", "/nothing"),
    ),
    "no token, job": (
        "laptop",
        ("--submit", "JOBS"),
        {"RAY_AUTH_TOKEN_PATH": "/nothing"},
        ("no token", "/nothing"),
    ),
    "no node": ("laptop", ("--address", "GCS"), {}, ("no part of", "ray://", "--submit")),
    "no cluster": ("laptop", ("--address", "auto"), {}, ("no Ray cluster on this machine", "ray://")),
    "nobody listens": (
        "laptop",
        ("--submit", "http://127.0.0.1:9"),
        {},
        ("no Ray job server", "127.0.0.1:9"),
    ),
    "password": (
        "laptop",
        ("--submit", "JOBS", "--storage", "postgresql://me:geheim@db/studies"),
        {},
        ("me:***@db", "PGPASSFILE"),
    ),
}


@pytest.mark.nightly
def test_what_cannot_work_is_refused_at_once(cluster: Cluster) -> None:
    """In one line, and before anything is written."""
    wrong = cluster.token_file("wrong")
    names = {"GCS": cluster.gcs, "CLIENT": cluster.client, "JOBS": cluster.jobs, "WRONG": str(wrong)}

    def run(case: str) -> Result:
        host, arguments, environment, _ = REFUSALS[case]
        if "--storage" not in arguments:
            arguments = (*arguments, "--storage", f"sqlite:///{cluster.folder}/{host}/refused.db")
        log = cluster.log(case.replace(" ", "-"))
        process = cluster.start(
            host,
            "widthsearch",
            "launch",
            "tiny.py",
            *(names.get(a, a) for a in arguments),
            log=log,
            **{k: names.get(v, v) for k, v in environment.items()},
        )
        return end(process, log)

    with ThreadPoolExecutor(max_workers=2) as pool:
        for case, result in zip(REFUSALS, pool.map(run, REFUSALS), strict=True):
            *progress, last = result.err.splitlines()
            steps = ("reading ", "tracing ", "at most ", "starting ", "connecting ")
            assert all(line.startswith(steps) for line in progress), result.err
            assert_refused(result._replace(err=last), *REFUSALS[case][3])
            assert "geheim" not in result.out
    assert not list(cluster.folder.glob("*/refused.db*"))


@pytest.mark.nightly
def test_a_submitted_search_is_followed_left_alone_stopped_and_resumed(
    cluster: Cluster, undisturbed: Found
) -> None:
    """From the laptop, as a job on the head: its driver and its database are there."""
    url = f"sqlite:///{cluster.folder}/head/jobs.db"
    where = ("--submit", cluster.jobs, "--storage", url, "--checkpoints", cluster.shared)
    first, second, third = (cluster.log(f"job{k}") for k in (1, 2, 3))
    launch = ("widthsearch", "launch", "tiny.py", "--workers", "1", "--final-seeds", "0")
    process = cluster.start("laptop", *launch, *where, log=first)
    wait_until(lambda: "trial 1:" in first.read_text(), note=first.read_text)

    press_ctrl_c(process)
    assert process.wait(120) == 130
    said = first.read_text()
    assert "the job goes on" in said and "Traceback" not in said
    assert all("job_manager" in line for line in said.splitlines() if "INFO" in line)  # the job's own
    done = len(complete(trials(url)))
    wait_until(lambda: len(complete(trials(url))) > done)
    printed = {line.partition(": ")[0]: line.partition(": ")[2] for line in said.splitlines()[-2:]}

    stop = cluster.start("laptop", "env", "-u", "RAY_AUTH_MODE", "sh", "-c", printed["stop it"], log=second)
    assert stop.wait(120) == 0, second.read_text()
    follow = cluster.start(
        "laptop", "env", "-u", "RAY_AUTH_MODE", "sh", "-c", printed["follow it"], log=third
    )
    assert follow.wait(120) == 0 and "trial 2:" in third.read_text(), third.read_text()
    assert len(complete(trials(url))) < TRIALS
    summary = command("show", "tiny", "--storage", url).out
    assert "interrupted" in summary

    log = cluster.log("job4")
    result = end(
        cluster.start("laptop", "widthsearch", "resume", "tiny", "--study", "tiny.py", *where, log=log), log
    )
    assert result.code == 0, result.out
    assert "going on after" in result.out and "uniform widths" in result.out
    assert complete(trials(url)) == undisturbed


LOST = "died or was cut off"


def epochs(checkpoints: Path) -> dict[str, int]:
    """How far each training has come that has a checkpoint."""
    found = {}
    for file in checkpoints.rglob("*.ckpt"):
        with suppress(FileNotFoundError):  # its training has ended meanwhile
            state = io.BytesIO(file.read_bytes().partition(b"\n")[2])
            found[file.name] = torch.load(state, weights_only=True)["epochs"]
    return found


@pytest.mark.nightly
def test_a_host_dies_and_another_is_cut_off(cluster: Cluster, undisturbed: Found) -> None:
    """Trainings go on from their checkpoints elsewhere; a host that comes back uninvited does no harm."""
    url, log = f"sqlite:///{cluster.folder}/head/faults.db", cluster.log("faults")
    arguments = ("--address", cluster.gcs, "--checkpoints", cluster.shared, "--storage", url)
    process = cluster.start("head", "widthsearch", "launch", "tiny.py", *arguments, log=log)
    wait_until(lambda: sum(e > 200 for e in epochs(cluster.shared).values()) == 2, note=log.read_text)

    cluster.hosts["w2"].kill()
    before = epochs(cluster.shared)
    while before.keys() & (now := epochs(cluster.shared)).keys():
        assert process.poll() is None and all(now.get(name, e) >= e for name, e in before.items())
        time.sleep(0.02)
    assert log.read_text().count(LOST) == 1

    (cluster.shared / "hold-w1").touch()  # as long as the host takes to start
    cluster.boot("w2")
    cluster.start_worker("w2")
    wait_until(lambda: cluster.trains("w2"), note=log.read_text)  # a new host joins in
    (cluster.shared / "hold-w1").unlink()
    wait_until(lambda: len(epochs(cluster.shared)) == 2, note=log.read_text)
    (cluster.shared / "hold-w2").touch()
    cluster.hosts["w2"].unplug()
    wait_until(lambda: log.read_text().count(LOST) == 2, note=log.read_text)
    (cluster.shared / "hold-w2").unlink()  # it trains to its end, and writes checkpoints too
    cluster.hosts["w2"].plug()
    result = end(process, log)
    assert result.code == 0 and "Traceback" not in result.out, result.out
    found = trials(url)
    assert complete(found) == undisturbed
    lost = [t for t in found if t.state != TrialState.COMPLETE]
    assert [(t.state, t.user_attrs["worker_died"]) for t in lost] == 2 * [(TrialState.FAIL, True)]

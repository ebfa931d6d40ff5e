"""docker/: the start scripts make a cluster that only its own workers join; compose.yaml opens nothing.

The scripts run for real, without Docker, on hosts that are network namespaces.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hosts import Host, Hosts, why_not
from postgres import USER, Postgres, postgres_server  # noqa: F401

DOCKER = Path(__file__).parents[1] / "docker"
COMPOSE = DOCKER / "compose.yaml"
BIN = Path(sys.executable).parent  # where `ray` is

needs_hosts = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class Cluster:
    """Hosts that run the start scripts, every one with files of its own."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.token, self.password = secrets.token_hex(32), rf"p:{secrets.token_hex(8)}\w"
        self.secrets = self._secrets("secrets", self.token)
        self.wrong_secrets = self._secrets("wrong", secrets.token_hex(32))
        self.address = f"{hosts['head'].ip}:6379"

    def _secrets(self, name: str, token: str) -> Path:
        """A folder as Docker mounts it: files with a newline at the end, readable by all."""
        folder = self.folder / name
        folder.mkdir()
        for file, text in (("ray_token", token), ("postgres_password", self.password)):
            (folder / file).write_text(f"{text}\n")
            (folder / file).chmod(0o644)
        return folder

    def private(self, name: str) -> Path:
        return self.folder / f"{name}-private"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def start(self, name: str, script: str, **environment: str) -> subprocess.Popen[str]:
        host: Host = self.hosts[name]
        env = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "SECRETS_DIR": str(self.secrets),
            "PRIVATE_DIR": str(self.private(name)),
            "RAY_TEMP_DIR": str(self.folder / name),
            "RAY_HEAD_ADDRESS": self.address,
            "NODE_IP": host.ip,
            "WORKER_CPUS": "1",
        }
        with (self.folder / f"{name}.log").open("w") as log:
            return host.start([DOCKER / script], {**env, **environment}, stdout=log, stderr=log)

    def on_head(self, *args: str | Path) -> str:
        """What a command on the head says, run as ``docker compose exec`` would: with the token's path."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.private("head") / "ray_token")}
        result = self.hosts["head"].run(args, {**token, "RAY_USAGE_STATS_ENABLED": "0"})
        assert result.returncode == 0, result.stdout
        return result.stdout

    def nodes(self, expected: int) -> dict[str, float]:
        """Address and CPUs of the nodes that are alive, once there are ``expected`` or time is up."""
        program = f"""
import json, time, ray
ip, port = {self.address!r}.split(":")
ray.init(address=f"{{ip}}:{{port}}", _node_ip_address=ip, logging_level="error", log_to_driver=False)
end = time.monotonic() + 30
while sum(n["Alive"] for n in ray.nodes()) < {expected} and time.monotonic() < end:
    time.sleep(0.2)
alive = {{n["NodeManagerAddress"]: n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]}}
print("NODES", json.dumps(alive))
"""
        out = self.on_head(sys.executable, "-c", program)
        found: dict[str, float] = json.loads(out.split("NODES", 1)[1])
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and two workers.  In a folder with a short name, since Ray's sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="ws-", dir="/tmp"))
    try:
        with Hosts("head", "w1", "w2", "stranger") as hosts:
            cluster = Cluster(hosts, folder)
            head = cluster.start("head", "start-head.sh")
            wait_until_started(head, cluster)
            for name in ("w1", "w2"):
                cluster.start(name, "start-worker.sh")
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_until_started(head: subprocess.Popen[str], cluster: Cluster) -> None:
    """Wait for the head, as ``depends_on: service_healthy`` does."""
    end = time.monotonic() + 60
    while "Ray runtime started" not in cluster.log("head"):
        assert head.poll() is None and time.monotonic() < end, cluster.log("head")
        time.sleep(0.2)


@needs_hosts
@pytest.mark.slow
def test_both_workers_join_and_the_head_trains_nothing(cluster: Cluster) -> None:
    ips = {name: cluster.hosts[name].ip for name in ("head", "w1", "w2")}
    assert cluster.nodes(expected=3) == {ips["head"]: 0, ips["w1"]: 1, ips["w2"]: 1}


@pytest.mark.nightly
@needs_hosts
@pytest.mark.slow
def test_a_worker_with_a_wrong_token_stays_outside_and_says_why(cluster: Cluster) -> None:
    worker = cluster.start("stranger", "start-worker.sh", SECRETS_DIR=str(cluster.wrong_secrets))
    assert worker.wait(timeout=90) != 0
    log = cluster.log("stranger").lower()
    assert "token" in log or "authent" in log, log
    assert cluster.hosts["stranger"].ip not in cluster.nodes(expected=3)


@needs_hosts
@pytest.mark.slow
def test_secrets_are_in_private_files_alone(cluster: Cluster) -> None:
    cluster.nodes(expected=3)
    for name, files in (("head", {"ray_token", "pgpass"}), ("w1", {"ray_token"})):
        private = cluster.private(name)
        assert {f.name for f in private.iterdir()} == files  # a worker has no database password
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert all(stat.S_IMODE(f.stat().st_mode) == 0o600 for f in private.iterdir())
    escaped = cluster.password.replace("\\", r"\\").replace(":", r"\:")
    assert (cluster.private("head") / "pgpass").read_text() == f"db:*:*:widthsearch:{escaped}\n"

    seen = {"cmdline": b"", "environ": b""}
    for name in ("head", "w1", "w2"):
        for pid in cluster.hosts[name].pids():
            for file in seen:
                with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                    seen[file] += Path(f"/proc/{pid}/{file}").read_bytes()
    assert b"gcs_server" in seen["cmdline"] and b"PGPASSFILE=" in seen["environ"]
    for text in seen.values():
        assert cluster.token.encode() not in text and cluster.password.encode() not in text


@needs_hosts
@pytest.mark.slow
@pytest.mark.skipif(find_spec("aiohttp_cors") is None, reason="submitting jobs needs ray[default]")
def test_a_submitted_job_finds_the_database_password(cluster: Cluster) -> None:
    address = ("--address", "http://127.0.0.1:8265")
    out = cluster.on_head(BIN / "ray", "job", "submit", *address, "--", "sh", "-c", 'echo "<$PGPASSFILE>"')
    assert f"<{cluster.private('head') / 'pgpass'}>" in out


def reading_environment(server: Postgres, url: str, folder: Path) -> dict[str, str]:
    """What a start script needs that only reads: the database, its password as a secret, a free port."""
    (folder / "postgres_password").write_text(f"{server.password}\n")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "SECRETS_DIR": str(folder),
        "PRIVATE_DIR": str(folder / "private"),
        "DB_HOST": "127.0.0.1",
        "DB_PORT": str(server.port),
        "DB_USER": USER,
        "PORT": str(port),
        "WIDTHSEARCH_STORAGE": url.replace(f":{server.password}@", "@"),
    }


@pytest.mark.slow
def test_the_teams_page_asks_for_its_token_and_cannot_write(server: Postgres, tmp_path: Path) -> None:
    url = server.new_database()
    env = reading_environment(server, url, tmp_path)
    (tmp_path / "serve_token").write_text("0" * 32 + "\n")
    address = f"http://127.0.0.1:{env['PORT']}"
    process = subprocess.Popen(
        [DOCKER / "start-serve.sh"], env={**env, "BIND": "0.0.0.0"}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and f":{env['PORT']}" in process.stdout.readline()
        with urllib.request.urlopen(f"{address}/health", timeout=30) as answer:  # as compose.yaml does
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{address}/api/studies", timeout=30)
        header = {"Authorization": f"Bearer {'0' * 32}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{address}/api/studies", headers=header)
        ) as answer:
            assert json.load(answer) == []  # it made the tables
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("optuna_dashboard") is None, reason="optuna-dashboard is not installed")
def test_the_dashboard_shows_studies_and_cannot_delete_them(server: Postgres, tmp_path: Path) -> None:
    url = server.new_database()
    env = reading_environment(server, url, tmp_path)
    port = env["PORT"]

    def ask(method: str, path: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def names() -> list[str]:
        return [study["study_name"] for study in ask("GET", "studies")["study_summaries"]]

    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([DOCKER / "start-dashboard.sh"], env=env, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                assert names() == []  # it made the tables
                break
            except urllib.error.URLError:
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.2)
        optuna.create_study(storage=url, study_name="kept")
        assert names() == ["kept"]
        with pytest.raises(urllib.error.HTTPError, match="500"):
            ask("DELETE", "studies/1")
        assert names() == ["kept"]
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.parametrize("script", sorted(path.name for path in DOCKER.glob("start-*.sh")))
def test_a_missing_secret_is_named(script: str, tmp_path: Path) -> None:
    env = {**os.environ, "SECRETS_DIR": str(tmp_path), "PRIVATE_DIR": str(tmp_path / "private")}
    result = subprocess.run([DOCKER / script], env=env, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: no secret {tmp_path}/") and result.stderr.count("\n") == 1


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def test_compose_opens_ports_to_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    assert {"db", "head", "worker", "serve", "dashboard"} == set(services)
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert set(published) == {"head", "serve", "dashboard"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_compose_watches_restarts_and_orders_every_service(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name
        needed = service.get("depends_on", {})
        assert all(n["condition"] == "service_healthy" for n in needed.values()), name
        assert bool(needed) == (name != "db"), name


def test_compose_holds_no_secret(services: dict[str, dict[str, Any]]) -> None:
    files = {s["file"] for s in yaml.safe_load(COMPOSE.read_text())["secrets"].values()}
    assert files == {"secrets/ray_token", "secrets/postgres_password", "secrets/serve_token"}
    assert "secrets/" in (DOCKER / ".gitignore").read_text().splitlines()
    for name, service in services.items():
        for variable in service["environment"]:
            secret = any(word in variable for word in ("PASSWORD", "TOKEN"))
            assert not secret or variable.endswith(("_FILE", "_PATH")), (name, variable)
    assert all(services[name]["environment"]["RAY_AUTH_MODE"] == "token" for name in ("head", "worker"))


def compose_client() -> list[str] | None:
    """The Docker Compose client of this machine, version 2 or newer."""
    for client in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(client[0]):
            version = subprocess.run([*client, "version", "--short"], capture_output=True, text=True)
            if version.returncode == 0 and not version.stdout.startswith("1."):
                return client
    return None


def test_docker_compose_accepts_the_file() -> None:
    client = compose_client()
    if client is None:
        pytest.skip("no Docker Compose client on PATH")
    # Settings are the test's own, not those of the user's environment or docker/.env
    env = {**os.environ, "STUDIES": str(DOCKER.parent / "studies"), "WORKER_CPUS": "3", "TORCH_INDEX": "x"}
    result = subprocess.run(
        [*client, "-f", COMPOSE, "config", "--format", "json"], env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "warn" not in result.stderr.lower()
    services = json.loads(result.stdout)["services"]
    assert {p["host_ip"] for s in services.values() for p in s.get("ports", [])} == {"127.0.0.1"}
    assert services["worker"]["environment"]["WORKER_CPUS"] == "3"
    studies = [v for v in services["worker"]["volumes"] if v["target"] == "/workspace/studies"]
    assert [v.get("read_only") for v in studies] == [True]

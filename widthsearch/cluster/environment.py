"""The Ray that trainings run on: how it is set up, who may reach it, and what reaches its workers.

Imported before Ray, which reads its environment at that moment.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from widthsearch.errors import UsageError

_ENVIRONMENT = {
    # Nothing is reported to anybody: not even that nothing is reported.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    # Trainings run in the folder where the user started the driver: their data() may use relative paths.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Else a local Ray begins with a process per CPU in which no training ever runs.
    "RAY_prestart_worker_first_driver": "0",
    # Tune's own log files, tables and snapshots are not wanted: the database has it all.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are ours: see stopping.py
}


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported; what the user has set stays.

    Raises :class:`UsageError` if there is no token for the cluster at ``address``.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None:
        # Ray's switch for systems where it must not listen on the network (macOS, Windows): with it a local
        # Ray binds to 127.0.0.1 alone, here too.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN" not in os.environ:
        _private_token(address)


def _private_token(address: str | None) -> None:
    """See to a token file that nobody else can read.  A local Ray gets a new token, a cluster has its own."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        if address is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    except OSError:  # no home to keep it in: a token for this search alone
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return
    if not path.is_file():
        raise UsageError(
            f"no token for the Ray cluster at {address!r}: put the cluster's token into {str(path)!r} or "
            "name its file in RAY_AUTH_TOKEN_PATH (for a cluster without tokens, set RAY_AUTH_MODE=disabled)"
        )
    status = path.stat()
    if status.st_uid == os.getuid() and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        path.chmod(0o600)  # Ray writes it readable by everybody


def check_address(address: str) -> None:
    """Raise :class:`UsageError` if nothing answers there; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        if address != "auto":
            raise UsageError(f"Ray address {address!r}: give auto, host:port or ray://host:10001")
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"no Ray cluster at {address!r}: {error}") from None


def check_admission(address: str) -> None:
    """Raise :class:`UsageError` if a driver here cannot join: Ray itself would try for up to a minute.

    That is where the cluster refuses our token, and where this machine is no part of it.
    """
    from ray._private import services

    client = address.startswith("ray://")
    try:
        where = (
            address.removeprefix("ray://")
            if client
            else services.canonicalize_bootstrap_address_or_die(address)
        )
    except ConnectionError:
        raise UsageError(
            f"Ray address {address!r}: no Ray cluster on this machine; give ray://host:10001"
        ) from None
    if _token_is_refused(where, client):
        raise token_refused(where)
    if not client and not services.find_node_ids():
        host = where.rpartition(":")[0]
        raise UsageError(
            f"this machine is no part of the Ray cluster at {where!r}: give --address ray://{host}:10001 or "
            f"--submit http://{host}:8265, or start the search on one of its machines"
        )


def token_refused(where: str) -> UsageError:
    """What to raise when a cluster does not take our token."""
    return UsageError(
        f"the Ray cluster at {where!r} refused our token: is it the cluster's? (RAY_AUTH_TOKEN_PATH)"
    )


def _token_is_refused(where: str, client: bool) -> bool:
    """Whether a cluster says so at once; whatever else is wrong, Ray will tell."""
    try:
        import grpc  # type: ignore[import-untyped,import-not-found,unused-ignore]
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2 as gcs
        from ray.core.generated import gcs_service_pb2_grpc as gcs_grpc
        from ray.core.generated import ray_client_pb2 as ray_client
        from ray.core.generated import ray_client_pb2_grpc as ray_client_grpc
    except ImportError:  # it comes with ray[client] and ray[default]
        return False
    try:
        with init_grpc_channel(where) as channel:
            if client:
                ping = ray_client.ClusterInfoRequest(type=ray_client.ClusterInfoType.PING)
                ray_client_grpc.RayletDriverStub(channel).ClusterInfo(ping, timeout=10)
            else:
                stub = gcs_grpc.NodeInfoGcsServiceStub(channel)
                stub.CheckAlive(gcs.CheckAliveRequest(), timeout=10)
    except grpc.RpcError as error:
        return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def unpacked(study_file: str, files: Mapping[str, bytes]) -> str:
    """Where the study file is on this host: in its place if it is there as it should be, else in a copy."""
    path, name = Path(study_file), next(iter(files))
    folder = path.parents[len(Path(name).parts) - 1]
    try:
        if all((folder / other).read_bytes() == content for other, content in files.items()):
            return str(path)
    except OSError:
        pass
    return str(copied(files) / name)


def copied(files: Mapping[str, bytes]) -> Path:
    """A new temporary folder with these files."""
    folder = Path(tempfile.mkdtemp(prefix="widthsearch-"))
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder

"""Ray itself: started on this machine or connected to, what it has room for, whether it lives."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
import tenacity

from widthsearch.cluster.environment import check_address
from widthsearch.database.connection import PATIENCE_SECONDS
from widthsearch.errors import UsageError, describe_error
from widthsearch.study.study import Study

log = logging.getLogger(__name__)

#: How often a connection that the cluster aborted is tried.
CONNECTIONS = 3
#: How long to wait before that.
PAUSE_SECONDS = 0.25
#: How often a Ray of our own is started that does not come up (in half a minute), and the wait between.
STARTS, PAUSE_BETWEEN_STARTS = 5, 5.0


class _NoRayError(UsageError):
    """Ray does not start, or answer: another try may help."""


def start_ray(
    study: Study, workers: int | None, address: str | None, say: Callable[[str], None], *, again: bool = False
) -> None:
    """A Ray for this search alone, on 127.0.0.1; or with an ``address``, a connection to a cluster.

    A Ray that does not start is tried again, as a busy machine may be too slow for it; so is a cluster that
    went away in the middle of a search (``again``): its head may take its time to come back.  Raises
    :class:`UsageError` where there is none to be had, or no GPU that the study asks for.
    """

    def attempt() -> None:
        if again and address is not None:
            check_address(address)
        _start(study, workers, address)

    def tell(state: tenacity.RetryCallState) -> None:
        if address is None and state.outcome is not None:
            say(f"{state.outcome.exception()}; trying again")

    if not again:
        say("starting Ray" if address is None else f"connecting to the Ray cluster at {address}")
    tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(UsageError if again and address is not None else _NoRayError),
        stop=tenacity.stop_after_attempt(STARTS)
        if address is None
        else tenacity.stop_after_delay(PATIENCE_SECONDS if again else 0),
        wait=tenacity.wait_fixed(PAUSE_BETWEEN_STARTS),
        before_sleep=tell,
        reraise=True,
    )(attempt)
    if address is None and study.gpus and study.gpus > (gpus := ray.cluster_resources().get("GPU", 0.0)):
        ray.shutdown()
        raise UsageError(f"Study(gpus={study.gpus!r}): this machine has {gpus:g} GPUs that Ray can see")


def _start(study: Study, workers: int | None, address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    # Only the driver talks to the database: its address, perhaps with a password, is not for Ray's processes.
    secret = {name: os.environ.pop(name) for name in ("WIDTHSEARCH_STORAGE",) if name in os.environ}
    start = time.monotonic()
    try:
        if address is not None:
            context = _connected(address, **quiet)
        else:
            cpus = -(-(workers or 1) * cpus_of(study) // 1)  # rounded up
            # Small object store: results are a few numbers, data is loaded by each worker.
            context = ray.init(
                address="local",  # whatever RAY_ADDRESS says
                num_cpus=int(cpus),
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                **quiet,
            )
    except Exception as error:  # Ray raises plain ones, too: "The current node timed out during startup"
        with suppress(Exception):
            ray.shutdown()
        where = "Ray does not start here" if address is None else f"no Ray cluster at {address!r}"
        raise _NoRayError(f"{where}: {describe_error(error)}") from error
    except SystemExit:  # what Ray makes of a SIGTERM at this moment
        raise KeyboardInterrupt from None
    finally:
        os.environ.update(secret)
    link = (
        f"dashboard at http://{context.dashboard_url}" if context.dashboard_url else "without its dashboard"
    )
    log.info("Ray is there after %.1f s, %s", time.monotonic() - start, link)


def _connected(address: str, **options: Any) -> Any:
    """``ray.init`` on a running cluster; a busy head of ray:// may need another try to serve a new client."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ConnectionAbortedError),
        stop=tenacity.stop_after_attempt(CONNECTIONS),
        wait=tenacity.wait_fixed(PAUSE_SECONDS),
        reraise=True,
    )
    return retrying(ray.init, address=address, **options)


def cpus_of(study: Study) -> float:
    """The CPUs that Ray sets aside for one training."""
    return study.threads * study.processes if study.cpus is None else study.cpus


def room_for(study: Study) -> int:
    """How many trainings the cluster can run at a time now, at least one."""
    there = ray.cluster_resources()
    room = there.get("CPU", 0.0) / cpus_of(study)
    if study.gpus:
        room = min(room, there.get("GPU", 0.0) / study.gpus)
    return max(1, int(room))


def daemons_live() -> bool:
    """Whether the daemons of a local Ray live.  (Without its GCS, Ray ends this process a minute later.)"""
    node = ray._private.worker._global_node
    return node is None or not node.is_head() or node.remaining_processes_alive()


def reason_of(error: Exception) -> str:
    """One line of an error of Ray's: some are whole tracebacks, whose last line says it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith(("Traceback", "ray::", "\x1b[36mray::")):
        return lines[-1].strip()
    return describe_error(error)

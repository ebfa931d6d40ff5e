"""The driver itself as a Ray job on a remote cluster: submitted, followed, and left to itself."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from widthsearch.cluster.environment import copied, token_refused
from widthsearch.database.connection import hide_password, parse_url, secret_options, sqlite_path
from widthsearch.errors import UsageError, describe_error


class Job:
    """A submitted search.  Raises :class:`UsageError` where there is no job server, or no right to use it."""

    def __init__(self, server: str, command: Sequence[str], files: Mapping[str, bytes]) -> None:
        self.server = server
        from ray.exceptions import RayError  # not earlier: Ray reads its environment when it is imported

        folder = copied(files)
        try:
            self._client = _client(server)
            self.id: str = self._client.submit_job(
                entrypoint=shlex.join(command), runtime_env={"working_dir": str(folder)}
            )
        except (RuntimeError, ConnectionError, ValueError, RayError) as error:
            raise _refusal(server, error) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commands(self) -> str:
        """How to follow and how to stop it.  Ray's own command sends a token only when told to."""
        ray = f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} ray"
        return "\n".join(
            f"{what}: {ray} job {verb} --address {self.server} {self.id}"
            for what, verb in (("follow it", "logs -f"), ("stop it", "stop"))
        )

    def follow(self, say: Callable[[str], None]) -> str:
        """Hand on what the job prints until it ends; its last status (``SUCCEEDED``, ``FAILED``...)."""

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(self.id):
                say(lines.rstrip("\n"))

        try:
            asyncio.run(tail())
            return str(self._client.get_job_status(self.id).value)
        except Exception as error:  # whatever of requests, aiohttp and Ray
            go_on = self.commands().replace("\n", "; ")
            raise UsageError(
                f"lost the job server at {self.server!r} ({describe_error(error)}); the job may still run; "
                f"{go_on}"
            ) from None


def check_server(server: str) -> None:
    """Refuse what is no job server's address: Ray would wait for long, or import a module of that name."""
    try:
        parts = urlsplit(server)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in server:  # a password would be printed, and read in the process list
        raise UsageError(
            f"--submit {server.split('@')[-1]!r}: give the address of the cluster's job server, without user "
            "or password, e.g. http://head:8265"
        )


def check_storage(url: str | None) -> None:
    """Refuse a database that the job could not use, or whose password the job list would show."""
    if url is None:
        return  # the one that WIDTHSEARCH_STORAGE names on the cluster
    parsed = parse_url(url)
    if parsed.password or secret_options(parsed):
        raise UsageError(
            f"storage {hide_password(url)!r}: Ray's job list would show its password; leave it out and "
            "set PGPASSFILE, or WIDTHSEARCH_STORAGE, in the environment of the cluster's head"
        )
    file = sqlite_path(url)
    if file is not None and not file.is_absolute():
        raise UsageError(
            f"storage {url!r} would lie in the job's own folder and be lost with it: give an absolute path "
            "on the cluster's head (sqlite:////data/widthsearch.db) or a server (postgresql://...)"
        )


def _client(server: str) -> Any:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        missing = f"{error.name or error}; pip install 'widthsearch[cluster]'"
        raise UsageError(f"--submit needs Ray's job client ({missing})") from None
    client = JobSubmissionClient(server)
    for module in (
        "dashboard.modules.job.sdk",
        "dashboard.modules.dashboard_sdk",
        "_private.runtime_env.packaging",
    ):  # they would tell of every package and connection
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
    return client


def _refusal(server: str, error: Exception) -> UsageError:
    if any(word in str(error).lower() for word in ("401", "403", "unauthor", "token")):
        return token_refused(server)
    return UsageError(f"no Ray job server at {server!r}: {describe_error(error)}")

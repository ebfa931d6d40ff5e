"""Network namespaces as hosts: several machines on one, for tests.

Hosts are joined by a bridge.  It has no address and no host has a default route, so traffic stays between
the hosts; Ray, which looks for its own address by that route, must be told ``hosts["head"].ip``.  Files and
processes are those of the real machine.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

_counter = itertools.count()


class Host:
    """One machine of :class:`Hosts`: an address, and processes that see the network from there."""

    def __init__(self, name: str, namespace: str, cable: str, ip: str) -> None:
        self.name, self.ip = name, ip
        self._namespace, self._cable = namespace, cable
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, args: Sequence[str | Path], env: Mapping[str, str] | None = None, **popen: Any
    ) -> subprocess.Popen[str]:
        """Start a process on this host; ``env`` is added to this process's environment."""
        process = subprocess.Popen(
            [_ip_command(), "netns", "exec", self._namespace, *map(str, args)],
            env={**os.environ, **(env or {})},
            text=True,
            **popen,
        )
        self._started.append(process)
        return process

    def run(
        self, args: Sequence[str | Path], env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end; its output, with stderr, is in ``stdout``."""
        process = self.start(args, env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        out, _ = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(args, process.returncode, out)

    def pids(self) -> list[int]:
        """All processes that run on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self._namespace).split()]

    def kill(self) -> None:
        """The machine dies: ``kill -9`` for all its processes at once."""
        deadline = time.monotonic() + 10
        while pids := self.pids():  # again: one of them may have started another meanwhile
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._started:
                process.poll()
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {pids} of host {self.name} cannot be killed")
            time.sleep(0.05)

    def unplug(self) -> None:
        """Pull the network cable: packets vanish, no connection is closed."""
        _ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        """Put the network cable back."""
        _ip("link", "set", self._cable, "up")

    def _close(self) -> None:
        self.kill()
        for process in self._started:
            process.wait(timeout=10)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


class Hosts:
    """``with Hosts("head", "w1") as hosts: hosts["w1"].start([...])``; at the end nothing is left of them."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._key = f"{os.getpid()}x{next(_counter)}"  # unique; interface names have 15 characters at most
        self._hosts: dict[str, Host] = {}
        self._cleanup = ExitStack()

    def __enter__(self) -> Hosts:
        with ExitStack() as cleanup:  # undoes what was made if the rest fails
            bridge, network = f"wb{self._key}", f"10.{os.getpid() // 256 % 256}.{os.getpid() % 256}"
            _ip("link", "add", bridge, "type", "bridge")
            cleanup.callback(_ip, "link", "delete", bridge)
            _ip("link", "set", bridge, "up")
            for number, name in enumerate(self._names, start=1):
                namespace, cable = f"ws{self._key}-{name}", f"w{self._key}-{number}"
                ip = f"{network}.{number}"
                _ip("netns", "add", namespace)
                cleanup.callback(_ip, "netns", "delete", namespace)
                _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
                cleanup.callback(_ip, "link", "delete", cable)
                _ip("link", "set", cable, "master", bridge, "up")
                _ip("-n", namespace, "address", "add", f"{ip}/24", "dev", "eth0")
                _ip("-n", namespace, "link", "set", "eth0", "up")
                _ip("-n", namespace, "link", "set", "lo", "up")
                self._hosts[name] = Host(name, namespace, cable, ip)
                cleanup.callback(self._hosts[name]._close)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._cleanup.close()

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]


@functools.cache
def why_not() -> str | None:
    """Why hosts cannot be made on this machine, or ``None`` if they can: for ``pytest.mark.skipif``."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    if not Path(_ip_command()).exists():
        return "network namespaces need the command ip (package iproute2)"
    try:
        with Hosts("probe") as hosts:
            hosts["probe"].run(["true"])
    except (OSError, RuntimeError) as error:
        return f"network namespaces cannot be made here: {error}"
    return None


def _ip_command() -> str:
    return shutil.which("ip", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") or "ip"


def _ip(*args: str) -> str:
    done = subprocess.run([_ip_command(), *args], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout

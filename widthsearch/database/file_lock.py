"""The driver lock of a database that has none of its own: beside its file, or on this host alone.

Two locks in one, and both die with the process that holds them.  A lock file beside the database keeps
drivers on all hosts apart that see the file, and names its holder.  A file can be removed, so on Linux there
is also a socket whose name only the kernel keeps: nobody can remove it, and the kernel knows whose it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from widthsearch.database.connection import database_command, hide_password, opening, sqlite_path
from widthsearch.errors import DatabaseGoneError, UsageError
from widthsearch.plans.words import slug

NAME_BYTES = 63  # PostgreSQL cuts an application's name here
PREFIX = "widthsearch "
GRACE_SECONDS = 0.5  # `show` may hold a lock for a moment, to see whether anybody does
_LINUX = sys.platform == "linux"
_SOCKETS = Path("/proc/net/unix")


def me() -> str:
    """Host and process, as others are told; a long host name is cut, never the process."""
    process = f", process {os.getpid()}"
    return socket.gethostname()[: NAME_BYTES - len(PREFIX) - len(process)] + process


def refusal(url: str, study_name: str, holder: str | None) -> UsageError:
    """What a second driver is told."""
    return UsageError(
        f"study {study_name!r} is running on {holder or 'a host that is not known'}; watch it with: "
        f"{database_command(url, 'show', study_name, '--watch')}"
    )


class FileLock:
    """See above.  Raises :class:`UsageError` where the lock file cannot be written."""

    def __init__(self, url: str, study_name: str) -> None:
        path = sqlite_path(url)
        with opening(url):  # by whatever name it is reached
            self._database = None if path is None else path.resolve()
        # A database server gives no folder to lock in: then the lock holds on this host only.
        base = self._database or Path(tempfile.gettempdir()) / f"widthsearch-{_digest(url)}"
        own = slug(study_name.lower())  # some file systems do not tell "a" from "A"
        if own != study_name:  # two names must never share a lock; no slug has a dot
            own += f".{_digest(study_name)}"
        self._url, self._study_name = url, study_name
        self._file = Path(f"{base}.{own}.lock")
        self._identity = _identity(self._database)
        whose = f"{base}" if self._identity is None else f"{self._identity}"  # also by a hard link
        self._address = f"\0widthsearch-{_digest(f'{whose} {study_name}')}"
        self._fd: int | None = None
        self._socket: socket.socket | None = None

    def acquire(self) -> None:
        """Take it; :class:`UsageError` if another process has it."""
        give_up = time.monotonic() + GRACE_SECONDS
        while not self._take():
            if time.monotonic() > give_up:
                holder = self.holder()
                self.release()
                raise refusal(self._url, self._study_name, holder)
            time.sleep(0.05)
        assert self._fd is not None
        with suppress(OSError):  # a full disk: the lock does without its name
            os.truncate(self._fd, 0)
            os.pwrite(self._fd, me().encode(), 0)

    def confirm(self) -> None:
        """See that the database is the one that was locked, and put back a lock file that was removed."""
        if self._database is not None and _identity(self._database) != self._identity:
            raise DatabaseGoneError(
                f"the database {hide_password(self._url)!r} was deleted or replaced while study "
                f"{self._study_name!r} ran; the search stops, its checkpoints are kept: put the file back, "
                "then resume"
            )
        if self._fd is None or not _is(self._fd, self._file):
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
            self.acquire()

    def release(self) -> None:
        """Give it back; no file stays."""
        self.remove_file()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def remove_file(self) -> None:
        """Remove the lock file, if it is ours; whoever waits for it then makes another one."""
        with suppress(OSError):
            if self._fd is not None and _is(self._fd, self._file):
                self._file.unlink()

    def is_held(self) -> bool:
        """Asks without taking it, so that a driver that starts at this moment is not disturbed."""
        with suppress(OSError):
            if _LINUX and f"@{self._address[1:]}\n" in _SOCKETS.read_text(errors="replace"):
                return True
        try:
            fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(fd)
        return False

    def holder(self) -> str | None:
        """Host and process of whoever holds it; empty if they have no name; ``None`` if it is free."""
        if _LINUX and self._socket is None and (pid := _listener(self._address)):
            return f"{socket.gethostname()}, process {pid}"
        if not self.is_held():
            return None
        with suppress(OSError, ValueError):
            return self._file.read_text()[:200]
        return ""

    def _take(self) -> bool:
        if _LINUX and self._socket is None:
            self._socket = _listen(self._address)
            if self._socket is None:
                return False
        with _writing(self._file):
            self._fd = _locked(self._file)
        return self._fd is not None


@contextmanager
def _writing(file: Path) -> Iterator[None]:
    """What goes wrong with a lock file, in one line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"lock file {str(file)!r} cannot be used: {error.strerror}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Device and number of a file; ``None`` if there is none."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def _is(fd: int, file: Path) -> bool:
    """Whether the open file is still the one of that name."""
    opened = os.fstat(fd)
    return _identity(file) == (opened.st_dev, opened.st_ino)


def _locked(file: Path) -> int | None:
    """The lock file, open and locked; ``None`` if another process holds it.  May raise ``OSError``."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(file, flags, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        if _is(fd, file):  # its last holder may just have removed it
            return fd
        os.close(fd)


def _listen(address: str) -> socket.socket | None:
    """A socket of this name; ``None`` if another process has it."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(address)
        made.listen(1024)
    except OSError:
        made.close()
        return None
    return made


def _listener(address: str) -> int:
    """The process that has the socket of this name, as the kernel says; 0 if none, or if it is hidden."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(address)
            found = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return 0
    return int(struct.unpack("3i", found)[0])

"""The folder of a study's checkpoints: a path, or a URL that fsspec opens, that all workers share.

Where it is stands in the database, which may say anything: it must be called what the study's name and
identity give, only plain protocols are opened, and only files are removed that are ours by name and content.
"""

from __future__ import annotations

import re
import uuid
from contextlib import suppress
from pathlib import Path

from widthsearch.errors import CheckpointError, describe_error
from widthsearch.plans.words import slug

OURS = ".checkpoints"  # how a folder is called that nobody but a search has made
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"}  # of fsspec's protocols
#: What is opened at all: others wrap further URLs, run programs or read what they are told to.
PROTOCOLS = {"file", "hdfs", *OBJECT_STORES}
#: How every checkpoint begins (see training/checkpoint.py).
MAGIC = b'{"widthsearch": '
_KINDS = "measure|score|baseline|report|pruned|sweep"
_OURS = re.compile(rf"(check|({_KINDS})[-+.\w]*\.ckpt)(\.[0-9a-f]{{8}}\.tmp)?")


def folder_name(study_name: str, identity: str) -> str:
    """What the folder of a study's checkpoints is called."""
    return f"{slug(study_name)}-{slug(identity)[:8]}"


def checked_url(url: str) -> str:
    """The URL without a slash at its end; :class:`CheckpointError` if it is none that may be opened."""
    protocol, colon, _ = url.partition("://")
    plain = protocol in PROTOCOLS if colon else Path(url).is_absolute()
    if not plain or "::" in url or ".." in url.split("/"):
        raise CheckpointError(
            f"checkpoints {url!r:.200} cannot be used: give an absolute path, or a URL of one of "
            f"{', '.join(sorted(PROTOCOLS))}, such as s3://bucket/folder"
        )
    return url.rstrip("/")


class Folder:
    """The checkpoints of one study.  Raises :class:`CheckpointError` where it cannot be used."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = checked_url(url)
        try:
            self.files, self.path = fsspec.core.url_to_fs(self.url)
            protocol = self.files.protocol
            self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
            self._has_folders = not self._protocols & OBJECT_STORES
            if self._has_folders:
                self.files.makedirs(self.path, exist_ok=True)
            else:  # a mistyped bucket is not to be made
                self.files.ls(self.path.partition("/")[0])
        except Exception as error:
            raise CheckpointError(f"checkpoints {url!r} cannot be used: {describe_error(error)}") from None

    @classmethod
    def of_study(cls, url: str, study_name: str, identity: str) -> Folder:
        """The folder that the database names, if it is called as a study's is: by its first name, perhaps."""
        wanted = folder_name(study_name, identity)
        called = url.rstrip("/").rpartition("/")[2]
        if not re.fullmatch(r"[-\w]{1,60}" + re.escape(wanted[-9:]), called, re.ASCII):
            raise CheckpointError(
                f"study {study_name!r}: its checkpoints are said to be in {url!r:.200}, which should end in "
                f"{wanted!r}: no search made it; say where they are with --checkpoints"
            )
        return cls(url)

    def check(self) -> None:
        """Write and remove a file: some file systems tell only then that they cannot.  May raise."""
        try:
            self.write("check", b"")
        except Exception as error:
            raise CheckpointError(
                f"checkpoints {self.url!r} cannot be used: {describe_error(error)}"
            ) from None
        self.remove("check")

    def read(self, name: str) -> bytes | None:
        """The file's content, ``None`` if there is no such file."""
        try:
            content: bytes = self.files.cat_file(f"{self.path}/{name}")
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write aside and rename, so that no reader ever meets half a file.

        (Without fsync: after a power cut the checksum tells a torn file, and the training starts again.)
        """
        aside = f"{self.path}/{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            if self._has_folders:
                self.files.makedirs(self.path, exist_ok=True)  # it may have been cleaned up
            self.files.pipe_file(aside, content)
            self.files.mv(aside, f"{self.path}/{name}")
        except BaseException:
            with suppress(Exception):  # made here, so it is ours however far it was written
                self.files.rm_file(aside)
            raise

    def remove(self, name: str) -> None:
        """Remove one checkpoint."""
        self._remove_quietly(f"{self.path}/{name}")

    def clear(self) -> None:
        """Remove all checkpoints, those that a killed worker may have left as well, and the empty folder."""
        with suppress(Exception):  # rubbish that stays is no reason to stop a search
            self.files.invalidate_cache()
            for path in self.files.ls(self.path, detail=False):
                self._remove_quietly(path)
            if self._has_folders:
                self.files.rmdir(self.path)
            parent = self.path.rpartition("/")[0]
            if "file" in self._protocols and parent.endswith(OURS):
                self.files.rmdir(parent)  # raises if that of another study is in it

    def _remove_quietly(self, path: str) -> None:
        with suppress(Exception):
            self.files.invalidate_cache()
            if self._is_ours(path):
                self.files.rm_file(path)

    def _is_ours(self, path: str) -> bool:
        """Whether a file is called as one of ours, and begins like one, as far as it was written."""
        if not _OURS.fullmatch(path.rpartition("/")[2]):
            return False
        if "file" in self._protocols and Path(path).is_symlink():
            return False
        if self.files.size(path) == 0:
            return True
        begins: bytes = self.files.cat_file(path, start=0, end=len(MAGIC))
        return MAGIC.startswith(begins)

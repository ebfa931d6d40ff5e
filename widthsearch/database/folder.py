"""The folder of a study's checkpoints: a path, or any URL that fsspec opens, that all workers share."""

from __future__ import annotations

import uuid
from contextlib import suppress

from widthsearch.errors import CheckpointError, describe_error

OURS = ".checkpoints"  # how a folder is called that nobody but a search has made
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"}  # of fsspec's protocols


class Folder:
    """The checkpoints of one study.  Raises :class:`CheckpointError` where it cannot be used."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
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
            self._remove_quietly(aside)
            raise

    def remove(self, name: str | None = None) -> None:
        """Remove one checkpoint, or the folder with all that a killed worker may have left."""
        self._remove_quietly(self.path if name is None else f"{self.path}/{name}")
        parent = self.path.rpartition("/")[0]
        if name is None and "file" in self._protocols and parent.endswith(OURS):
            with suppress(OSError):  # that of another study is in it
                self.files.rmdir(parent)

    def _remove_quietly(self, path: str) -> None:
        try:
            self.files.invalidate_cache()
            if self.files.exists(path):
                self.files.rm(path, recursive=True)
        except Exception:  # rubbish that stays is no reason to stop a search
            return

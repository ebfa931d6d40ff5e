"""Checkpoints inside a training run, so that it goes on from its last epoch whoever runs it next.

One file per slot of the plan, in one folder per study that all workers share (a path, or any URL that fsspec
opens).  A file is a line of JSON, then what ``torch.save`` writes.  The line says whose state it is and has
its checksum: a torn file or that of another training is not used.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import random
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from widthsearch.database.folder import Folder
from widthsearch.errors import CheckpointError, TrainingError, UsageError, describe_error
from widthsearch.space.copies import named_tensors

log = logging.getLogger(__name__)

FORMAT = 1
WRITING_SHARE = 0.05  # of the training time: where writing is slow, not every epoch is written
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)  # no use in trying again
PAUSES = (1.0, 5.0, None)  # seconds before the second and third try to write


@runtime_checkable
class Stateful(Protocol):
    """A part of a training's state: optimizers, schedules, gates..."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain Python values (for ``torch.load(weights_only=True)``)."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Continue from there, to the last bit."""


class Checkpoint:
    """The checkpoint of one training run: :meth:`restore` once, then :meth:`save` after every epoch.

    ``identity`` says whose state it is: a file with another one is not used.  ``parts`` are what the
    training loop does not know of (gates).  ``warnings`` collects what a person should know.
    """

    def __init__(
        self, folder: Folder, name: str, identity: str, parts: Mapping[str, Stateful] | None = None
    ) -> None:
        self.warnings: list[str] = []
        self.parts = dict(parts or {})
        self._folder, self._name, self._identity = folder, name, identity
        self._began = time.monotonic()
        self._written, self._took = -float("inf"), 0.0  # when the last one was, and how long it took

    @property
    def seconds(self) -> float:
        """Training time so far, that of earlier workers up to their last checkpoint included."""
        return time.monotonic() - self._began

    def restore(self, parts: Mapping[str, Stateful]) -> int:
        """Load the state into the parts; returns how many epochs are done, 0 without a usable checkpoint."""
        state = self._load()
        if state is None:
            log.debug("no checkpoint %s", self._name)
            return 0
        try:
            for name, part in {**self.parts, **parts}.items():
                part.load_state_dict(state[name])
        except Exception as error:  # half loaded is of no use: the next try must not find it again
            self._folder.remove(self._name)
            raise TrainingError(f"checkpoint {self._name} does not fit: {describe_error(error)}") from error
        self._began -= state["seconds"]
        epochs: int = state["epochs"]
        log.info("checkpoint %s: goes on after %d epochs", self._name, epochs)
        return epochs

    @property
    def is_due(self) -> bool:
        """Whether :meth:`save` would write now."""
        return time.monotonic() - self._written >= self._took / WRITING_SHARE

    def save(self, epochs: int, parts: Mapping[str, Stateful]) -> None:
        """Write the state after so many epochs, unless writing takes too large a share of the time.

        Raises :class:`CheckpointError` if it cannot be written.
        """
        if not self.is_due:
            return
        began = time.monotonic()
        buffer = io.BytesIO()
        state = {name: part.state_dict() for name, part in {**self.parts, **parts}.items()}
        torch.save({**state, "epochs": epochs, "seconds": self.seconds}, buffer)
        payload = buffer.getbuffer()
        header = {
            "widthsearch": FORMAT,
            "identity": self._identity,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        self._write(json.dumps(header).encode() + b"\n" + payload)
        self._written = time.monotonic()
        self._took = self._written - began

    def _write(self, content: bytes) -> None:
        for pause in PAUSES:
            try:
                self._folder.write(self._name, content)
                break
            except Exception as error:
                if pause is None or getattr(error, "errno", None) in HOPELESS:
                    raise CheckpointError(
                        f"checkpoint {self._folder.url}/{self._name} cannot be written on "
                        f"{socket.gethostname()}: {describe_error(error)}"
                    ) from error
                time.sleep(pause)

    def _load(self) -> dict[str, Any] | None:
        try:
            content = self._folder.read(self._name)
        except Exception as error:
            self._warn(f"cannot be read ({describe_error(error)})")
            return None
        if content is None:
            return None
        line, _, payload = content.partition(b"\n")
        try:
            header = json.loads(line)
            whole = header["bytes"] == len(payload)
            whole = whole and header["sha256"] == hashlib.sha256(payload).hexdigest()
            if not whole or header["widthsearch"] != FORMAT:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            self._warn("is damaged (wrong checksum)")
            return None
        if header["identity"] != self._identity:
            self._warn("belongs to another training")
            return None
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
        except Exception as error:
            self._warn(f"cannot be loaded ({describe_error(error)})")
            return None
        return state

    def _warn(self, why: str) -> None:
        self.warnings.append(f"checkpoint {self._folder.url}/{self._name} {why}: starting again")


class NetworkState:
    """The weights of a network and all of its buffers, those that ``state_dict`` leaves out as well."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def state_dict(self) -> dict[str, Any]:
        """Name -> tensor."""
        return {name: tensor.detach() for name, tensor in named_tensors(self._net).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """In place, as optimizers and gates hold on to the parameters."""
        with torch.no_grad():
            for name, tensor in named_tensors(self._net).items():
                tensor.copy_(state[name])


class GeneratorState:
    """Of one generator of random numbers."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """As torch gives it."""
        return {"state": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set it."""
        self._generator.set_state(state["state"])


class FileState:
    """A file, or a folder with all that is in it, in which a library keeps a state of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def state_dict(self) -> dict[str, Any]:
        """The content of each file by its name relative to the path."""
        files = [f for f in (self._path, *sorted(self._path.rglob("*"))) if f.is_file()]
        if not files:
            raise UsageError(f"report.checkpoint(): there is no file {self._path}, which was to be kept")
        return {
            f.relative_to(self._path).as_posix(): torch.from_numpy(np.fromfile(f, dtype=np.uint8))
            for f in files
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Write them; never outside of the path, whatever a checkpoint says."""
        for name, content in state.items():
            file = self._path / name
            if not file.resolve().is_relative_to(self._path.resolve()):
                raise ValueError(f"{name!r} is not in {self._path}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.numpy().tobytes())


class RandomState:
    """All random numbers of a training: the global generators, and that of the order of the batches."""

    def __init__(self, device: torch.device, order: torch.Generator | None = None) -> None:
        self._device, self._order = device, order

    def state_dict(self) -> dict[str, Any]:
        """States of Python's, NumPy's and torch's generators."""
        kind, keys, *rest = np.random.get_state(legacy=True)
        version, numbers, gauss = random.getstate()
        return {
            "python": [version, list(numbers), gauss],
            "numpy": [kind, [int(k) for k in keys], *rest],
            "torch": torch.get_rng_state(),
            **({"order": self._order.get_state()} if self._order is not None else {}),
            **({"cuda": torch.cuda.get_rng_state(self._device)} if self._device.type == "cuda" else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set them all."""
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if self._order is not None:
            self._order.set_state(state["order"])
        if "cuda" in state and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self._device)

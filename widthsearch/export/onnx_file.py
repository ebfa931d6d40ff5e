"""A trained network as an ONNX file, checked against torch."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from widthsearch.errors import describe_error
from widthsearch.space import call
from widthsearch.space.copies import arguments, tensors_in

TOLERANCE = 1e-3  # between torch and onnxruntime, relative to the largest output
INSIDE = 2**31 - 2**20  # bytes of weights that one ONNX file holds; beyond, they lie in a file beside it


class NotExportedError(Exception):
    """The network cannot be written as ONNX, or computes something else there; one line."""


@dataclass(frozen=True)
class Checked:
    """An ONNX file that computes what torch does: to this largest absolute ``difference`` of any output."""

    difference: float
    any_batch: bool  # whether it takes batches of any size, or only of the example's


def write_onnx(net: nn.Module, example: Any, file: Path) -> Checked:
    """Write a network in eval mode (on the CPU) into ``file``, and run it in onnxruntime on the example.

    Batches of any size if the network allows it, tried with a size that the exporter has not seen.  Raises
    :class:`NotExportedError`; ``file`` may then be there in part.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise NotExportedError(f"{error.name} is missing: pip install 'widthsearch[onnx]'") from None
    larger = tree_map(lambda t: torch.cat([t, t[:1]]) if isinstance(t, Tensor) and t.ndim else t, example)
    try:
        try:
            _export(net, example, file, any_batch=True)
            return Checked(max(_difference(net, x, file) for x in (example, larger)), any_batch=True)
        except Exception:  # a size of the network depends on the batch's: then for this one alone
            _export(net, example, file, any_batch=False)
            return Checked(_difference(net, example, file), any_batch=False)
    except NotExportedError:
        raise
    except Exception as error:
        raise NotExportedError(describe_error(_first(error))) from error


def _export(net: nn.Module, example: Any, file: Path, *, any_batch: bool) -> None:
    args, kwargs = arguments(example)
    shapes = tree_map(_any_batch, kwargs or args) if any_batch else None
    large = sum(t.numel() * t.element_size() for t in net.state_dict().values()) > INSIDE
    with _quiet():
        torch.onnx.export(
            net,
            args,
            file,
            kwargs=kwargs or None,
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=large,
            verbose=False,
        )


def _any_batch(value: Any) -> Any:
    return {0: torch.export.Dim.DYNAMIC} if isinstance(value, Tensor) and value.ndim else None


def _difference(net: nn.Module, example: Any, file: Path) -> float:
    """The largest absolute difference of any output between torch and onnxruntime."""
    import onnxruntime

    with _quiet():
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        inputs = [value.name for value in session.get_inputs()]
        given = [t.numpy() for t in tree_leaves(example) if isinstance(t, Tensor)]
        by_name = isinstance(example, Mapping) and set(inputs) <= set(example)
        feed = {n: example[n].numpy() for n in inputs} if by_name else dict(zip(inputs, given, strict=True))
        outputs = [torch.as_tensor(value) for value in session.run(None, feed)]
        with torch.no_grad():
            expected = tensors_in(call(net, example))
    if [t.shape for t in outputs] != [t.shape for t in expected]:
        raise NotExportedError("its outputs in onnxruntime have other shapes than in torch")
    pairs = list(zip(outputs, expected, strict=True))
    difference = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    if not difference <= TOLERANCE * max(1.0, *(float(b.double().abs().max()) for _, b in pairs)):
        raise NotExportedError(f"onnxruntime and torch differ by {difference:.1e}")
    return difference


def _first(error: BaseException) -> BaseException:
    """What the exporter stumbled over: its own errors say at length which of its steps that was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter and its libraries tell their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

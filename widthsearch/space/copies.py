"""Copies of a model, on any device and of any sizes, and running them."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from widthsearch.errors import UsageError


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, under its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copy_with(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A deep copy in which these tensors stand for the model's own (same names, any shape or device).

    What is a parameter in the model is one in the copy.
    Raises UsageError if something in the model cannot be copied.
    """
    memo: dict[int, Tensor] = {}
    for name, old in named_tensors(model).items():
        new = tensors[name]
        memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}"
        ) from error


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in whatever a model returns: nested containers and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, (list, tuple, set)):
        return [t for v in value for t in tensors_in(v)]
    if dataclasses.is_dataclass(value):
        return [t for v in vars(value).values() for t in tensors_in(v)]
    return []


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called: ``**inputs`` for a mapping, ``*inputs`` for a tuple or list, else ``inputs``."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """``model(**inputs)`` for a mapping, ``model(*inputs)`` for a tuple, else ``model(inputs)``."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


def batch_size(inputs: Any) -> int:
    """The length of the first tensor that has a dimension; 1 without any."""
    return next((len(tensor) for tensor in tensors_in(inputs) if tensor.ndim), 1)


def to_device(example: Any, device: str) -> Any:
    """The example with its tensors on another device."""
    return tree_map(lambda t: t.detach().to(device) if isinstance(t, Tensor) else t, example)


def empty_copy(
    model: nn.Module, device: str | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> nn.Module:
    """A copy on ``device`` (default: each tensor's own) with tensors of these ``shapes`` (default: its own).

    Tensors that keep their shape keep their values, except on meta.
    """
    new: dict[str, Tensor] = {}
    for name, old in named_tensors(model).items():
        shape = tuple(old.shape if shapes is None else shapes[name])
        if device == "meta" or shape != tuple(old.shape):
            new[name] = torch.empty(shape, dtype=old.dtype, device=device or old.device)
        else:
            new[name] = old.detach().to(device or old.device, copy=True)
    return copy_with(model, new)


@contextmanager
def reference_kernels(device: str) -> Iterator[None]:
    """No gradients and no fused kernels: every operation shows."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration")  # setting the mkldnn flag says so
            mkldnn = torch.backends.mkldnn.flags(enabled=False)
            with torch.no_grad(), mkldnn if device == "cpu" else nullcontext():
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)

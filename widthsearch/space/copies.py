"""Copies of a model, on any device and of any sizes, and running them."""

from __future__ import annotations

import copy
import dataclasses
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
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

    What is a parameter in the model is one in the copy.  Functions that hold parts of the model (a lambda in
    an attribute, a hook) are copied with what they hold, which ``deepcopy`` alone does not do; weights that a
    hook computes before each call (``nn.utils.weight_norm``, pruning masks) are computed anew.
    Raises UsageError if something in the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for name, old in named_tensors(model).items():
        new = tensors[name]
        memo[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    try:
        with _more_copied():
            copied = copy.deepcopy(model, memo)
        _compute_weights(copied)
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}"
        ) from error
    return copied


def _compute_weights(model: nn.Module) -> None:
    """Let the hooks of ``torch.nn.utils`` compute the weights that they replace."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):
                training, module.training = module.training, False
                with torch.no_grad():  # a leaf, that others may copy
                    hook(module, ())
                module.training = training


@contextmanager
def _more_copied() -> Iterator[None]:
    """Let ``deepcopy`` copy functions with what they hold, and computed tensors without how."""
    dispatch: dict[type, Any] = copy._deepcopy_dispatch  # type: ignore[attr-defined]
    as_it_is = dispatch[types.FunctionType]
    dispatch |= {types.FunctionType: _copied_function, Tensor: _copied_tensor}
    try:
        yield
    finally:
        dispatch[types.FunctionType] = as_it_is
        del dispatch[Tensor]


def _copied_tensor(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    copied: Tensor = (tensor if tensor.is_leaf else tensor.detach()).__deepcopy__(memo)  # type: ignore[no-untyped-call]
    return copied


def _copied_function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    cells = function.__closure__ or ()
    held = [*cells, function.__defaults__, function.__kwdefaults__]
    if not any(held):
        return function
    new = tuple(types.CellType() for _ in cells)
    code, names = function.__code__, function.__globals__
    copied = types.FunctionType(code, names, function.__name__, None, new)
    memo[id(function)] = copied  # first: it may hold itself
    try:
        for mine, cell in zip(new, cells, strict=True):
            with suppress(ValueError):  # its variable has no value yet
                mine.cell_contents = copy.deepcopy(cell.cell_contents, memo)
        copied.__defaults__ = copy.deepcopy(function.__defaults__, memo)
        copied.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, memo)
    except (TypeError, RuntimeError):  # it holds what nobody can copy (a file, a lock): no part of a model
        memo[id(function)] = function
        return function
    copied.__dict__.update(function.__dict__)
    return copied


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in whatever a model returns: nested containers and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value):
        value = list(vars(value).values())
    return [t for part in value for t in tensors_in(part)] if isinstance(value, (list, tuple, set)) else []


def outputs_of(value: Any, counts: str | int | None) -> list[Tensor]:
    """The tensors in what a model returns, or in its output of this key, attribute or position alone.

    Raises UsageError if there is none.
    """
    if counts is None:
        return tensors_in(value)
    try:
        by_key = isinstance(value, Mapping) or isinstance(counts, int)
        return tensors_in(value[counts] if by_key else getattr(value, str(counts)))
    except (LookupError, TypeError, AttributeError):
        raise UsageError(f"output={counts!r}: the model returns {type(value).__name__} without it") from None


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
        shape = tuple((shapes or {}).get(name, old.shape))
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


def by_part(tensor: Tensor) -> Tensor:
    """Real numbers as they are; of complex ones the two parts, as a last dimension."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor

"""Copies of a model at other widths: fresh ones of any size, and ones that keep some of the units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from widthsearch.space.attributes import parts_of, with_parts
from widthsearch.space.copies import copy_with, empty_copy, named_tensors
from widthsearch.space.recorder import Trace
from widthsearch.space.variables import Variables

#: Sizes that torch's layers state, and the tensor and dimension that has each; of several the last one.
SIZES: tuple[tuple[Any, str, str, int], ...] = (
    (nn.Linear | nn.Bilinear, "out_features", "weight", 0),
    (nn.Linear, "in_features", "weight", 1),
    (nn.Bilinear, "in1_features", "weight", 1),
    (nn.Bilinear, "in2_features", "weight", 2),
    (nn.Embedding | nn.EmbeddingBag, "embedding_dim", "weight", 1),
    (nn.PReLU, "num_parameters", "weight", 0),
    (nn.RNNCellBase, "input_size", "weight_ih", 1),
    (nn.RNNCellBase, "hidden_size", "weight_hh", 1),
    (nn.RNNBase, "input_size", "weight_ih_l0", 1),
    (nn.RNNBase, "hidden_size", "weight_hh_l0", 1),
    (nn.RNNBase, "hidden_size", "weight_hr_l0", 1),  # with a projection, which the recurrent weight reads
    (nn.RNNBase, "proj_size", "weight_hr_l0", 0),
    (nn.MultiheadAttention, "kdim", "in_proj_weight", 1),
    (nn.MultiheadAttention, "vdim", "in_proj_weight", 1),
    (nn.MultiheadAttention, "kdim", "k_proj_weight", 1),
    (nn.MultiheadAttention, "vdim", "v_proj_weight", 1),
)


def resized_copy(
    model: nn.Module, trace: Trace, variables: Variables, widths: Sequence[int], device: str | None = None
) -> nn.Module:
    """A copy at these widths; tensors of a new size are uninitialised (``device``: default each its own)."""
    shapes = {
        name: [variables.size(trace.axes.get((name, dim), size), widths) for dim, size in enumerate(shape)]
        for name, shape in trace.shapes.items()
    }
    copied = empty_copy(model, device, shapes)
    synchronise_attributes(copied, model, trace, variables, widths)
    return copied


def compacted_copy(
    model: nn.Module, trace: Trace, variables: Variables, keep: Sequence[NDArray[np.bool_]]
) -> nn.Module:
    """A copy with only the units where ``keep`` (one bool array per variable) is true, weights included."""
    kept = np.concatenate([*keep, np.array([True])])  # position -1, a constant, stays
    new: dict[str, Tensor] = {}
    for name, old in named_tensors(model).items():
        tensor = old.detach()
        for dim in range(old.ndim):
            ids = trace.axes.get((name, dim))
            if ids is not None and not kept[variables.position[ids]].all():
                index = torch.as_tensor(np.flatnonzero(kept[variables.position[ids]]), device=old.device)
                tensor = tensor.index_select(dim, index)
        new[name] = tensor.clone() if tensor.data_ptr() == old.data_ptr() else tensor
    copied = copy_with(model, new)
    synchronise_attributes(copied, model, trace, variables, [int(k.sum()) for k in keep])
    return copied


def synchronise_attributes(
    copied: nn.Module, original: nn.Module, trace: Trace, variables: Variables, widths: Sequence[int]
) -> None:
    """Make the sizes that modules state (``out_channels``, ``in_features`` ...) agree with their tensors."""
    modules = dict(copied.named_modules())
    training = {module: module.training for module in modules.values()}
    for module in training:  # to read a spectrally normed weight in training changes it
        module.training = False
    for name, module in modules.items():
        _synchronise_module(module, by_groups=trace.by_groups.get(name, False))
        for buffer in module._buffers:
            if f"{name}.{buffer}".lstrip(".") not in trace.shapes:  # a cache of some later forward pass
                module._buffers[buffer] = None
    for module, mode in training.items():
        module.training = mode
    for name, heads in trace.heads.items():
        module = modules[name]
        if isinstance(module, nn.MultiheadAttention):
            module.embed_dim = int(module.out_proj.weight.shape[1])
            module.num_heads = variables.size(heads, widths)
            module.head_dim = module.embed_dim // module.num_heads
    for name, module in modules.items():
        if isinstance(module, nn.TransformerEncoder):
            _synchronise_encoder(module, original.get_submodule(name))
    for (name, path), (units, power) in trace.scales.items():
        holds, size = modules[name].__dict__, variables.size(units, widths)
        holds[path[0]] = _stated(holds[path[0]], path[1:], size if power == 1 else size**power)
    for (name, path), (dim, ratio) in trace.stated.items():
        size = math.prod(variables.size(factor, widths) for factor in dim)
        holds = modules[name].__dict__
        holds[path[0]] = _stated(holds[path[0]], path[1:], math.floor(size / ratio))
    for name, channels in trace.normalised.items():
        module = modules[name]
        if isinstance(module, _NormBase):
            # InstanceNorm sees the channels once per sample: only the ratio of the sizes counts.
            stated = int(original.get_submodule(name).num_features)  # type: ignore[arg-type]
            module.num_features = variables.size(channels, widths) * stated // len(channels)
        elif isinstance(module, nn.GroupNorm):
            inside = module.num_channels // module.num_groups
            module.num_channels = variables.size(channels, widths)
            if trace.by_groups[name]:
                module.num_groups = module.num_channels // inside


def _synchronise_encoder(copied: nn.TransformerEncoder, original: nn.Module) -> None:
    """``use_nested_tensor``, which torch decides when it makes an encoder: an odd number of heads has none.

    What a user has set by hand stays.
    """
    there, here = _nested(original), _nested(copied)
    if here is not None and there is not None and original.use_nested_tensor == there:
        copied.use_nested_tensor = here


def _nested(encoder: nn.Module) -> bool | None:
    """What torch's own constructor says: that of an encoder of no such layers, so that nothing is copied.

    None of a class of the user's that has other parts.
    """
    try:
        first, asked = encoder.layers[0], encoder.enable_nested_tensor  # type: ignore[index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would say why not
            return bool(nn.TransformerEncoder(first, 0, enable_nested_tensor=asked).use_nested_tensor)  # type: ignore[arg-type]
    except (AttributeError, IndexError):
        return None


def _stated(value: Any, path: Sequence[Any], size: float) -> Any:
    """The value, or a copy of it where it holds another size at this path."""
    if not path:
        return size
    old = parts_of(value)[path[0]]
    new = _stated(old, path[1:], size)
    return value if new is old or new == old else with_parts(value, {path[0]: new})


def _synchronise_module(module: nn.Module, *, by_groups: bool) -> None:
    for kind, attribute, name, dim in SIZES:
        if isinstance(module, kind) and (tensor := getattr(module, name, None)) is not None:
            setattr(module, attribute, int(tensor.shape[dim]))
    if isinstance(module, _ConvNd):
        if by_groups:
            inside = module.in_channels // module.groups
            stacked = inside if module.transposed else module.out_channels // module.groups
            module.groups = int(module.weight.shape[0]) // stacked
        elif module.groups == module.in_channels and module.groups > 1:  # depthwise
            multiplier = 1 if module.transposed else module.out_channels // module.groups
            module.groups = int(module.weight.shape[0]) // multiplier
        first, second = int(module.weight.shape[0]), int(module.weight.shape[1]) * module.groups
        module.out_channels, module.in_channels = (second, first) if module.transposed else (first, second)

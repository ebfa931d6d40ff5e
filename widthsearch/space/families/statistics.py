"""Normalisation, reductions, pooling: operations that compute statistics over a dimension."""

from __future__ import annotations

import re

import torch

from widthsearch.space.labels import Dims, Report, constants
from widthsearch.space.op import Op, Result


def batch_norm(op: Op) -> Result:
    """Statistics per channel: parameters and buffers follow the channels.

    Other units are reduced where a weight is standardised this way: (1, outputs, inputs x kernel).
    """
    dims = op.dims("input")
    if op.get("training"):
        op.statistics(dims, [i for i in range(len(dims)) if i != 1])
    units = op.follow(dims[1], "weight", "bias", "running_mean", "running_var")
    op.recorder.note_normalised(op.labels.flat(units))
    return [(dims[0], units, *dims[2:])]


def layer_norm(op: Op) -> Result:
    """Statistics over the last dimensions; weight and bias follow their units."""
    dims, count = op.dims("input"), len(op["normalized_shape"])
    op.statistics(dims, range(len(dims) - count, len(dims)))
    op.gates_output = count == 1 and op.recorder.site is not None
    op.broadcast(op.inputs, op["input"].shape)
    return [dims]


def group_norm(op: Op) -> Result:
    """Statistics over groups of channels: the units are whole groups, or the positions inside them."""
    dims, labels, groups = op.dims("input"), op.labels, op["group"]
    channels = labels.flat(dims[1])
    if not isinstance(channels, int):
        group, inside = labels.split(channels, groups)
        if op.by_groups(groups, len(channels) // groups):
            labels.freeze((inside,), f"{op.where}: the channels of a group", Report.IF_READ)
        else:
            labels.freeze((group,), f"{op.where}: the groups of channels", Report.IF_READ)
            op.statistics(dims, [1])
        op.recorder.note_normalised(channels)
    return [(dims[0], op.follow(dims[1], "weight", "bias"), *dims[2:])]


def weight_norm(op: Op) -> Result:
    """``g v / norm(v)``, the norm over all dimensions of the weight ``v`` but one; also gives the norms.

    The norm is that of the open units, so that ``v`` may be gated along these dimensions; the units of the
    other one are those of ``g``.
    """
    dims, index = list(op.dims("v")), op.dim_index()
    op.statistics(tuple(dims), [i for i in range(len(dims)) if i != index])
    dims[index] = op.labels.unify(op.dims("g")[index], dims[index])
    return [tuple(dims), tuple(dims[i] if i == index else () for i in range(len(dims)))]


def along_dimension(op: Op) -> Result:
    """Keeps the shape, but mixes or reorders along ``dim`` (softmax, cumsum, flip)."""
    dims = op.dims(op.inputs[0])
    chosen = op.get("dims") or ([op["dim"]] if op.get("dim") is not None else range(len(dims)))
    for i in chosen:
        op.freeze(dims[i], "mixes or reorders these units")
    return [dims] * len(op.outputs)


def masked_reduction(op: Op) -> Result:
    """A sum, mean, variance or norm: over units it is one of the open units."""
    dims, reduced = op.dims(op.inputs[0]), _reduced(op)
    op.statistics(dims, sorted(reduced))
    return [_left(op, reduced)] * len(op.outputs)


def choosing_reduction(op: Op) -> Result:
    """A maximum or minimum, any or all: over units one of the open units; where it is, no other width says.

    The pieces of a maxout, one size that is read as pieces x units, stay as many as they are.
    """
    dims, reduced = op.dims(op.inputs[0]), _reduced(op)
    pieces = {i for i in reduced if op.labels.is_split(dims[i])}
    for i in pieces:
        op.freeze(dims[i], "reduces over these units")
    op.statistics(dims, sorted(reduced - pieces))
    for i in reduced - pieces:
        op.freeze_if_used(dims[i], "tells which of these units it is", op.outputs[1:])
    return [_left(op, reduced)] * len(op.outputs)


def reduction(op: Op) -> Result:
    """A product, the position of a maximum ... over dimensions that must be constant."""
    dims, reduced = op.dims(op.inputs[0]), _reduced(op)
    for i in reduced:
        op.freeze(dims[i], "reduces over these units")
    return [_left(op, reduced)] * len(op.outputs)


def _reduced(op: Op) -> set[int]:
    ndim, chosen = op.inputs[0].ndim, op.get("dim")
    if isinstance(chosen, int):
        chosen = [chosen]
    return {i % ndim for i in chosen} if chosen and ndim else set(range(ndim))


def _left(op: Op, reduced: set[int]) -> Dims:
    """The dims of the result: the reduced ones gone, or of size 1."""
    dims = op.dims(op.inputs[0])
    if op.outputs[0].ndim == len(dims):
        return tuple(() if i in reduced else dim for i, dim in enumerate(dims))
    return tuple(dim for i, dim in enumerate(dims) if i not in reduced)


def spatial(op: Op) -> Result:
    """Pooling, upsampling, padding: the last dimensions (as many as the name says) get a constant size."""
    x, out = op.inputs[0], op.outputs[0]
    named = re.search(r"([123])d", op.name)
    if named is None or x.ndim != out.ndim:
        return None
    last = range(x.ndim - int(named.group(1)), x.ndim)
    return [op.lose(op.dims(x), last, "slides over these units")] * len(op.outputs)


def sampled(op: Op) -> Result:
    """``grid_sample``: channels of an image at the places of a grid, whose own dimensions are constant."""
    *places, coordinates = op.dims("grid")
    for dim in places:
        op.freeze(dim, "samples at places given by these units")
    op.labels.freeze(coordinates, f"{op.where}: a place has so many coordinates", Report.NEVER)
    return spatial(op)


def unpooled(op: Op) -> Result:
    """``max_unpool``: each value goes back to the place that the pooling of as many channels noted."""
    op.align(op.dims("self"), op["indices"])
    return spatial(op)


def packed(op: Op) -> Result:
    """``pack_padded_sequence`` and its inverse: sequences of several lengths in a row, whole rows of units.

    The steps and sequences, one dimension or two, are constant.
    """
    packs = op.get("input") is not None
    x, out = op.inputs[0], op.outputs[0]
    dims, steps = op.dims(x), 2 if packs else 1
    for dim in dims[:steps]:
        op.freeze(dim, "packs sequences along these units")
    made = constants(out.shape[: 3 - steps])
    return [(*made, *dims[steps:]), *(constants(t.shape) for t in op.outputs[1:])]


def loss(op: Op) -> Result:
    """An element-wise loss inside of the network; its mean or sum is a statistic."""
    out = op.outputs[0]
    dims = op.broadcast(op.inputs, torch.broadcast_shapes(*(t.shape for t in op.inputs)))  # type: ignore[no-untyped-call]
    if out.ndim == len(dims) and out.ndim:
        return [dims]
    op.statistics(dims, range(len(dims)))
    return [()]


def fourier(op: Op) -> Result:
    """A Fourier transform along ``dim``."""
    chosen = {int(i) % op["self"].ndim for i in op["dim"]}
    return [op.lose(op.dims("self"), chosen, "transforms along these units")]

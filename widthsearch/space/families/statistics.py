"""Normalisation, reductions, pooling: operations that compute statistics over a dimension."""

from __future__ import annotations

import re

from widthsearch.space.labels import constants
from widthsearch.space.op import Op, Result


def batch_norm(op: Op) -> Result:
    """Statistics per channel: parameters and buffers follow the channels."""
    dims = op.dims("input")
    units = dims[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = op.get(name)
        if tensor is not None and tensor.shape[0] != 1:
            units = op.labels.unify(units, op.dims(tensor)[0])
    op.tracer.note_normalised(op.labels.flat(units))
    return [(dims[0], units, *dims[2:])]


def layer_norm(op: Op) -> Result:
    """Statistics over the last dimensions."""
    dims, count = op.dims("input"), len(op["normalized_shape"])
    for dim in dims[-count:]:
        op.freeze(dim, "computes statistics over these units")
    op.broadcast(op.inputs, op["input"].shape)  # frees no unit, but says why weight and bias are constant
    return [dims]


def group_norm(op: Op) -> Result:
    """Statistics over groups of channels."""
    dims = op.dims("input")
    op.freeze(dims[1], "computes statistics over these units")
    for name in ("weight", "bias"):
        if op[name] is not None and op[name].shape[0] != 1:
            op.labels.unify(dims[1], op.dims(name)[0])
    return [dims]


def along_dimension(op: Op) -> Result:
    """Keeps the shape, but mixes or reorders along ``dim`` (softmax, cumsum, flip)."""
    dims = op.dims(op.inputs[0])
    chosen = op.get("dims") or [op["dim"]]
    for i in chosen:
        op.freeze(dims[i], "mixes or reorders these units")
    return [dims] * len(op.outputs)


def reduction(op: Op) -> Result:
    """A sum, mean, maximum ... over dimensions that must be constant."""
    x, out = op.inputs[0], op.outputs[0]
    dims = op.dims(x)
    chosen = op.get("dim")
    if isinstance(chosen, int):
        chosen = [chosen]
    reduced = {i % x.ndim for i in chosen} if chosen and x.ndim else set(range(x.ndim))
    for i in reduced:
        op.freeze(dims[i], "reduces over these units")
    if out.ndim == x.ndim:
        kept = tuple(() if i in reduced else dim for i, dim in enumerate(dims))
    else:
        kept = tuple(dim for i, dim in enumerate(dims) if i not in reduced)
    return [kept] * len(op.outputs)


def spatial(op: Op) -> Result:
    """Pooling, upsampling, padding: the last dimensions (as many as the name says) get a constant size."""
    x, out = op.inputs[0], op.outputs[0]
    found = re.search(r"([123])d", op.name)
    if found is None or x.ndim != out.ndim:
        return None
    count = int(found.group(1))
    dims = op.dims(x)
    for dim in dims[-count:]:
        op.freeze(dim, "slides over these units")
    return [(*dims[:-count], *constants(out.shape[-count:]))] * len(op.outputs)

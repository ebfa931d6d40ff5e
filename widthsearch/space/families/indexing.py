"""Indexing by tensors: the dimensions that are indexed lose their units, all others keep theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from widthsearch.space.labels import Dim, Dims, Report, constant, constants
from widthsearch.space.op import Op, Result


def index(op: Op) -> Result:
    """``x[i, :, j]``, ``x[mask]``: the indexed dimensions become those of the index."""
    return [_layout(op, op.outputs[0].ndim)]


def index_put(op: Op) -> Result:
    """``x[i] = values``."""
    count = op["self"].ndim - len(_indexed(op)) + _index_shape(op)
    op.align(_layout(op, count), op["values"])
    return [op.dims("self")]


def _indexed(op: Op) -> list[int]:
    """The dimensions of ``self`` that tensors index; a mask covers as many as it has."""
    covered: list[int] = []
    position = 0
    for tensor in op["indices"]:
        count = tensor.ndim if tensor is not None and tensor.dtype in (torch.bool, torch.uint8) else 1
        if tensor is not None:
            covered += range(position, position + count)
        position += count
    return covered


def _index_shape(op: Op) -> int:
    """How many dimensions the index has."""
    return max(1 if t.dtype in (torch.bool, torch.uint8) else t.ndim for t in op["indices"] if t is not None)


def _layout(op: Op, ndim: int) -> Dims:
    """The dims of ``self`` where those that are indexed have become those of the index."""
    dims, by = op.dims("self"), _indexed(op)
    _give_up(op, [dims[i] for i in by], op["self"])
    together = by == list(range(by[0], by[-1] + 1))
    before = [dim for i, dim in enumerate(dims) if i < by[0]] if together else []
    after = [dim for i, dim in enumerate(dims) if i not in by][len(before) :]
    count = ndim - len(before) - len(after)
    shape = op.outputs[0].shape[len(before) : len(before) + count] if op.name == "index" else [1] * count
    return (*before, *constants(shape), *after)


def _give_up(op: Op, dims: list[Dim], tensor: Tensor) -> None:
    for dim in dims:
        if op.recorder.label(tensor).live:
            op.freeze(dim, "picks these units by position")
        else:  # a table of positions
            op.labels.freeze(dim, f"{op.where}: rows are looked up by number", Report.NEVER)


def gather(op: Op) -> Result:
    """``x.gather(dim, index)``."""
    at, index = op.dim_index(), op.dims("index")
    _give_up(op, [op.dims("self")[at]], op["self"])
    return [tuple(own if i == at else _along(op, i, "index") for i, own in enumerate(index))]


def scatter(op: Op) -> Result:
    """``x.scatter_add(dim, index, src)``, ``x.index_add(dim, index, source)`` and their likes."""
    at, dims = op.dim_index(), op.dims("self")
    written = [name for name in ("src", "source") if isinstance(op.get(name), Tensor)]
    for name in ("self", *written):
        _give_up(op, [op.dims(name)[at]], op[name])
    if not op.name.startswith("index"):
        written.append("index")
    return [tuple(dim if i == at else _along(op, i, *written) for i, dim in enumerate(dims))]


def _along(op: Op, i: int, *names: str) -> Dim:
    """The dimension ``i`` of ``self``, tied to that of others; constant where they have a part of it."""
    result = op.dims("self")[i]
    for name in names:
        size = op[name].shape[i]
        if size == op["self"].shape[i]:
            result = op.labels.unify(result, op.dims(name)[i])
        else:
            op.freeze((*result, *op.dims(name)[i]), "takes a part of these units by position")
            result = constant(op.outputs[0].shape[i])
    return result


def topk(op: Op) -> Result:
    """The largest along ``dim``, in their order."""
    return [op.lose(op.dims("self"), [op.dim_index()], "picks these units by their values")] * 2

"""Views, copies, concatenation: operations that move values and compute none."""

from __future__ import annotations

import math
from itertools import accumulate

from widthsearch.space.families.elementwise import filled
from widthsearch.space.labels import Dim, Factor, Report, constant, constants, size_of
from widthsearch.space.op import Op, Result


def view(op: Op) -> Result:
    """Regroup the factors."""
    dims = op.labels.reshape(op.dims(op.inputs[0]), op.outputs[0].shape)
    return None if dims is None else [dims]


def restride(op: Op) -> Result:
    """``as_strided`` to the same shape: another order in memory (pooling of channels-last tensors)."""
    return [op.dims("self")] if tuple(op["size"]) == tuple(op["self"].shape) else None


def permute(op: Op) -> Result:
    """Dimensions in another order."""
    dims = op.dims("self")
    return [tuple(dims[i] for i in op["dims"])]


def transpose(op: Op) -> Result:
    """Two dimensions swapped."""
    dims = list(op.dims("self"))
    if dims:
        i, j = op.dim_index("dim0"), op.dim_index("dim1")
        dims[i], dims[j] = dims[j], dims[i]
    return [tuple(dims)]


def matrix_transpose(op: Op) -> Result:
    """``t()``."""
    return [op.dims("self")[::-1]]


def expand(op: Op) -> Result:
    """Size 1 repeated: the same value everywhere, like a filled tensor."""
    fresh, dims = filled(op)[0], op.dims("self")  # type: ignore[index]
    padded = [()] * (len(fresh) - len(dims)) + [*dims]
    return [tuple(dim or new for dim, new in zip(padded, fresh, strict=True))]


def repeat(op: Op) -> Result:
    """Whole copies one after the other: the copies are a new leading factor; of size 1 it is ``expand``."""
    dims = op.dims("self")
    offset = len(op["repeats"]) - len(dims)
    padded: list[Dim] = [()] * offset + list(dims)
    fresh = filled(op)[0]  # type: ignore[index]
    return [
        tuple(
            (*constant(n), *dim) if dim or i < offset else fresh[i]
            for i, (n, dim) in enumerate(zip(op["repeats"], padded, strict=True))
        )
    ]


EQUAL_PARTS = {"split", "unsafe_split", "chunk", "unsafe_chunk"}


def part_of_dimension(op: Op) -> Result:
    """Slices, splits, chunks, indexing along ``dim``: each output has the units at its positions."""
    index = op.dim_index()
    dims, size = op.dims(op.inputs[0]), op.inputs[0].shape[index]
    if all(t.ndim == len(dims) and t.shape[index] == size for t in op.outputs):
        return [dims] * len(op.outputs)
    whole = op.labels.flat(dims[index])
    places = None if isinstance(whole, int) else _places(op, size, index)
    if places is None and any(t.numel() for t in op.outputs):
        op.freeze(dims[index], "takes a part of these units by position")
    results = []
    for k, out in enumerate(op.outputs):
        kept: tuple[Dim, ...] = (constant(out.shape[index]),) if out.ndim == len(dims) else ()
        if places is not None and not isinstance(whole, int) and out.shape[index] > 1:
            part = whole[places[k]]
            op.labels.cuts.append(part)
            kept = ((part,),)
            first = whole[places[0]]
            if op.name in EQUAL_PARTS and len(part) == len(first):
                op.labels.tie(first, part)  # at another width it cuts elsewhere, unless they stay equal
        results.append((*dims[:index], *kept, *dims[index + 1 :]))
    return results


def glu(op: Op) -> Result:
    """The first half of a dimension times the sigmoid of the second."""
    index, dims = op.dim_index(), op.dims("self")
    whole = op.labels.flat(dims[index])
    if isinstance(whole, int):
        return [(*dims[:index], constant(whole // 2), *dims[index + 1 :])]
    first, second = whole[: len(whole) // 2], whole[len(whole) // 2 :]
    op.labels.tie(first, second)
    return [(*dims[:index], (first,), *dims[index + 1 :])]


def _places(op: Op, size: int, index: int) -> list[slice] | None:
    """Where each output lies in the dimension; None where that is not known or positions are chosen."""
    if op.name == "slice" and op["step"] == 1:
        return [slice(op["start"], op["end"], op["step"])]
    if op.name == "narrow":
        return [slice(op["start"], op["start"] + op["length"])]
    if "split" in op.name or "chunk" in op.name:
        ends = list(accumulate(t.shape[index] for t in op.outputs))
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)] if ends[-1] == size else None
    return None


def pixel_shuffle(op: Op) -> Result:
    """(N, C r r, H, W) to (N, C, H r, W r): whole channels of the result are units."""
    dims, out = op.dims("self"), op.outputs[0].shape
    channels, inside = op.labels.split(op.labels.flat(dims[1]), out[1])
    op.labels.freeze((inside,), f"{op.where}: the pixels of a channel", Report.IF_READ)
    return [(dims[0], () if out[1] == 1 else (channels,), *constants(out[2:]))]


def pixel_unshuffle(op: Op) -> Result:
    """(N, C, H r, W r) to (N, C r r, H, W)."""
    dims = op.dims("self")
    return [
        (dims[0], (*dims[1], *constant(op["downscale_factor"] ** 2)), *constants(op.outputs[0].shape[2:]))
    ]


def channel_shuffle(op: Op) -> Result:
    """(group, k) becomes (k, group)."""
    dims = op.dims(op.inputs[0])
    group, inside = op.labels.split(op.labels.flat(dims[1]), op["groups"])
    return [(dims[0], (inside, group), *dims[2:])]


def concatenate(op: Op) -> Result:
    """Ids side by side along ``dim``, tied along the others."""
    # An empty one-dimensional tensor is ignored by torch.cat, whatever the other shapes.
    tensors = [t for t in op["tensors"] if tuple(t.shape) != (0,)]
    index = int(op["dim"]) % op.outputs[0].ndim
    dims = list(op.broadcast(tensors, op.outputs[0].shape, skip=index))
    parts: list[Factor] = [op.labels.flat(op.dims(t)[index]) for t in tensors if t.shape[index]]
    if all(isinstance(part, int) for part in parts):
        dims[index] = constant(op.outputs[0].shape[index])
    else:
        dims[index] = (op.labels.concatenate(parts),)
    return [tuple(dims)]


def stack(op: Op) -> Result:
    """A new dimension of constant size."""
    dims = op.broadcast(op["tensors"], op["tensors"][0].shape)
    index = int(op["dim"]) % op.outputs[0].ndim
    return [(*dims[:index], constant(len(op["tensors"])), *dims[index:])]


def pad(op: Op) -> Result:
    """Padding lays constants beside the units (a shortcut to a wider stage)."""
    dims = list(op.dims("self"))
    for k in range(len(op["pad"]) // 2):
        index, before, after = len(dims) - 1 - k, op["pad"][2 * k], op["pad"][2 * k + 1]
        whole = op.labels.flat(dims[index])
        if before < 0 or after < 0:
            op.freeze(dims[index], "takes a part of these units by position")
        if isinstance(whole, int) or before < 0 or after < 0:
            dims[index] = constant(op.outputs[0].shape[index])
        elif before or after:
            dims[index] = (op.labels.concatenate(f for f in (before, whole, after) if size_of(f)),)
    return [tuple(dims)]


def image_to_columns(op: Op) -> Result:
    """``F.unfold``: (N, C, H, W) to (N, C k k, positions)."""
    *batch, channels, height, width = op.dims("self")
    op.freeze((*height, *width), "slides over these units")
    kernel = math.prod(op["kernel_size"])
    return [(*batch, (*channels, *constant(kernel)), constant(op.outputs[0].shape[-1]))]


def columns_to_image(op: Op) -> Result:
    """``F.fold``: (N, C k k, positions) to (N, C, H, W)."""
    *batch, columns, positions = op.dims("self")
    op.freeze(positions, "adds up these units")
    channels, inside = op.labels.split(op.labels.flat(columns), op.outputs[0].shape[-3])
    op.labels.freeze((inside,), f"{op.where}: the positions of a kernel", Report.IF_READ)
    size = constants(op.outputs[0].shape[-2:])
    return [(*batch, () if op.outputs[0].shape[-3] == 1 else (channels,), *size)]


def windows(op: Op) -> Result:
    """``x.unfold(dim, size, step)``: windows along one dimension, what is in them as the last."""
    dims = op.lose(op.dims("self"), [op.dim_index("dimension")], "slides over these units")
    return [(*dims, constant(op.outputs[0].shape[-1]))]


def real_pairs(op: Op) -> Result:
    """A complex number as two real ones in a new last dimension, or back."""
    dims = op.dims("self")
    return [(*dims, constant(2)) if op.outputs[0].ndim > len(dims) else dims[:-1]]

"""What each aten operation does to the labels: one small function per family of operations, one table.

**To add an operation**, write a function that takes the :class:`Op` and returns the dims of its outputs
(one :data:`~.labels.Dims` per output; outputs left out are constant), and name it in :data:`FAMILIES` at
the end of the file under the operation's aten name, without a trailing underscore (``relu_`` is ``relu``)::

    def pixel_unshuffle(op: Op) -> Result:
        dims = op.dims("input")
        factor = op["downscale_factor"] ** 2
        return [(dims[0], (*dims[1], factor), *constants(op.outputs[0].shape[2:]))]

Inside a rule, ``op.labels.unify`` ties two dimensions, ``op.freeze`` gives a dimension up with a reason, and
``op.contract`` sums over one.  A rule that meets a case it does not cover returns None: then everything the
operation touches is frozen, as it is for an operation without a rule.  Never guess: a wrong tie passes every
test of shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from widthsearch.space.labels import Dim, Dims, Factor, Report, constant, constants
from widthsearch.space.op import Op

Result = Sequence[Dims] | None
Rule = Callable[[Op], Result]

# A filled tensor has the same value everywhere, so that it can follow a variable; a huge one never does.
LARGEST_FILLED = 1 << 16


# ---------------------------------------------------------------- element-wise


def pointwise(op: Op) -> Result:
    """Element-wise with broadcasting: equal indices are the same unit."""
    shape = op.outputs[0].shape
    dims = op.broadcast(op.inputs, shape)
    return [dims if out.shape == shape else constants(out.shape) for out in op.outputs]


def same(op: Op) -> Result:
    """Values may change, every index stays where it is."""
    return [op.dims(op.inputs[0])] * len(op.outputs)


def filled(op: Op) -> Result:
    """A tensor of one value (zeros, ones): it may follow whatever it is used with; verification tells."""
    return [
        tuple((op.labels.new(s),) if 1 < s <= LARGEST_FILLED else constant(s) for s in op.outputs[0].shape)
    ]


def constant_result(op: Op) -> Result:
    """Values that differ by index (arange, random numbers): constant sizes."""
    return [constants(t.shape) for t in op.outputs]


# ---------------------------------------------------------------- views


def view(op: Op) -> Result:
    """Regroup the factors."""
    dims = op.labels.reshape(op.dims(op.inputs[0]), op.outputs[0].shape)
    return None if dims is None else [dims]


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
    dims, out = op.dims("self"), op.outputs[0]
    offset, result = out.ndim - len(dims), list(filled(op)[0])  # type: ignore[index]
    for i, dim in enumerate(dims):
        if op["self"].shape[i] != 1:
            result[i + offset] = dim
    return [tuple(result)]


def repeat(op: Op) -> Result:
    """Whole copies one after the other: the copies are a new leading factor."""
    dims = op.dims("self")
    offset = len(op["repeats"]) - len(dims)
    padded: list[Dim] = [()] * offset + list(dims)
    return [tuple((*constant(n), *dim) for n, dim in zip(op["repeats"], padded, strict=True))]


def part_of_dimension(op: Op) -> Result:
    """Slices, splits, indexing along ``dim``: fine over constants, not over units (yet)."""
    index = op.dim_index()
    dims = op.dims(op.inputs[0])
    if all(t.ndim == len(dims) and t.shape[index] == op.inputs[0].shape[index] for t in op.outputs):
        return [dims] * len(op.outputs)
    op.freeze(dims[index], "takes a part of these units by position")
    results = []
    for out in op.outputs:
        kept = (constant(out.shape[index]),) if out.ndim == len(dims) else ()
        results.append((*dims[:index], *kept, *dims[index + 1 :]))
    return results


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
    """Padding adds constant sizes."""
    dims = list(op.dims("self"))
    for k in range(len(op["pad"]) // 2):
        index = len(dims) - 1 - k
        if op["pad"][2 * k] or op["pad"][2 * k + 1]:
            op.freeze(dims[index], "pads these units")
            dims[index] = constant(op.outputs[0].shape[index])
    return [tuple(dims)]


# ---------------------------------------------------------------- contractions


def matrix_multiply(op: Op) -> Result:
    """(..., n, k) times (..., k, m), with or without something added."""
    *added, a, b = op.inputs
    dims_a, dims_b = op.dims(a), op.dims(b)
    op.contract(a, dims_a[-1], b, dims_b[-2])
    batch = tuple(op.labels.unify(p, q) for p, q in zip(dims_a[:-2], dims_b[:-2], strict=True))
    op.multiply_accumulate(*batch, dims_a[-2], dims_a[-1], dims_b[-1])
    dims = (*batch, dims_a[-2], dims_b[-1])
    for tensor, dim in ((a, dims_a[-2]), (b, dims_b[-1])):
        op.produce(tensor, dim)
    for bias in added:
        for i in range(1, bias.ndim + 1):
            if bias.shape[-i] != 1:
                op.labels.unify(dims[-i], op.dims(bias)[-i])
    return [dims]


def convolution(op: Op) -> Result:
    """A dense or depthwise convolution, plain or transposed, of any dimension."""
    x, weight, groups, transposed = op["input"], op["weight"], op["groups"], op["transposed"]
    x_dims, w_dims, out = op.dims(x), op.dims(weight), op.outputs[0]
    for dim in w_dims[2:]:
        op.labels.freeze(dim, f"{op.where}: a kernel size", Report.NEVER)
    for dim in x_dims[2:]:
        op.freeze(dim, "slides over these units")
    positions = constants((x if transposed else out).shape[2:])
    op.multiply_accumulate(x_dims[0], *positions, *w_dims)
    if groups == 1:
        reads, makes = (0, 1) if transposed else (1, 0)
        op.contract(x, x_dims[1], weight, w_dims[reads])
        units = w_dims[makes]
        op.produce(weight, units)
    elif groups == x.shape[1]:
        units = _depthwise(op, x_dims[1], w_dims, transposed)
    else:
        for dim in (x_dims[1], *w_dims[:2]):
            op.freeze(dim, f"a convolution in {groups} groups of several channels")
        units = constant(out.shape[1])
    if op["bias"] is not None and out.shape[1] != 1:
        units = op.labels.unify(units, op.dims("bias")[0])
    return [(x_dims[0], units, *constants(out.shape[2:]))]


def _depthwise(op: Op, channels: Dim, w_dims: Dims, transposed: bool) -> Dim:
    """Every channel makes ``multiplier`` channels of its own, and is not mixed with another."""
    if transposed:  # weight (C, multiplier, ...)
        op.labels.freeze(w_dims[1], f"{op.where}: a channel multiplier", Report.NEVER)
        multiplier = constant(op["weight"].shape[1])
        return (*op.labels.unify(channels, w_dims[0]), *multiplier)
    multiplier = constant(op["weight"].shape[0] // op["groups"])  # weight (C * multiplier, 1, ...)
    return op.labels.unify((*channels, *multiplier), w_dims[0])


def embedding(op: Op) -> Result:
    """Looks rows up: the columns are units, the rows are words."""
    words, units = op.dims("weight")
    for dim in (words, units):
        op.produce(op["weight"], dim)
    op.freeze(words, "the rows of an embedding are a vocabulary")
    return [(*op.dims("indices"), units)]


# ---------------------------------------------------------------- statistics


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


# ---------------------------------------------------------------- the table


# Every family with the aten operations it covers; element-wise operations that torch itself tags as
# "pointwise" need no entry.
FAMILIES: dict[Rule, str] = {
    pointwise: """copy where masked_fill _prelu_kernel hardtanh hardswish hardsigmoid leaky_relu elu celu
        mish gelu silu positive rsub addcmul addcdiv lerp log_sigmoid_forward rrelu_with_noise
        rrelu_with_noise_functional""",
    same: """clone contiguous _to_copy detach alias lift_fresh lift_fresh_copy native_dropout dropout
        bernoulli normal uniform fill zero zeros_like ones_like empty_like full_like rand_like randn_like""",
    filled: "zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor",
    constant_result: "arange linspace eye rand randn randint randperm tril_indices triu_indices",
    view: "view _unsafe_view reshape _reshape_alias view_copy unsqueeze squeeze",
    permute: "permute",
    transpose: "transpose",
    matrix_transpose: "t",
    expand: "expand",
    repeat: "repeat",
    part_of_dimension: """slice narrow select index_select unbind split split_with_sizes chunk
        unsafe_split unsafe_split_with_sizes unsafe_chunk""",
    concatenate: "cat",
    stack: "stack",
    pad: "constant_pad_nd",
    matrix_multiply: "mm addmm bmm baddbmm",
    convolution: "convolution",
    embedding: "embedding",
    batch_norm: """native_batch_norm cudnn_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update""",
    layer_norm: "native_layer_norm _fused_rms_norm",
    group_norm: "native_group_norm",
    along_dimension: "_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp flip sort",
    reduction: """sum mean amax amin max min var std var_mean std_mean prod argmax argmin logsumexp any all
        linalg_vector_norm""",
    spatial: """max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices
        avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d
        adaptive_max_pool2d adaptive_max_pool3d reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
        upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d
        _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa""",
}

RULES: dict[str, Rule] = {name: rule for rule, names in FAMILIES.items() for name in names.split()}


def rule_for(func: Any, name: str) -> Rule | None:
    """The rule of an operation; element-wise operations are known by torch's own tag."""
    plain = name if name.startswith("__") else name.rstrip("_")
    rule = RULES.get(plain)
    if rule is None and torch.Tag.pointwise in func.tags:
        return pointwise
    return rule

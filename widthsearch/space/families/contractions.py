"""Operations that sum a product over units: matrix multiplication, convolution, lookup."""

from __future__ import annotations

from widthsearch.space.labels import Dim, Dims, Report, constant, constants
from widthsearch.space.op import Op, Result


def matrix_multiply(op: Op) -> Result:
    """(..., n, k) times (..., k, m), with or without something added."""
    *added, a, b = op.inputs
    dims_a, dims_b = op.dims(a), op.dims(b)
    op.contract(a, dims_a[-1], b, dims_b[-2])
    batch = tuple(op.labels.unify(p, q) for p, q in zip(dims_a[:-2], dims_b[:-2], strict=True))
    op.note_heads(a, b, batch)
    op.multiply_accumulate(*batch, dims_a[-2], dims_a[-1], dims_b[-1])
    dims = (*batch, dims_a[-2], dims_b[-1])
    if not (op.recorder.label(a).source and op.recorder.label(b).source):  # a weight computed from two
        for tensor, dim in ((a, dims_a[-2]), (b, dims_b[-1])):
            op.produce(tensor, dim)
    for bias in added:
        op.align(dims, bias)
    return [dims]


def matrix_vector(op: Op) -> Result:
    """A matrix or a vector times a vector (spectral normalisation): torch does not count it."""
    a, b = op.inputs
    dims_a, dims_b = op.dims(a), op.dims(b)
    if op.is_live:
        op.contract(a, dims_a[-1], b, dims_b[-1])
    else:
        op.statistics(dims_a, [a.ndim - 1])
        op.labels.unify(dims_a[-1], dims_b[-1])
    return [dims_a[:-1]]


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
        units = _grouped(op, x_dims[1], w_dims, transposed)
    return [(x_dims[0], op.follow(units, "bias"), *constants(out.shape[2:]))]


def _depthwise(op: Op, channels: Dim, w_dims: Dims, transposed: bool) -> Dim:
    """Every channel makes ``multiplier`` channels of its own, and is not mixed with another."""
    if transposed:  # weight (C, multiplier, ...)
        op.labels.freeze(w_dims[1], f"{op.where}: a channel multiplier", Report.NEVER)
        multiplier = constant(op["weight"].shape[1])
        return (*op.labels.unify(channels, w_dims[0]), *multiplier)
    multiplier = constant(op["weight"].shape[0] // op["groups"])  # weight (C * multiplier, 1, ...)
    return op.labels.unify((*channels, *multiplier), w_dims[0])


def _grouped(op: Op, channels: Dim, w_dims: Dims, transposed: bool) -> Dim:
    """``groups`` convolutions side by side: a channel is (group, channel inside the group), row by row."""
    labels, groups = op.labels, op["groups"]
    whole = labels.flat(channels)
    group, inside = labels.split(whole, groups)
    # Weight (groups * out, in, ...), if transposed (groups * in, out, ...).
    w_group, w_inside = labels.split(labels.flat(w_dims[0]), groups)
    labels.unify((group,), (w_group,))
    by_groups = op.by_groups(groups, op["input"].shape[1] // groups)
    for fixed in (inside, w_inside, *w_dims[1]) if by_groups else (group, w_group):
        labels.freeze((fixed,), f"{op.where}: the other factor of a grouped convolution", Report.IF_READ)
    if transposed:
        for axis in op.recorder.axes_of(w_dims[0]):
            op.recorder.note_consumer(axis, op["input"])
        labels.unify((inside,), (w_inside,))
        return (group, *w_dims[1])
    op.contract(op["input"], (inside,), op["weight"], w_dims[1])
    site, sites = op.recorder.site, op.recorder.trace.sites
    if site in sites and not isinstance(whole, int):  # a computed weight: all channels are gated
        sites[site] = dict.fromkeys(sites[site], whole)
    op.produce(op["weight"], w_dims[0])
    return w_dims[0]


def attention(op: Op) -> Result:
    """Scaled dot products, softmax over the keys, a weighted sum of the values; (..., heads, time, size)."""
    query, key, value = op.dims("query"), op.dims("key"), op.dims("value")
    labels = op.labels
    op.note_heads(op["query"], op["key"], query[:-2])
    op.contract(op["query"], query[-1], op["key"], key[-1])
    labels.unify(key[-2], value[-2])
    batch = list(query[:-2])
    for i, (q, *others) in enumerate(zip(batch, key[:-2], value[:-2], strict=True)):
        for other in others:
            if op["query"].shape[i] == op["key"].shape[i]:
                batch[i] = labels.unify(batch[i], other)
            else:  # grouped queries: each head of the keys serves several heads of the queries in a row
                shared, _ = labels.split(labels.flat(q), op["key"].shape[i])
                labels.unify((shared,), other)
    mask = op.get("attn_mask") if op.get("attn_mask") is not None else op.get("attn_bias")
    if mask is not None:
        op.align((*batch, query[-2], key[-2]), mask)
    op.multiply_accumulate(*batch, query[-2], key[-1], key[-2])
    op.multiply_accumulate(*batch, query[-2], key[-2], value[-1])
    op.over.clear()  # a softmax lies between the sum over units and what comes out
    return [(*batch, query[-2], value[-1])]


def embedding(op: Op) -> Result:
    """Looks rows up: the columns are units, the rows are words."""
    words, units = op.dims("weight")
    for dim in (words, units):
        op.produce(op["weight"], dim)
    op.labels.freeze(words, f"{op.where}: the rows of an embedding are a vocabulary", Report.NEVER)
    return [(*op.dims("indices"), units)]


def embedding_bag(op: Op) -> Result:
    """Sums or means of rows; the other outputs are bookkeeping."""
    units = embedding(op)[0][-1]  # type: ignore[index]
    return [(*constants(op.outputs[0].shape[:1]), units), *(constants(t.shape) for t in op.outputs[1:])]


def distances(op: Op) -> Result:
    """Distances of every row of ``x1``, (..., P, D), to every one of ``x2``, (..., R, D)."""
    dims_a, dims_b = op.dims("x1"), op.dims("x2")
    op.statistics(dims_a, [len(dims_a) - 1])
    op.labels.unify(dims_a[-1], dims_b[-1])
    batch = tuple(op.labels.unify(p, q) for p, q in zip(dims_a[:-2], dims_b[:-2], strict=True))
    return [(*batch, dims_a[-2], dims_b[-2])]


def bilinear(op: Op) -> Result:
    """``nn.Bilinear``, the only one that uses this operation: (N, i) and (N, j) by a weight (o, i, j)."""
    if (op["expand1"], op["expand2"], op["expand3"]) != ([1, 3], [0], [1, 2]):
        return None
    first, weight, second = (op.dims(name) for name in ("i1", "i2", "i3"))
    op.contract(op["i1"], first[1], op["i2"], weight[1])
    op.contract(op["i3"], second[1], op["i2"], weight[2])
    op.produce(op["i2"], weight[0])
    return [(op.labels.unify(first[0], second[0]), weight[0])]


def grouped_matrix_multiply(op: Op) -> Result:
    """Rows (T, k), sorted by group, each times the matrix of its group, (E, k, m); torch counts nothing."""
    rows, weights = op.dims("self"), op.dims("mat2")
    if len(rows) != 2 or len(weights) != 3:
        return None
    op.contract(op["self"], rows[1], op["mat2"], weights[1])
    op.labels.freeze(weights[0], f"{op.where}: the number of groups", Report.IF_READ)
    op.produce(op["mat2"], weights[2])
    op.multiply_accumulate(*rows, weights[2])
    return [(rows[0], weights[2])]

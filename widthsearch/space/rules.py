"""What each aten operation does to the labels: one small function per family of operations, one table.

**To add an operation**, write a function that takes the :class:`Op` and returns the dims of its outputs
(one :data:`~.labels.Dims` per output; outputs left out are constant), and name it in :data:`FAMILIES`
below under the operation's aten name, without a trailing underscore (``relu_`` is ``relu``)::

    def pixel_unshuffle(op: Op) -> Result:  # (N, C, H r, W r) to (N, C r r, H, W)
        n, channels, *_ = op.dims("self")
        pixels = constant(op["downscale_factor"] ** 2)
        return [(n, (*channels, *pixels), *constants(op.outputs[0].shape[2:]))]

Inside a rule, ``op.labels.unify`` ties two dimensions, ``op.freeze`` gives a dimension up with a reason, and
``op.contract`` sums over one.  A rule that meets a case it does not cover returns None: then everything the
operation touches is frozen, as it is for an operation without a rule.  Never guess: a wrong tie passes every
test of shapes.

**For an operator of your own** (``torch.library.custom_op("mine::double", ...)``), register such a function
under its full name, in the study file::

    from widthsearch.space import register_rule

    register_rule("mine::double", lambda op: [op.dims("x")])  # (N, C) to (N, C), channel by channel
"""

from __future__ import annotations

from typing import Any

import torch

from widthsearch.space.families import contractions, elementwise, indexing, statistics, views
from widthsearch.space.op import Rule

# Every family with the aten operations it covers; element-wise operations that torch itself tags as
# "pointwise" need no entry.
FAMILIES: dict[Rule, str] = {
    elementwise.pointwise: """copy where masked_fill _prelu_kernel hardtanh hardswish hardsigmoid leaky_relu
        elu celu mish gelu silu positive rsub addcmul addcdiv lerp log_sigmoid_forward rrelu_with_noise
        rrelu_with_noise_functional""",
    elementwise.same: """clone contiguous _to_copy detach alias lift_fresh lift_fresh_copy native_dropout
        dropout bernoulli normal uniform exponential geometric cauchy log_normal random fill zero zeros_like
        ones_like empty_like full_like rand_like randn_like""",
    elementwise.filled: "zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor",
    elementwise.constant_result: """_is_all_true _is_any_true arange linspace eye rand randn randint randperm
        tril_indices triu_indices""",
    views.view: "view _unsafe_view reshape _reshape_alias view_copy unsqueeze squeeze",
    views.restride: "as_strided",
    views.permute: "permute",
    views.transpose: "transpose",
    views.matrix_transpose: "t",
    views.expand: "expand",
    views.repeat: "repeat",
    views.part_of_dimension: """slice narrow select index_select unbind split split_with_sizes chunk
        unsafe_split unsafe_split_with_sizes unsafe_chunk""",
    views.glu: "glu",
    views.pixel_shuffle: "pixel_shuffle",
    views.pixel_unshuffle: "pixel_unshuffle",
    views.channel_shuffle: "channel_shuffle native_channel_shuffle",
    views.image_to_columns: "im2col",
    views.columns_to_image: "col2im",
    views.windows: "unfold",
    views.real_pairs: "view_as_real view_as_complex _view_as_real_copy",
    indexing.index: "index",
    indexing.index_put: "index_put _unsafe_index_put _index_put_impl",
    indexing.gather: "gather",
    indexing.scatter: "scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce",
    indexing.topk: "topk",
    views.concatenate: "cat",
    views.stack: "stack",
    views.pad: "constant_pad_nd",
    contractions.matrix_multiply: "mm addmm bmm baddbmm",
    contractions.matrix_vector: "mv addmv dot vdot",
    contractions.convolution: "convolution",
    contractions.attention: """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable""",
    contractions.distances: "_cdist_forward cdist _euclidean_dist",
    contractions.bilinear: "_trilinear",
    contractions.grouped_matrix_multiply: "_grouped_mm",
    contractions.embedding: "embedding",
    contractions.embedding_bag: "_embedding_bag _embedding_bag_forward_only",
    statistics.batch_norm: """native_batch_norm cudnn_batch_norm _native_batch_norm_legit
        _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update""",
    statistics.layer_norm: "native_layer_norm _fused_rms_norm",
    statistics.group_norm: "native_group_norm",
    statistics.weight_norm: "_weight_norm_interface",
    statistics.along_dimension: """_softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp flip roll
        sort""",
    statistics.masked_reduction: "sum mean var std var_mean std_mean linalg_vector_norm norm",
    statistics.choosing_reduction: "amax amin max min any all",
    statistics.reduction: "prod argmax argmin logsumexp",
    statistics.loss: """mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy
        binary_cross_entropy_with_logits""",
    statistics.fourier: "_fft_r2c _fft_c2r _fft_c2c",
    statistics.spatial: """max_pool1d max_pool2d max_pool2d_with_indices max_pool3d_with_indices
        avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d
        adaptive_max_pool2d adaptive_max_pool3d reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
        upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d
        _upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa""",
    statistics.sampled: "grid_sampler_2d grid_sampler_3d",
    statistics.unpooled: "max_unpool2d max_unpool3d",
    statistics.packed: "_pack_padded_sequence _pad_packed_sequence",
}


RULES: dict[str, Rule] = {name: rule for rule, names in FAMILIES.items() for name in names.split()}


def register_rule(name: str, rule: Rule) -> None:
    """Use ``rule`` for the operator of this full name (``mine::double``), in traces of this process.

    Raises ValueError for a name without a namespace.
    """
    if "::" not in name:
        raise ValueError(f"{name!r}: give the operator's full name, such as 'mine::double'")
    RULES[name] = rule


def rule_for(func: Any, name: str) -> Rule | None:
    """The rule of an operation; element-wise operations are known by torch's own tag."""
    full = func._schema.name
    known = full if full in RULES or not full.startswith("aten::") else name.rstrip("_")
    return RULES.get(known, elementwise.pointwise if torch.Tag.pointwise in func.tags else None)

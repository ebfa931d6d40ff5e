"""Statistics over gated units, and products of activations: exact, as if closed units were not there.

A LayerNorm computes mean and variance over all units, the closed ones too, so that scaling the weights that
read its output is not the same as removing units.  These functions weight every unit by its gate z instead:

    mean = sum(z x) / n        var = sum(z (x - mean)^2) / n        n = sum(z)

With gates of 0 and 1 that is the statistic of the network without the closed units; with all gates at 1 it is
the plain one.  What the functions return at closed units does not matter, as no open weight reads it; but
normalisations over one dimension scale their output by the gates, so that the weights that read it need none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from widthsearch.space.module_stack import ModuleStack, Site
from widthsearch.space.open_norm import open_layer_norm, open_rms_norm

#: The gates of the units along some dimensions of a function's input: dimension -> z, (size of it,).
Gates = Mapping[int, Tensor]


class Masked(TorchFunctionMode):
    """While entered, the calls at ``sites`` compute their statistics over the open units only."""

    def __init__(self, stack: ModuleStack, sites: Mapping[Site, Gates]) -> None:
        super().__init__()
        self._stack, self._sites = stack, sites

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, or its masked form."""
        name = getattr(func, "__name__", "")
        if name in FUNCTIONS:
            gates = self._sites.get(self._stack.next_site(name))  # type: ignore[arg-type]
            if gates is not None:
                return _masked(name, gates, args, dict(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _masked(name: str, gates: Gates, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the masked form as the function was called; the result has the same type of numbers."""
    kwargs = {ALIASES.get(key, key): value for key, value in kwargs.items()}
    x, *rest = args if args else (kwargs.pop("input"),)
    if name in PRODUCTS:
        return FUNCTIONS[name]({d: z.to(x.dtype) for d, z in gates.items()}, x, *rest, **kwargs)
    # Sums need float32 at least, as they have it under autocast.
    asked = kwargs.pop("dtype", None)
    wide = asked or torch.promote_types(x.dtype, torch.float32)
    narrow = wide if asked or torch.is_autocast_enabled(x.device.type) else x.dtype
    with torch.autocast(x.device.type, enabled=False):
        out = FUNCTIONS[name]({d: z.to(wide) for d, z in gates.items()}, x.to(wide), *rest, **kwargs)
    if wide == narrow:
        return out
    return tuple(t.to(narrow) for t in out) if isinstance(out, tuple) else out.to(narrow)


def _sum(gates: Gates, x: Tensor, dims: Sequence[int], keepdim: bool) -> Tensor:
    """Sum of z x."""
    if len(dims) == 1 and dims[0] in gates and dims[0] == x.ndim - 1:
        total = x @ gates[dims[0]]
        return total.unsqueeze(-1) if keepdim else total
    return (x * _broadcast(gates, x)).sum(list(dims), keepdim)


def _broadcast(gates: Gates, x: Tensor) -> Tensor:
    z = torch.ones((), dtype=x.dtype, device=x.device)
    for dim, own in gates.items():
        z = z * own.view([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])
    return z


def _count(gates: Gates, x: Tensor, dims: Sequence[int]) -> Tensor:
    """How many values a statistic over ``dims`` is made of; at least one unit counts."""
    n = torch.ones((), dtype=x.dtype, device=x.device)
    for dim in dims:
        n = n * (gates[dim].sum().clamp(min=1.0) if dim in gates else x.shape[dim])
    return n


def _dims(dim: int | Sequence[int] | None, x: Tensor) -> list[int]:
    chosen = [dim] if isinstance(dim, int) else list(dim or range(x.ndim))
    return [d % x.ndim for d in chosen]


def layer_norm(
    gates: Gates,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """``F.layer_norm`` (Ba, Kiros, Hinton 2016) over the open units."""
    if len(normalized_shape) == 1:
        z = gates[input.ndim - 1]
        return open_layer_norm(input, z, _as(input, weight), _as(input, bias), eps)
    dims = list(range(input.ndim - len(normalized_shape), input.ndim))
    variance, middle = var_mean(gates, input, dims, keepdim=True, correction=0)
    return _affine((input - middle) * torch.rsqrt(variance + eps), weight, bias)


def rms_norm(
    gates: Gates,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``F.rms_norm`` (Zhang, Sennrich 2019) over the open units."""
    x = input
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    if len(normalized_shape) == 1:
        return open_rms_norm(x, gates[x.ndim - 1], _as(x, weight), eps)
    dims = list(range(x.ndim - len(normalized_shape), x.ndim))
    square = mean(gates, x.square(), dims, True)
    return _affine(x * torch.rsqrt(square + eps), weight, None)


def _as(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def group_norm(
    gates: Gates,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """``F.group_norm`` (Wu, He 2018) over the open channels of every group."""
    x = input.view(input.shape[0], num_groups, -1, *input.shape[2:]).flatten(
        3
    )  # (N, groups, channels, positions)
    z = gates[1].view(1, num_groups, -1, 1)
    n = z.sum(2, keepdim=True).clamp(min=1.0) * (x.shape[3] if x.ndim == 4 else 1)
    x = x.unsqueeze(3) if x.ndim == 3 else x
    centred = x - (x * z).sum((2, 3), keepdim=True) / n
    variance = (centred.square() * z).sum((2, 3), keepdim=True) / n
    out = (centred * torch.rsqrt(variance + eps)).reshape(input.shape)
    per_channel = [-1] + [1] * (input.ndim - 2)
    return _affine(
        out,
        None if weight is None else weight.view(per_channel),
        None if bias is None else bias.view(per_channel),
    )


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    weight, bias = _as(x, weight), _as(x, bias)
    if weight is not None and bias is not None:
        return torch.addcmul(bias, x, weight)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def sum_(gates: Gates, input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``torch.sum`` of the open units."""
    return _sum(gates, input, _dims(dim, input), keepdim)


def mean(gates: Gates, input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``torch.mean`` of the open units."""
    dims = _dims(dim, input)
    return _sum(gates, input, dims, keepdim) / _count(gates, input, dims)


def var_mean(
    gates: Gates,
    input: Tensor,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``torch.var_mean`` of the open units."""
    if isinstance(dim, bool):  # var_mean(x, unbiased)
        dim, unbiased = None, dim
    x = input
    dims = _dims(dim, x)
    n = _count(gates, x, dims)
    middle = _sum(gates, x, dims, True) / n
    less = float(unbiased) if correction is None else correction
    variance = _sum(gates, (x - middle).square(), dims, keepdim) / (n - less).clamp(min=1e-6)
    return variance, (middle if keepdim else middle.squeeze(dims))


def std_mean(gates: Gates, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """``torch.std_mean`` of the open units."""
    variance, middle = var_mean(gates, *args, **kwargs)
    return variance.sqrt(), middle


def vector_norm(gates: Gates, input: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``torch.linalg.vector_norm`` of finite order over the open units."""
    order = 2.0 if ord == "fro" or ord is None else float(ord)
    if not 0 < order < math.inf:
        raise NotImplementedError(f"a norm of order {ord} over gated units")
    return _sum(gates, input.abs().pow(order), _dims(dim, input), keepdim).pow(1 / order)


def norm(gates: Gates, input: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False) -> Tensor:
    """``torch.norm`` of vectors over the open units."""
    return vector_norm(gates, input, p, dim, keepdim)


def normalize(
    gates: Gates, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """``F.normalize`` by the norm of the open units."""
    return torch.div(input, vector_norm(gates, input, p, dim, True).clamp(min=eps), out=out)


def cosine_similarity(gates: Gates, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """``F.cosine_similarity`` of the open units."""
    x1, x2 = torch.broadcast_tensors(x1, x2)  # type: ignore[no-untyped-call]
    z = _broadcast(gates, x1)
    return torch.nn.functional.cosine_similarity(x1 * z, x2 * z, dim, eps)


def cdist(gates: Gates, x1: Tensor, x2: Tensor, *others: Any, **options: Any) -> Tensor:
    """``torch.cdist`` of the open units."""
    return torch.cdist(x1 * gates[-1], x2 * gates[-1], *others, **options)


def matmul(gates: Gates, input: Tensor, other: Tensor) -> Tensor:
    """``torch.matmul``, ``bmm``, ``mv`` and ``dot``, summed over the open units."""
    (z,) = gates.values()
    return torch.matmul(input * z, other)


def baddbmm(
    gates: Gates, input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """``torch.baddbmm`` of activations, summed over the open units."""
    return torch.baddbmm(input, batch1 * gates[-1], batch2, beta=beta, alpha=alpha)


def scaled_dot_product_attention(gates: Gates, query: Tensor, *others: Any, **options: Any) -> Tensor:
    """``F.scaled_dot_product_attention`` with heads of the size that is open."""
    z, scale = gates[-1], options.get("scale")
    if scale is None or math.isclose(scale, query.shape[-1] ** -0.5):
        z, options["scale"] = z * torch.rsqrt(z.sum().clamp(min=1.0)), 1.0
    return torch.nn.functional.scaled_dot_product_attention(query * z, *others, **options)


def _loss(name: str) -> Callable[..., Any]:
    """``F.mse_loss`` and its likes, of open units."""

    def loss(gates: Gates, *given: Any, reduction: str = "mean", **options: Any) -> Tensor:
        each = getattr(torch.nn.functional, name)(*given, reduction="none", **options)
        return (mean if reduction == "mean" else sum_)(gates, each)

    return loss


def _layer(name: str) -> Callable[..., Any]:
    """``F.linear`` or a convolution by a computed weight, of open inputs only."""
    run, dim = getattr(torch.nn.functional, name), PRODUCTS[name]
    return lambda gates, input, *others, **options: run(
        input * gates[dim].view(-1, *[1] * (-1 - dim)), *others, **options
    )


#: Those that sum products over a dimension of what they are given first, and that dimension.
LAYERS = {
    "linear": -1, "conv1d": -2, "conv2d": -3, "conv3d": -4,
    "conv_transpose1d": -2, "conv_transpose2d": -3, "conv_transpose3d": -4,
}  # fmt: skip
PRODUCTS = LAYERS | dict.fromkeys(
    ("matmul", "__matmul__", "bmm", "baddbmm", "mv", "dot", "vdot", "scaled_dot_product_attention"), -1
)
#: Those that compare all units of two tensors.
COMPARISONS = {"cosine_similarity", "cdist"}
#: The functions (by name, whether of torch, torch.nn.functional or Tensor) that have a masked form.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "sum": sum_,
    "mean": mean,
    "var": lambda *args, **kwargs: var_mean(*args, **kwargs)[0],
    "var_mean": var_mean,
    "std": lambda *args, **kwargs: std_mean(*args, **kwargs)[0],
    "std_mean": std_mean,
    "norm": norm,
    "linalg_vector_norm": vector_norm,
    "linalg_norm": vector_norm,
    "normalize": normalize,
    "cosine_similarity": cosine_similarity,
    "matmul": matmul,
    "__matmul__": matmul,
    "bmm": matmul,
    "mv": matmul,
    "dot": matmul,
    "vdot": matmul,
    "cdist": cdist,
    "baddbmm": baddbmm,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    **{name: _layer(name) for name in LAYERS},
    **{name: _loss(name) for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")},
}
#: Other names of their arguments.
ALIASES = {"axis": "dim", "keepdims": "keepdim"}

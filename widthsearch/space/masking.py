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
    x, *rest = args if args else (kwargs.pop(next(k for k in FIRST if k in kwargs)),)
    if name in PRODUCTS:
        return FUNCTIONS[name]({d: z.to(x.dtype) for d, z in gates.items()}, x, *rest, **kwargs)
    if name in CHOOSING:
        return FUNCTIONS[name](gates, x, *rest, **kwargs)
    # Sums need float32 at least, as they have it under autocast.
    asked = kwargs.pop("dtype", None)
    wide = asked or torch.promote_types(x.dtype, torch.float32)
    narrow = wide if asked or torch.is_autocast_enabled(x.device.type) else x.dtype
    with torch.autocast(x.device.type, enabled=False):
        out = FUNCTIONS[name]({d: z.to(wide) for d, z in gates.items()}, x.to(wide), *rest, **kwargs)
    if wide == narrow:
        return out
    return tuple(t.to(narrow) for t in out) if isinstance(out, tuple) else out.to(narrow)


def _broadcast(gates: Gates, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The gates with the dimensions of ``x``, and its type or this one; of size 1 along those without."""
    z = torch.ones([1] * x.ndim, dtype=dtype or x.dtype, device=x.device)
    for dim, own in gates.items():
        z = z * own.view([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])
    return z


def _sum(x: Tensor, z: Tensor, dims: Sequence[int]) -> Tensor:
    """Sum of z x; the dimensions stay, of size 1."""
    if list(dims) == [x.ndim - 1] and z.numel() == z.shape[-1]:
        return (x @ z.flatten()).unsqueeze(-1)
    return (x * z).sum(list(dims), True)


def _count(x: Tensor, z: Tensor, dims: Sequence[int]) -> Tensor:
    """How many values a statistic over ``dims`` is made of, likewise; at least one unit counts."""
    return z.sum(list(dims), True).clamp(min=1.0) * math.prod(x.shape[d] for d in dims if z.shape[d] == 1)


def _standardised(x: Tensor, z: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    n = _count(x, z, dims)
    centred = x - _sum(x, z, dims) / n
    return centred * torch.rsqrt(_sum(centred.square(), z, dims) / n + eps)


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
    dims = range(input.ndim - len(normalized_shape), input.ndim)
    return _affine(_standardised(input, _broadcast(gates, input), dims, eps), weight, bias)


def rms_norm(
    gates: Gates,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``F.rms_norm`` (Zhang, Sennrich 2019) over the open units."""
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    if len(normalized_shape) == 1:
        return open_rms_norm(input, gates[input.ndim - 1], _as(input, weight), eps)
    dims = range(input.ndim - len(normalized_shape), input.ndim)
    return _affine(input * torch.rsqrt(mean(gates, input.square(), dims, True) + eps), weight, None)


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
    x = input.view(len(input), num_groups, -1, *input.shape[2:])  # (N, groups, channels, ...)
    z = gates[1].view(1, num_groups, -1, *[1] * (input.ndim - 2))
    out = _standardised(x, z, range(2, x.ndim), eps).view(input.shape)
    return _affine(out, *_per_channel(out, weight, bias))


def batch_norm(
    gates: Gates,
    input: Tensor,
    running_mean: None,
    running_var: None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` without running statistics (of a weight), over the open units."""
    out = _standardised(input, _broadcast(gates, input), [0, *range(2, input.ndim)], eps)
    return _affine(out, *_per_channel(out, weight, bias))


def _per_channel(x: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    return [None if p is None else p.view(-1, *[1] * (x.ndim - 2)) for p in parameters]


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    weight, bias = _as(x, weight), _as(x, bias)
    if weight is not None and bias is not None:
        return torch.addcmul(bias, x, weight)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def sum_(gates: Gates, input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``torch.sum`` of the open units."""
    dims = _dims(dim, input)
    total = _sum(input, _broadcast(gates, input), dims)
    return total if keepdim else total.squeeze(dims)


def mean(gates: Gates, input: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``torch.mean`` of the open units."""
    dims, z = _dims(dim, input), _broadcast(gates, input)
    middle = _sum(input, z, dims) / _count(input, z, dims)
    return middle if keepdim else middle.squeeze(dims)


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
    dims, z = _dims(dim, input), _broadcast(gates, input)
    n = _count(input, z, dims)
    middle = _sum(input, z, dims) / n
    less = float(unbiased) if correction is None else correction
    variance = _sum((input - middle).square(), z, dims) / (n - less).clamp(min=1e-6)
    return (variance, middle) if keepdim else (variance.squeeze(dims), middle.squeeze(dims))


def std_mean(gates: Gates, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """``torch.std_mean`` of the open units."""
    variance, middle = var_mean(gates, *args, **kwargs)
    return variance.sqrt(), middle


def vector_norm(gates: Gates, input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``torch.linalg.vector_norm`` and ``torch.norm`` of finite order over the open units."""
    order = 2.0 if p == "fro" or p is None else float(p)
    if not 0 < order < math.inf:
        raise NotImplementedError(f"a norm of order {p} over gated units")
    return sum_(gates, input.abs().pow(order), dim, keepdim).pow(1 / order)


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


def _extreme(name: str) -> Callable[..., Any]:
    """``torch.max``, ``min``, ``amax`` and ``amin`` of the open units; where they are counts all units."""
    least, most = (torch.amin, torch.amax) if name.endswith("max") else (torch.amax, torch.amin)

    def extreme(gates: Gates, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        # A closing unit is moved to the open one that counts least, which changes nothing once it is there.
        z, dims = _broadcast(gates, input, torch.float32), [d % input.ndim for d in gates]
        lowest = least(torch.where(z > 0, input, most(input, dims, True)), dims, True)
        moved = torch.where(z > 0, input, lowest)
        if input.is_floating_point():
            finite, nothing = input.isfinite() & lowest.isfinite(), torch.zeros_like(input)
            start, end = torch.where(finite, lowest, nothing), torch.where(finite, input, nothing)
            moved = torch.where(finite, torch.lerp(start, end, z.to(input.dtype)), moved)
        return getattr(torch, name)(moved, *args, **kwargs)

    return extreme


def _logical(name: str) -> Callable[..., Tensor]:
    """``torch.any`` and ``all`` of the open units; a closed one says nothing."""
    nothing = torch.zeros_like if name == "any" else torch.ones_like

    def logical(gates: Gates, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        said = torch.where(_broadcast(gates, input, torch.float32) > 0, input, nothing(input))
        out: Tensor = getattr(torch, name)(said, *args, **kwargs)
        return out

    return logical


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
#: Those that give one of the values they are given, of its own type.
CHOOSING = {"max", "min", "amax", "amin", "any", "all"}
#: Those that read units as a weight would: comparisons of two tensors, a plain sum.
READING = {"cosine_similarity", "cdist", "sum"}
#: The functions (by name, whether of torch, torch.nn.functional or Tensor) that have a masked form.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "batch_norm": batch_norm,
    "_weight_norm": lambda gates, v, g, dim=0: torch._weight_norm(v * _broadcast(gates, v), g, dim),
    "sum": sum_,
    "mean": mean,
    "var": lambda *args, **kwargs: var_mean(*args, **kwargs)[0],
    "var_mean": var_mean,
    "std": lambda *args, **kwargs: std_mean(*args, **kwargs)[0],
    "std_mean": std_mean,
    **dict.fromkeys(("norm", "linalg_vector_norm", "linalg_norm"), vector_norm),
    **{name: _extreme(name) for name in ("max", "min", "amax", "amin")},
    **{name: _logical(name) for name in ("any", "all")},
    "normalize": normalize,
    "cosine_similarity": cosine_similarity,
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mv", "dot", "vdot"), matmul),
    "cdist": cdist,
    "baddbmm": baddbmm,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    **{name: _layer(name) for name in LAYERS},
    **{name: _loss(name) for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")},
}
#: Other names of their arguments.
ALIASES = {"axis": "dim", "keepdims": "keepdim", "ord": "p"} | dict.fromkeys(
    ("mat2", "vec", "tensor"), "other"
)
#: How their first argument is called.
FIRST = ("input", "query", "x1", "x", "self")

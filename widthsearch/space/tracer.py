"""Run a model once and watch every aten operation: who produces units, who consumes them, what it costs.

The model runs on the meta device where it can (no arithmetic, any size in milliseconds) and on the CPU
where it cannot (its Python code reads values).  The rules of propagation stand in :mod:`.rules`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from widthsearch.errors import UsageError
from widthsearch.space.attributes import Place, SizeReader, mark_sizes
from widthsearch.space.labels import Dim, Dims, Factor, Ids, Labels, Report, constants, size_of_dim
from widthsearch.space.module_stack import ModuleStack, Site
from widthsearch.space.op import Op
from widthsearch.space.rules import rule_for

Axis = tuple[str, int]  # (parameter or buffer, dimension)


@dataclass
class Reading:
    """Who reads units through a weight: the modules whose forward does it, and how much it reads."""

    modules: set[str] = field(default_factory=set)
    elements: int = 0  # of the activations it is multiplied with, for the whole batch
    gated: bool = True  # these activations are scaled by their gates already


@dataclass(frozen=True, eq=False)
class Production:
    """At one moment of the run a layer called ``name`` made the units ``ids``."""

    name: str
    ids: Ids


@dataclass
class Trace:
    """What one traced run of a model leaves behind."""

    labels: Labels = field(default_factory=Labels)
    axes: dict[Axis, Ids] = field(default_factory=dict)  # every parameter and buffer dimension larger than 1
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # every parameter and buffer
    parameters: tuple[str, ...] = ()
    productions: list[Production] = field(default_factory=list)
    consumers: dict[Axis, Reading] = field(default_factory=dict)  # in order of execution
    macs: list[tuple[Factor, ...]] = field(
        default_factory=list
    )  # each a product of sizes, for the whole batch
    written: list[tuple[Factor, ...]] = field(
        default_factory=list
    )  # likewise: the elements that operations write, one entry per tensor; views write nothing
    sites: dict[Site, dict[int, Ids]] = field(default_factory=dict)  # statistics over units, per dimension
    by_groups: dict[str, bool] = field(default_factory=dict)  # whether a module's groups are units, see rules
    normalised: dict[str, Ids] = field(default_factory=dict)  # per BatchNorm-like module, its channels
    scales: dict[str, Ids] = field(default_factory=dict)  # per module, what its attention sums over
    heads: dict[str, Ids] = field(default_factory=dict)  # per module, the heads of its attention
    stated: dict[Place, tuple[Dim, Fraction]] = field(default_factory=dict)  # attributes: size of dim / ratio
    output_shapes: dict[bool, list[tuple[int, ...]]] = field(default_factory=dict)  # in train mode or not
    device: str = "meta"
    keep_heads: bool = False  # the size of heads is searched, not their number


@dataclass(eq=False)
class Label:
    """What is known of one tensor.

    ``source``: the parameter that it is a linear image of (a view, a multiple), None for other tensors.
    ``live``: it depends on the input of the network.  ``gated``: a normalisation that scales its output by
    the gates has made it.
    """

    dims: Dims
    source: str | None = None
    live: bool = False
    gated: bool = False


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives every tensor its :class:`Label` by applying the rule of each aten operation."""

    def __init__(self, trace: Trace, modules: ModuleStack) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.modules = modules
        self.labels = trace.labels
        self.counts_macs = True
        self.site: Site | None = None  # the call of a function with a masked form that is running, if any
        self.if_used: Any = WeakTensorKeyDictionary()  # tensor -> what to freeze once it is read
        self._labels: Any = WeakTensorKeyDictionary()
        self._axis_of = {id(ids): axis for axis, ids in trace.axes.items()}

    def label(self, tensor: Tensor) -> Label:
        """The label of a tensor; one never seen before (a plain attribute, say) is constant."""
        found: Label | None = self._labels.get(tensor)
        return found if found is not None else Label(constants(tensor.shape))

    def set_label(self, tensor: Tensor, label: Label) -> None:
        """Label a tensor."""
        self._labels[tensor] = label

    def axes_of(self, dim: Sequence[Factor]) -> list[Axis]:
        """The parameter axes that this dimension is made of, each whole and in order; empty if it is not."""
        axes = [self._axis_of.get(id(factor)) for factor in dim if not isinstance(factor, int)]
        known = [axis for axis in axes if axis is not None]
        return known if len(known) == len(axes) == len(dim) else []

    def produce(self, axis: Axis) -> None:
        """Note that the layer owning this weight axis has just made units."""
        owner, _, leaf = axis[0].rpartition(".")
        self.trace.productions.append(
            Production(owner if owner and leaf == "weight" else axis[0], self.trace.axes[axis])
        )

    def note_consumer(self, axis: Axis, activations: Tensor) -> None:
        """Note that the module at work multiplies activations with this weight and sums over this axis."""
        reading = self.trace.consumers.setdefault(axis, Reading())
        reading.modules.add(self.modules.innermost)
        reading.gated &= self.label(activations).gated
        if self.counts_macs:  # in one of the two modes
            reading.elements += activations.numel()

    def note_product(self, site: Site, units: Ids) -> None:
        """A product of activations is summed over units; its masked form gates the last dimension."""
        self.trace.sites.setdefault(site, {-1: units})
        module = self.modules.innermost
        if site.function == "scaled_dot_product_attention":
            self.trace.scales[module] = units
        elif any(is_scale(value, len(units)) for value in vars(self.modules.modules[module]).values()):
            reason = f"{self.labels.where}: an attribute holds the scale for their number"
            self.labels.freeze((units,), reason)

    def note_normalised(self, channels: Factor) -> None:
        """The module at work may state this size without having a tensor of it."""
        if not isinstance(channels, int):
            self.trace.normalised[self.modules.innermost] = channels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then label its outputs."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = Op(self, func, args, kwargs, out)
        self.labels.where = op.where
        for tensor in op.inputs:
            self.use(tensor)
        if op.outputs:
            self._apply_rule(op)
        return out

    def use(self, tensor: Tensor) -> None:
        """Something reads this tensor."""
        self.labels.freezes.extend(self.if_used.pop(tensor, ()))

    def _apply_rule(self, op: Op) -> None:
        live = any(self.label(t).live for t in op.inputs)
        gated = op.keeps_values and self.label(op.inputs[0]).gated
        source = op.linear_source()
        counted = len(self.trace.macs)
        dims = self._dims_by_rule(op)
        if not dims or not all(map(_fits, dims, op.outputs)):
            dims = []
            del self.trace.macs[counted:]
            self._freeze_unknown(op)
        for i, tensor in enumerate(op.outputs):
            known = dims[i] if i < len(dims) else constants(tensor.shape)
            if self.counts_macs and not op.is_view:
                self.trace.written.append(tuple(factor for dim in known for factor in dim))
            self.set_label(tensor, Label(known, source, live, gated or op.gates_output))

    def _dims_by_rule(self, op: Op) -> Sequence[Dims]:
        rule = rule_for(op.func, op.name)
        try:
            return (rule(op) if rule is not None else None) or ()
        except (LookupError, TypeError, ValueError):
            return ()  # an overload with other arguments than the rule knows: as good as no rule

    def _freeze_unknown(self, op: Op) -> None:
        for tensor in op.inputs:
            for dim in self.label(tensor).dims:
                op.freeze(dim, "no rule for this operation yet")
        count_flops = flop_registry.get(op.func._overloadpacket)
        if count_flops is not None and self.counts_macs:
            # Everything it touches is frozen now, so that its cost is a constant: torch's own figure.
            self.trace.macs.append((count_flops(*op.args, **op.kwargs, out_val=op.out) // 2,))


def is_scale(value: object, size: int) -> bool:
    """Whether this is the factor by which attention scales dot products of this size."""
    return isinstance(value, float) and math.isclose(value, size**-0.5)


def _fits(dims: Dims, tensor: Tensor) -> bool:
    return tuple(size_of_dim(dim) for dim in dims) == tuple(tensor.shape)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, under its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copy_with(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A deep copy in which these tensors stand for the model's own (same names, any shape or device).

    Raises UsageError if something in the model cannot be copied.
    """
    memo = {id(old): tensors[name] for name, old in named_tensors(model).items()}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}"
        ) from error


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in whatever a model returns: nested containers and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, (list, tuple, set)):
        return [t for v in value for t in tensors_in(v)]
    if dataclasses.is_dataclass(value):
        return [t for v in vars(value).values() for t in tensors_in(v)]
    return []


def call(model: nn.Module, inputs: Any) -> Any:
    """``model(**inputs)`` for a mapping, ``model(*inputs)`` for a tuple, else ``model(inputs)``."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def to_device(example: Any, device: str) -> Any:
    """The example with its tensors on another device."""
    return tree_map(lambda t: t.detach().to(device) if isinstance(t, Tensor) else t, example)


def empty_copy(
    model: nn.Module, device: str | None = None, shapes: Mapping[str, Sequence[int]] | None = None
) -> nn.Module:
    """A copy on ``device`` (default: each tensor's own) with tensors of these ``shapes`` (default: its own).

    Tensors that keep their shape keep their values, except on meta.
    """
    new: dict[str, Tensor] = {}
    for name, old in named_tensors(model).items():
        shape = tuple(old.shape if shapes is None else shapes[name])
        if device == "meta" or shape != tuple(old.shape):
            tensor = torch.empty(shape, dtype=old.dtype, device=device or old.device)
        else:
            tensor = old.detach().to(device or old.device, copy=True)
        new[name] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    return copy_with(model, new)


@contextmanager
def reference_kernels(device: str) -> Iterator[None]:
    """No gradients and no fused kernels: every operation shows."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration")  # setting the mkldnn flag says so
            mkldnn = torch.backends.mkldnn.flags(enabled=False)
            with torch.no_grad(), mkldnn if device == "cpu" else nullcontext():
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def run_trace(
    model: nn.Module,
    example: Any,
    device: str,
    *,
    by_groups: Mapping[str, bool] | None = None,
    keep_heads: bool = False,
) -> Trace:
    """Trace a copy of the model on an example (see :func:`call`), in eval and in train mode.

    ``by_groups``: what an earlier trace of the same model at other widths decided on its groups.  Raises what
    the model raises.
    """
    trace = _new_trace(model, device)
    trace.by_groups.update(by_groups or {})
    trace.keep_heads = keep_heads
    runner = empty_copy(model, device)
    mark_sizes(runner)
    inputs = to_device(example, device)
    modules = ModuleStack(runner)
    tracer = Tracer(trace, modules)
    for name, tensor in named_tensors(runner).items():
        dims = tuple((trace.axes[name, d],) if (name, d) in trace.axes else () for d in range(tensor.ndim))
        tracer.set_label(tensor, Label(dims, name if isinstance(tensor, nn.Parameter) else None))
    for tensor in tree_flatten(inputs)[0]:
        if isinstance(tensor, Tensor):
            tracer.set_label(tensor, Label(constants(tensor.shape), live=True))
    # Some layers exist in one mode only (auxiliary heads, masked embeddings); the cost is that of eval.
    for training in (False, True):
        runner.train(training)
        tracer.counts_macs = not training
        with reference_kernels(device), tracer, SizeReader(tracer):
            out = call(runner, inputs)
        outputs = tensors_in(out)
        if not outputs:
            raise TypeError(f"the forward pass returns {type(out).__name__} without any tensor in it")
        trace.output_shapes[training] = [tuple(tensor.shape) for tensor in outputs]
        for tensor in outputs:
            tracer.use(tensor)
            for dim in tracer.label(tensor).dims:
                trace.labels.freeze(dim, "an output of the network", Report.NEVER)
    return trace


def _new_trace(model: nn.Module, device: str) -> Trace:
    trace = Trace(device=device, parameters=tuple(name for name, _ in model.named_parameters()))
    for name, tensor in named_tensors(model).items():
        trace.shapes[name] = tuple(tensor.shape)
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                trace.axes[name, dim] = trace.labels.new(size)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            for dim in range(tensor.ndim):
                ids = trace.axes.get((name, dim), np.zeros(0, dtype=np.int64))
                trace.labels.freeze((ids,), f"{name}: whole numbers", Report.NEVER)
    return trace

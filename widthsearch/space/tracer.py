"""Run a model once and watch every aten operation: who produces units, who consumes them, what it costs.

The model runs on the meta device where it can (no arithmetic, any size in milliseconds) and on the CPU
where it cannot (its Python code reads values).  The rules of propagation stand in :mod:`.rules`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from widthsearch.errors import UsageError
from widthsearch.space.attributes import (
    SizeReader,
    follow_namesakes,
    mark_numbers,
    nothing_cached,
    numbers_in,
    settle_scales,
)
from widthsearch.space.copies import call, empty_copy, named_tensors, outputs_of, reference_kernels, to_device
from widthsearch.space.families import elementwise, views
from widthsearch.space.labels import Ids, Report, constants, size_of_dim
from widthsearch.space.module_stack import ModuleStack, Site
from widthsearch.space.op import Op, Rule
from widthsearch.space.recorder import Applied, Label, Recorder, Trace
from widthsearch.space.rules import rule_for

# What is scaled before these is scaled by as much behind them, but for what is added.
SCALED_ALIKE = {
    "mul", "div", "neg", "add", "sub", "rsub", "where", "masked_fill", "addcmul",
    "constant_pad_nd", "roll", "flip", "index", "index_select", "gather", "stack",
}  # fmt: skip


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives every tensor its :class:`Label` by applying the rule of each aten operation."""

    def __init__(self, recorder: Recorder, originals: Mapping[int, str]) -> None:
        """``originals``: id -> name of the tensors of the user's own model: no copy may use them."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder, self._originals = recorder, originals

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, then label its outputs."""
        kwargs = kwargs or {}
        for value in tree_flatten((args, kwargs))[0]:
            if id(value) in self._originals:
                raise UsageError(
                    f"{self._originals[id(value)]} is used in the forward of "
                    f"{self._recorder.modules.innermost or 'the model'!r} through something that is not "
                    "copied with the model (a global name, a class made inside a function): reach it "
                    "through an attribute, such as self.layer"
                )
        out = func(*args, **kwargs)
        op = Op(self._recorder, func, args, kwargs, out)
        op.labels.where = op.where
        for tensor in op.inputs:
            self._recorder.use(tensor)
        if op.outputs:
            self._apply_rule(op)
        return out

    def _apply_rule(self, op: Op) -> None:
        recorder = self._recorder
        macs, written = recorder.trace.macs, recorder.trace.written
        gated = op.keeps_values and recorder.label(op.inputs[0]).gated
        source = op.linear_source()
        counted = len(macs)
        rule = rule_for(op.func, op.name)
        try:
            dims = (rule(op) if rule is not None else None) or ()
        except (LookupError, TypeError, ValueError):
            dims = ()  # an overload with other arguments than the rule knows: as good as no rule
        fit = (tuple(map(size_of_dim, own)) == out.shape for own, out in zip(dims, op.outputs, strict=False))
        if not dims or not all(fit):
            dims = ()
            del macs[counted:]
            self._freeze_unknown(op)
        for i, tensor in enumerate(op.outputs):
            known = dims[i] if i < len(dims) else constants(tensor.shape)
            if recorder.counts_macs and not op.is_view:
                written.append(tuple(factor for dim in known for factor in dim))
            recorder.set_label(
                tensor, Label(known, source, op.is_live, gated or op.gates_output, *_scaling(op, rule))
            )

    def _freeze_unknown(self, op: Op) -> None:
        for tensor in op.inputs:
            for dim in op.dims(tensor):
                op.freeze(dim, "no rule for this operation yet")
        count_flops = flop_registry.get(op.func._overloadpacket)
        if count_flops is not None and self._recorder.counts_macs:
            # Everything it touches is frozen now, so that its cost is a constant: torch's own figure.
            flops = count_flops(*op.args, **op.kwargs, out_val=op.out)
            self._recorder.trace.macs.append((flops // 2,))


def _scaling(op: Op, rule: Rule | None) -> tuple[tuple[tuple[Ids, Site | None], ...], frozenset[Applied]]:
    """What the outputs are sums over and scaled by: element by element what their inputs are."""
    linear = op.keeps_values or op.name.rstrip("_") in SCALED_ALIKE or rule is views.concatenate
    if not linear and rule is not elementwise.pointwise:
        return tuple(op.over), frozenset()
    labels = [op.recorder.label(tensor) for tensor in op.inputs]
    over = {(id(units), at): (units, at if linear else None) for label in labels for units, at in label.over}
    factors = (label.factors for label in labels if linear)
    return tuple(over.values()), frozenset().union(*factors)


def run_trace(
    model: nn.Module,
    examples: Sequence[Any],
    device: str,
    *,
    before: Trace | None = None,
    keep_heads: bool = False,
    counts: str | int | None = None,
) -> Trace:
    """Trace a copy of the model on examples (see :func:`call`), in eval and in train mode.

    What one of them says of a parameter holds for all; the cost is that of all together, in eval mode.
    ``before``: an earlier trace of the same model at other widths; what that one decided holds.  Raises what
    the model raises.
    """
    trace = _new_trace(model, device)
    trace.keep_heads, trace.counts = keep_heads, counts
    if before is not None:
        trace.keep_heads, trace.counts = before.keep_heads, before.counts
        trace.by_groups.update(before.by_groups)
        trace.routed = before.routed
        trace.labels.given = iter(before.labels.choices)
    runner = empty_copy(model, device)
    mark_numbers(runner, trace)
    inputs = [to_device(example, device) for example in examples]
    recorder = Recorder(trace, ModuleStack(runner))
    originals = {id(tensor): name for name, tensor in named_tensors(model).items()}
    recorder.numbers.update(numbers_in(model, runner, trace))
    tracer, reader = Tracer(recorder, originals), SizeReader(recorder)
    for name, tensor in named_tensors(runner).items():
        dims = tuple((trace.axes[name, d],) if (name, d) in trace.axes else () for d in range(tensor.ndim))
        recorder.set_label(tensor, Label(dims, name if isinstance(tensor, nn.Parameter) else None))
    for tensor in tree_flatten(inputs)[0]:
        if isinstance(tensor, Tensor):
            recorder.set_label(tensor, Label(constants(tensor.shape), live=True))
    # Some layers exist in one mode only (auxiliary heads, masked embeddings).
    for training, given in itertools.product((False, True), inputs):
        runner.train(training)
        recorder.counts_macs = not training
        with reference_kernels(device), nothing_cached(), tracer, reader:
            out = call(runner, given)
        outputs = outputs_of(out, trace.counts)
        if not outputs:
            raise TypeError(f"the forward pass returns {type(out).__name__} without any tensor in it")
        trace.output_shapes.setdefault(training, []).extend(tuple(tensor.shape) for tensor in outputs)
        reason = "an output of the network, whether its loss reads it or not"
        for tensor in outputs:
            recorder.use(tensor)
            for dim in recorder.label(tensor).dims:
                trace.labels.freeze(dim, reason, Report.IF_READ)
    follow_namesakes(trace)
    settle_scales(trace)
    trace.ran = recorder.modules.ran
    if before is not None:
        keep_shapes(trace, before.kept)
    return trace


def keep_shapes(trace: Trace, kept: Mapping[str, str]) -> None:
    """These parameters (name -> reason) keep their shape, in this trace and at other widths."""
    trace.kept.update(kept)
    for (name, _), ids in trace.axes.items():
        if name in kept:
            trace.labels.freeze((ids,), kept[name], Report.IF_PRODUCED)


def _new_trace(model: nn.Module, device: str) -> Trace:
    trace = Trace(device=device, parameters=tuple(name for name, _ in model.named_parameters()))
    for name, tensor in named_tensors(model).items():
        trace.shapes[name] = tuple(tensor.shape)
        whole_numbers = not (tensor.is_floating_point() or tensor.is_complex())
        for dim, size in enumerate(tensor.shape):
            if size > 1:
                ids = trace.axes[name, dim] = trace.labels.new(size)
                if whole_numbers:
                    trace.labels.freeze((ids,), f"{name}: whole numbers", Report.NEVER)
    return trace

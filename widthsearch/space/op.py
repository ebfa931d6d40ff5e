"""One aten operation of the traced run, and what its rule may do with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from widthsearch.space.labels import Dim, Dims, Freeze, Ids, Labels, Report, constant, ids_in
from widthsearch.space.masking import LAYERS, PRODUCTS, READING
from widthsearch.space.module_stack import Site
from widthsearch.space.recorder import Recorder

# The output holds values of the input in some arrangement.
KEEPS_VALUES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "expand", "permute",
    "transpose", "t", "clone", "contiguous", "_to_copy", "detach", "alias", "lift_fresh", "slice", "select",
    "narrow", "split", "split_with_sizes", "unbind", "native_dropout",
}  # fmt: skip
# The output is linear in the parameter: scaling a unit of the parameter scales that of the output.
LINEAR = KEEPS_VALUES - {"native_dropout"} | {"mul", "div", "neg"}
# Not linear, but the same with the closed units of the parameter at 0 as without them.
LINEAR |= {"_weight_norm_interface"}


class Op:
    """One aten operation of the run, as a rule sees it.

    ``inputs`` and ``outputs`` are its tensors in order; ``op["dim"]`` is an argument by its name in the
    operation's schema, with the schema's default.
    """

    def __init__(
        self, recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        self.recorder = recorder
        self.labels: Labels = recorder.labels
        self.func, self.args, self.kwargs, self.out = func, args, kwargs, out
        self.name: str = func._schema.name.partition("::")[2]
        self.inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        self.outputs = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        self.keeps_values = self.name.rstrip("_") in KEEPS_VALUES and bool(self.inputs)
        self.is_view: bool = func.is_view or self.name == "_unsafe_view"  # it computes nothing
        self.gates_output = False  # its masked form scales the output by the gates
        self.over: list[tuple[Ids, Site | None]] = []  # what its outputs are sums over, and where

    @functools.cached_property
    def _arguments(self) -> dict[str, Any]:
        given, kwargs = self.args, self.kwargs
        return {
            known.name: given[i] if i < len(given) else kwargs.get(known.name, known.default_value)
            for i, known in enumerate(self.func._schema.arguments)
        }

    def __getitem__(self, argument: str) -> Any:
        """An argument of the operation; KeyError if its schema has none of this name."""
        return self._arguments[argument]

    def get(self, argument: str) -> Any:
        """An argument of the operation, None if its schema has none of this name."""
        return self._arguments.get(argument)

    @property
    def where(self) -> str:
        """The operation and the module at work, as the reasons quote them."""
        module = self.recorder.modules.innermost
        name = self.name.strip("_").removeprefix("native_")
        return f"{name} in {module!r}" if module else f"{name} in the model's own forward"

    def dims(self, tensor: str | Tensor) -> Dims:
        """The dims of a tensor, or of the argument of this name."""
        return self.recorder.label(self[tensor] if isinstance(tensor, str) else tensor).dims

    def dim_index(self, argument: str = "dim") -> int:
        """The argument as an index of a dimension of ``self``, counted from the front."""
        return int(self[argument]) % max(self.inputs[0].ndim, 1)

    def freeze(self, dim: Dim, what: str) -> None:
        """Give the units of this dimension up; ``what`` the operation does that forbids them."""
        self.labels.freezes.extend(self._freezes(dim, what))

    def freeze_if_used(self, dim: Dim, what: str, outputs: Sequence[Tensor] | None = None) -> None:
        """The same, as soon as something reads an output (attention weights are often thrown away).

        ``outputs``: these of them alone.
        """
        for out in self.outputs if outputs is None else outputs:
            self.recorder.if_used[out] = [*self.recorder.if_used.get(out, ()), *self._freezes(dim, what)]

    @property
    def is_live(self) -> bool:
        """Whether an input depends on the input of the network."""
        return any(self.recorder.label(t).live for t in self.inputs)

    @property
    def in_layer(self) -> bool:
        """Whether it runs inside of a layer's function: what is multiplied there is a weight."""
        return self.recorder.site is not None and self.recorder.site.function in LAYERS

    def _freezes(self, dim: Dim, what: str) -> list[Freeze]:
        # A parameter is worth a word of its own; what the network computes, where a layer makes its units.
        report = Report.IF_PRODUCED if self.is_live else Report.ALWAYS
        return [Freeze(ids, f"{self.where}: {what}", report) for ids in ids_in(dim)]

    def statistics(self, dims: Dims, over: Sequence[int]) -> None:
        """Compute statistics over these dimensions (of ``dims``) of the input.

        Closed units would count in them, so the gated network calls a masked form of the function
        (:mod:`.masking`) in its place; units of a function without one are given up.
        """
        units = {i: ids for i in over if not isinstance(ids := self.labels.flat(dims[i]), int)}
        if not units:
            return
        self.over += [(ids, None) for ids in units.values()]
        if self.recorder.site is None:
            for i in units:
                self.freeze_if_used(dims[i], "computes statistics over these units")
            return
        site = self.recorder.site
        if site.function in READING:  # noted by dimensions from the end
            units = {i - len(dims): ids for i, ids in units.items()}
        self.recorder.trace.sites.setdefault(site, units)

    def by_groups(self, groups: int, inside: int) -> bool:
        """Whether whole groups are the units of a grouped operation; else the channels, equal in all groups.

        The larger number counts; a network at other widths is read as the first one was.
        """
        module = self.recorder.modules.innermost
        return self.recorder.trace.by_groups.setdefault(module, groups >= inside)

    def linear_source(self) -> str | None:
        """The parameter that the output is a view or a multiple of, if any."""
        name = self.name.rstrip("_")
        if name in LINEAR and not self.is_live:
            tensors = self.inputs if name == "mul" else self.inputs[:1]
            return next((s for t in tensors if (s := self.recorder.label(t).source)), None)
        return None

    def multiply_accumulate(self, *dims: Dim) -> None:
        """Count one multiply-accumulate for every index of the product of these dims."""
        if self.recorder.counts_macs:
            self.recorder.trace.macs.append(tuple(factor for dim in dims for factor in dim))

    def produce(self, weight: Tensor, dim: Dim) -> None:
        """This dimension of a weight makes units; in a layer's function also one of a computed weight."""
        label = self.recorder.label(weight)
        computed = self.in_layer and not label.live
        axes = self.recorder.axes_of(dim)
        for axis in axes:
            if label.source == axis[0] or computed:
                self.recorder.produce(axis[0], self.recorder.trace.axes[axis])
        if label.source and not axes:  # a part of a weight
            for ids in ids_in(dim):
                self.recorder.produce(label.source, ids)

    def contract(self, a: Tensor, dim_a: Dim, b: Tensor, dim_b: Dim) -> None:
        """Sum over a dimension of ``a`` times one of ``b``; one of them must be a weight, the consumer."""
        for weight, dim, other in ((b, dim_b, a), (a, dim_a, b)):
            label, axes = self.recorder.label(weight), self.recorder.axes_of(dim)
            if axes and all(label.source == axis[0] for axis in axes) and not label.live:
                for axis in axes:  # several where the weight has a tensor's shape (heads x size x width)
                    self.recorder.note_consumer(axis, other)
                # A weight over constants that are live reads the network's input: no news for the user.
                live = self.recorder.label(other).live
                self.labels.unify(dim_a, dim_b, Report.NEVER if live else Report.IF_PRODUCED)
                self.over += [(ids, None) for ids in ids_in(dim_a)]
                return
        one, other_one = self.recorder.label(a), self.recorder.label(b)
        live, units, site = one.live and other_one.live, self.labels.flat(dim_a), self.recorder.site
        if isinstance(units, int) or site is None or site.function not in PRODUCTS:
            product = "a product of two activations is summed over these units"
            self.freeze((*dim_a, *dim_b), product if live else "a computed weight reads these units")
            return
        if one.live == other_one.live and not (one.source or other_one.source):  # queries and keys
            self.labels.summed.append(units)
        self.labels.unify(dim_a, dim_b)
        self.over.append((units, None if self.in_layer else site))
        self.recorder.note_product(site, units, a, b)

    def note_heads(self, queries: Tensor, keys: Tensor, dims: Sequence[Dim]) -> None:
        """Where two activations are multiplied for each index of these dims, the last one is the heads."""
        heads = [ids for dim in dims for ids in ids_in(dim)]
        labels = [self.recorder.label(t) for t in (queries, keys)]
        # Also of queries that the network has learnt, among each other; not of a weight with several parts.
        if heads and labels[0].live == labels[1].live and not (labels[0].source or labels[1].source):
            trace = self.recorder.trace
            trace.heads.setdefault(self.recorder.modules.innermost, heads[-1])
            if trace.keep_heads:
                self.labels.freeze(heads, f"{self.where}: the number of heads is kept", Report.IF_READ)

    def follow(self, units: Dim, *parameters: str) -> Dim:
        """The only dimension of these arguments, where they are given, is that of these units."""
        for name in parameters:
            tensor = self.get(name)
            if tensor is not None and tensor.shape[0] != 1:
                units = self.labels.unify(units, self.dims(tensor)[0])
        return units

    def align(self, dims: Dims, tensor: Tensor) -> None:
        """The tensor broadcasts to these dims: tie its own to the last of them."""
        for dim, own, size in zip(dims[::-1], self.dims(tensor)[::-1], tensor.shape[::-1], strict=False):
            if size != 1:
                self.labels.unify(dim, own)

    def lose(self, dims: Dims, chosen: Collection[int], what: str) -> Dims:
        """Give these dimensions up, for what the operation does; its output has constant ones there."""
        for i in chosen:
            self.freeze(dims[i], what)
        shape = self.outputs[0].shape
        return tuple(constant(shape[i]) if i in chosen else dim for i, dim in enumerate(dims))

    def broadcast(self, tensors: Sequence[Tensor], shape: Sequence[int], skip: int | None = None) -> Dims:
        """The dims of tensors that broadcast to ``shape``, tied to one another, except dimension ``skip``."""
        # Parameters first: the result keeps their axes, by which a multiple of a weight is still a weight.
        ordered = sorted(tensors, key=lambda t: self.recorder.label(t).source is None)
        result: list[Dim] = []
        for i in range(len(shape)):
            dim: Dim | None = None
            for tensor in ordered:
                own = i - len(shape) + tensor.ndim
                if i != skip and own >= 0 and tensor.shape[own] != 1:
                    other = self.dims(tensor)[own]
                    dim = other if dim is None else self.labels.unify(dim, other)
            result.append(dim or ())
        return tuple(result)


#: The dims of each output, in order; None: the rule does not cover this case.
Result = Sequence[Dims] | None
Rule = Callable[[Op], Result]

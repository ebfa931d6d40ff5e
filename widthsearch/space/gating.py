"""Where gates act in a model, and how they are put there for one forward pass.

The gate of a unit scales the input axis of every weight that consumes it.  That is exact whatever lies
between producer and consumer (bias, BatchNorm, activation, depthwise convolution, residual sum), where a
gate before a BatchNorm would be undone by it, and nearly free: weights are smaller than activations.
Statistics over units (LayerNorm) are computed in their masked form: :mod:`.masking`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from widthsearch.space.copies import batch_size, call
from widthsearch.space.labels import ids_in
from widthsearch.space.masking import Masked
from widthsearch.space.module_stack import ModuleStack, Site
from widthsearch.space.recorder import Trace
from widthsearch.space.variables import Variables


@dataclass(frozen=True, eq=False)
class ConsumerAxis:
    """A weight dimension that is summed over: it reads units.

    ``unit``: int (size,), of every index its unit as a position in the concatenation of all variables' units
    (in the order of ``WidthSpace.widths``), or -1 for a constant.  ``modules``: the modules in whose forward
    it is read; ``elements_per_sample``: how many activations it is multiplied with, for one sample;
    ``gated``: these come from a normalisation that has scaled them by their gates, so that it needs none.
    """

    parameter: str
    dim: int
    unit: NDArray[np.int64]
    modules: frozenset[str]
    elements_per_sample: int
    gated: bool


@dataclass(frozen=True, eq=False)
class Statistics:
    """A call of a function that computes statistics over units; ``unit`` as above, per dimension of input.

    ``scaled``: the network scales the result for the number of units as it was built with.
    """

    site: Site
    unit: dict[int, NDArray[np.int64]]
    scaled: bool


def consumers_of(trace: Trace, variables: Variables, batch: int) -> tuple[ConsumerAxis, ...]:
    """Every weight axis that reads units, in the order of execution."""
    axes = []
    for (name, dim), reading in trace.consumers.items():
        ids, modules = trace.axes[name, dim], frozenset(reading.modules)
        if variables.among(ids):
            unit, elements = variables.position[ids], reading.elements // batch
            axes.append(ConsumerAxis(name, dim, unit, modules, elements, reading.gated))
    return tuple(axes)


def statistics_of(trace: Trace, variables: Variables) -> tuple[Statistics, ...]:
    """Every call that computes statistics over units."""
    calls = []
    for site, dims in trace.sites.items():
        units = {dim: variables.position[ids] for dim, ids in dims.items() if variables.among(ids)}
        if units:
            calls.append(Statistics(site, units, _is_scaled(site, trace, variables)))
    return tuple(calls)


def _is_scaled(site: Site, trace: Trace, variables: Variables) -> bool:
    """Whether a number that follows the units of this product scales it."""
    place = trace.scaled.get(site)
    if place is None or place in trace.scales:
        return place is not None
    if place not in trace.stated:
        return False
    (units,), (dim, ratio) = trace.sites[site].values(), trace.stated[place]
    ids = ids_in(dim)
    alone = ratio == 1 and len(dim) == len(ids) == 1
    return alone and np.array_equal(variables.position[ids[0]], variables.position[units])


class Gating:
    """Puts gates into a model for the time of one forward pass: :meth:`put`, run the model, :meth:`take_off`.

    The gated weights stand in for the user's parameters, as ``torch.func.functional_call`` would put them
    there (which is slower); afterwards modules, hooks and ``state_dict`` are as they were.  Of tied weights
    only the consuming side is gated.  Where the weight of a layer is larger than the batch that it is
    multiplied with (an MLP, a late convolution), the batch is scaled instead: the same product for less work.
    """

    def __init__(
        self,
        model: nn.Module,
        widths: Sequence[int],
        consumers: Sequence[ConsumerAxis],
        statistics: Sequence[Statistics] = (),
    ) -> None:
        self.readers = {name for axis in consumers for name in axis.modules}
        self._model, self._widths = model, list(widths)
        starts, device = np.cumsum([0, *widths]), next(model.parameters()).device
        self._axes = [
            _GatedAxis.of(axis, model, _place_of(axis.unit, starts, device), consumers)
            for axis in consumers
            if not axis.gated
        ]
        self._sites = [
            (s, {dim: _place_of(unit, starts, device) for dim, unit in s.unit.items()}) for s in statistics
        ]
        self._stack: ModuleStack | None = None
        if statistics:
            owners = {s.site.module for s in statistics}
            children = [n for n, _ in model.named_modules() if n.rpartition(".")[0] in owners]
            self._stack = ModuleStack(model, only=owners.union(children))
        self._mode: Masked | None = None
        self._hooks: list[Any] = []

    def put(self, z: Tensor, inputs: Any) -> None:
        """Gate the next forward pass, that of ``inputs``, by ``z`` (U,), the gates of all variables."""
        # The usual axis is one whole variable: one node of the graph for all of these.
        variables = torch.split_with_sizes(z, self._widths)
        batch = batch_size(inputs)
        for axis in self._axes:
            gate = axis.place.read(z, variables).view(-1, *[1] * axis.dims_after)
            if axis.is_cheaper_on_input(batch):
                hook = _scale_input(gate)
                self._hooks.append(axis.module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                for parameters, leaf in axis.places:
                    parameters[leaf] = parameters[leaf] * gate.to(axis.weight.dtype)
        if self._stack is not None:
            sites = {}
            for statistics, places in self._sites:
                gates = {dim: place.read(z, variables) for dim, place in places.items()}
                if statistics.scaled:  # for the number of those that are open, that is
                    gates = {dim: g * (len(g) / g.sum().clamp(min=1.0)).sqrt() for dim, g in gates.items()}
                sites[statistics.site] = gates
            self._mode = Masked(self._stack, sites)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def take_off(self) -> None:
        """Undo :meth:`put`, whether it came to its end or not."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None
        for axis in self._axes:
            for parameters, leaf in axis.places:
                parameters[leaf] = axis.weight
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def run(self, z: Tensor, inputs: Any) -> Any:
        """A gated forward pass of the model."""
        self.put(z, inputs)
        try:
            return call(self._model, inputs)
        finally:
            self.take_off()

    def remove(self) -> None:
        """Take the last hooks off the model."""
        if self._stack is not None:
            self._stack.remove()


def _scale_input(gate: Tensor) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
    def scale(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["input"]  # plain layers of torch call it so
        scaled = x * gate.to(x.dtype)
        return ((scaled, *args[1:]), kwargs) if args else (args, {**kwargs, "input": scaled})

    return scale


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the gates of an axis are: a whole variable (the usual case), or an index; U is the constant 1.

    ``repeats``: each gate of the variable holds for so many indices in a row (the positions of a flattened
    map).
    """

    variable: int
    repeats: int
    index: Tensor | None

    def read(self, z: Tensor, variables: Sequence[Tensor]) -> Tensor:
        """The gate of every single index."""
        if self.index is not None:
            return torch.cat([z, z.new_ones(1)]).index_select(0, self.index.to(z.device))
        gates = variables[self.variable]
        return gates if self.repeats == 1 else gates.repeat_interleave(self.repeats)


def _place_of(unit: NDArray[np.int64], starts: NDArray[np.int64], device: torch.device) -> _Place:
    """Where the gates of these units are; ``starts``: (V + 1,), of each variable its first unit, and U."""
    position = np.where(unit >= 0, unit, starts[-1])
    variable = int(np.searchsorted(starts[1:-1], position[0], side="right"))
    whole = np.arange(starts[variable], starts[variable + 1])
    repeats = max(1, len(position) // len(whole))
    if np.array_equal(position, np.repeat(whole, repeats)):
        return _Place(variable, repeats, None)
    return _Place(variable, 1, torch.from_numpy(position).to(device))


def _is_plain(module: nn.Module) -> bool:
    """Whether scaling the units of the module's input is scaling the input axis of its weight."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.groups == 1 and type(module).__module__ == nn.Conv1d.__module__
    return type(module) is nn.Linear


@dataclass(frozen=True, eq=False)
class _GatedAxis:
    """One consuming weight axis: where its gates are and what to multiply them with."""

    weight: nn.Parameter
    places: list[tuple[dict[str, Any], str]]  # the parameters of each module that reads it, its name there
    place: _Place
    dims_after: int  # how many dimensions of the weight, and of the input of a plain layer, follow the units
    module: nn.Module  # that has the weight
    on_input: bool  # whether that is a plain layer, and the only reader of the weight
    inputs_per_sample: int

    @classmethod
    def of(
        cls, axis: ConsumerAxis, model: nn.Module, place: _Place, consumers: Sequence[ConsumerAxis]
    ) -> _GatedAxis:
        weight = model.get_parameter(axis.parameter)
        owner_name = axis.parameter.rpartition(".")[0]
        owner = model.get_submodule(owner_name)
        have_it = [
            (name, (module._parameters, leaf))
            for name, module in model.named_modules()
            for leaf, parameter in module._parameters.items()
            if parameter is weight
        ]
        # Of tied weights, where one module may produce what another consumes, those that consume.  If it is
        # read by a module that does not have it (a functional call), wherever it is.
        reading = [place for name, place in have_it if name in axis.modules]
        alone = sum(other.parameter == axis.parameter for other in consumers) == 1
        return cls(
            weight=weight,
            places=reading or [place for _, place in have_it],
            place=place,
            dims_after=weight.ndim - axis.dim - 1,
            module=owner,
            on_input=_is_plain(owner)
            and owner._parameters.get("weight") is weight
            and axis.modules == {owner_name}
            and alone,
            inputs_per_sample=axis.elements_per_sample,
        )

    def is_cheaper_on_input(self, batch: int) -> bool:
        """Whether scaling what the weight is multiplied with is less work than scaling the weight."""
        return self.on_input and batch * self.inputs_per_sample < self.weight.numel()

"""The width space of a model: its width variables, their cost, and the model at other widths."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from widthsearch.errors import UsageError, describe_error
from widthsearch.maths.cost import Cost
from widthsearch.space.copies import batch_size, call, empty_copy, to_device
from widthsearch.space.gating import ConsumerAxis, Statistics, consumers_of, statistics_of
from widthsearch.space.idle import idle_modules, kept_for
from widthsearch.space.initialise import (
    Initialisation,
    Reset,
    initialise,
    isolated_random_numbers,
    record,
    reset,
)
from widthsearch.space.labels import Report
from widthsearch.space.recorder import Trace
from widthsearch.space.rehearsal import (
    check_units,
    failure_at,
    failure_wider,
    random_widths,
    wider_widths,
)
from widthsearch.space.resize import compacted_copy, resized_copy
from widthsearch.space.routing import costs_unknown
from widthsearch.space.stale import stale_lines
from widthsearch.space.structure import settled, with_structure
from widthsearch.space.tracer import run_trace
from widthsearch.space.variables import Frozen, Variables, cost_of, makers_of
from widthsearch.space.verify import Changes, apply_changes
from widthsearch.space.verify import verify as find_changes

MOST_DRAWS = 50  # of fresh weights, until all layers run that read or make units
LONGEST_REHEARSAL = 24  # networks tried to find the variables that fail; then all that may be to blame are


class WidthSpace:
    """What :func:`trace` finds in a model.

    ``model``: the user's own; ``example``: what it was called with, ``examples`` with others; ``idle``: the
    modules that none of them runs; ``widths``: variable -> width, in the
    order of execution; ``modules``: variable -> the layers that make its units; ``makers``: these as pairs
    (layer, variable), in the order of execution; ``outputs``: variable -> of each of these layers the
    outputs per unit (one, but of a head many); ``frozen``: what cannot be searched, and why; ``cost``:
    MACs per sample and parameters at any widths; ``consumers``: the weight axes that read the variables;
    ``statistics``: the calls that compute statistics over them.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Any],
        traced: Trace,
        initialisation: Initialisation,
        changes: Changes,
        fixed: Mapping[str, str] | None = None,
    ) -> None:
        """Not for users: call :func:`trace`."""
        self.model = model
        self.example, self.examples, self.traced = examples[0], tuple(examples), traced
        self._changes, self._fixed = changes, dict(fixed or {})
        self.variables: Variables = apply_changes(traced, changes).without(self._fixed)
        self.widths: dict[str, int] = self.variables.width
        makers = makers_of(traced, self.variables)
        self.makers: tuple[tuple[str, str], ...] = tuple(makers)
        self.modules: dict[str, tuple[str, ...]] = {
            name: tuple(maker for maker, made in makers if made == name) for name in self.widths
        }
        self.outputs: dict[str, list[float]] = {
            name: [n / width for (_, made), n in makers.items() if made == name]
            for name, width in self.widths.items()
        }
        self.frozen: tuple[Frozen, ...] = self.variables.frozen
        self.idle: tuple[str, ...] = tuple(idle_modules(traced))
        self._initialisation = settled(initialisation, traced, self.variables)
        self.samples = sum(map(batch_size, examples))  # its cost is that of one of these, on average
        self.cost: Cost = cost_of(traced, self.variables, self.samples)
        self.consumers: tuple[ConsumerAxis, ...] = consumers_of(traced, self.variables, self.samples)
        self.statistics: tuple[Statistics, ...] = statistics_of(traced, self.variables)

    @property
    def lost(self) -> tuple[str, ...]:
        """The weights whose initial values have a pattern that other widths do not define: it is not kept."""
        return tuple(self._initialisation.lost)

    def layer_shapes(self) -> Cost:
        """The cost, with the elements that operations write per sample as a third resource, ``written``."""
        return cost_of(self.traced, self.variables, self.samples, written=True)

    def stale(self) -> list[str]:
        """A line per number that was made from a width, as it seems, and does not follow it."""
        return stale_lines(self.model, self.traced, self.variables)

    def resize(self, widths: Mapping[str, int]) -> nn.Module:
        """A copy of the model at these widths, wider or narrower, with fresh weights from torch's global RNG.

        Raises UsageError for a missing or unknown variable and for a width below 1.
        """
        resized = resized_copy(self.model, self.traced, self.variables, self._ordered(widths))
        initialise(resized, self._initialisation)
        return resized

    def at(self, widths: Mapping[str, int], *, model: nn.Module | None = None) -> WidthSpace:
        """The same space, seen on a network of these widths (``model``, or a fresh ``resize(widths)``).

        Raises ValueError for widths below 2 (a dimension of size 1 carries no label), for a model of
        other widths, and where the network's code makes others of these.
        """
        small = [name for name, width in zip(self.widths, self._ordered(widths), strict=True) if width < 2]
        if small:
            raise ValueError(f"widths below 2 cannot be traced: {', '.join(small)}")
        seen = self.resize(widths) if model is None else model
        with isolated_random_numbers():
            traced = _traced(seen, self.examples, self._initialisation, before=self.traced)
            traced = self._with_all_layers(traced, widths)
        space = WidthSpace(seen, self.examples, traced, self._initialisation, self._changes, self._fixed)
        if traced.routed:  # what a layer that does not run here keeps from being searched
            space = space.without(dict.fromkeys(set(space.widths) - set(self.widths), "kept"))
        wanted = {name: widths[name] for name in self.widths}
        if model is None:
            check_units(space.widths, wanted)
        elif list(space.widths.items()) != list(wanted.items()):
            raise ValueError(f"the model has the widths {space.widths}, not {dict(widths)}")
        return space

    def _with_all_layers(self, traced: Trace, widths: Mapping[str, int]) -> Trace:
        """A trace at these widths in which all layers run that read or make units, if their weights decide.

        What a trace says does not depend on the weights but for that: one of other fresh weights will do.
        """
        needed = {parameter for parameter, _ in self.unit_axes()} & self.traced.read
        for _ in range(MOST_DRAWS):
            if traced.device == "meta" or needed <= traced.read:
                break
            fresh = self.resize(widths)
            traced = _traced(fresh, self.examples, self._initialisation, before=self.traced)
        return traced

    def without(self, fixed: Mapping[str, str]) -> WidthSpace:
        """The same space with these variables (name -> reason) frozen at their width.

        Raises UsageError for an unknown variable.
        """
        unknown = sorted(set(fixed) - set(self.widths))
        if unknown:
            raise UsageError(f"no width variable {unknown[0]!r}; there are {', '.join(self.widths)}")
        if not fixed:  # the usual study: the labels need not be solved again
            return self
        fixed = {**self._fixed, **fixed}
        return WidthSpace(self.model, self.examples, self.traced, self._initialisation, self._changes, fixed)

    def compact(self, keep: Mapping[str, NDArray[np.bool_]]) -> nn.Module:
        """A copy of the model with only the kept units; their weights and buffers stay.

        ``keep``: bool (width,) per variable.  Raises ValueError where a variable would lose all its units or
        an array has another length.
        """
        if set(keep) != set(self.widths):
            raise ValueError(f"keep needs exactly the variables {list(self.widths)}, not {list(keep)}")
        masks = []
        for name, width in self.widths.items():
            mask = np.asarray(keep[name], dtype=bool)
            if mask.shape != (width,) or not mask.any():
                raise ValueError(f"{name}: keep needs {width} booleans, at least one of them true")
            masks.append(mask)
        return compacted_copy(self.model, self.traced, self.variables, masks)

    def unit_axes(self) -> dict[tuple[str, int], NDArray[np.int64]]:
        """Every (parameter, dimension) that has units, those it makes and those it reads.

        Of every index its unit as in ``ConsumerAxis.unit``: a position in the concatenation of the units of
        all variables, or -1.
        """
        return {
            axis: self.variables.position[ids]
            for axis, ids in self.traced.axes.items()
            if axis[0] in self.traced.parameters and self.variables.among(ids)
        }

    def _keep_structure(self, after: Reset) -> None:
        self._initialisation = with_structure(
            self._initialisation, after, self.model, self.traced, self.variables
        )

    def _ordered(self, widths: Mapping[str, int]) -> list[int]:
        if set(widths) != set(self.widths):
            missing = sorted(set(self.widths) - set(widths))
            unknown = sorted(set(widths) - set(self.widths), key=str)
            raise UsageError(f"widths must name every variable; missing: {missing}, unknown: {unknown}")
        for name, width in dict[str, Any](widths).items():
            is_number = isinstance(width, int | float | np.integer | np.floating)
            if not (is_number and 1 <= width < 2**31 and int(width) == width):
                least = "must be a whole number of at least 1 and below 2**31"
                raise UsageError(f"the width of {name} {least}, not {width!r:.60}")
        return [int(widths[name]) for name in self.widths]


def trace(
    model: nn.Module,
    example: Any,
    *,
    more: Sequence[Any] = (),
    init: Callable[[nn.Module], object] | None = None,
    buffers: Mapping[str, Callable[[tuple[int, ...]], Tensor]] | None = None,
    keep_heads: bool = False,
    output: str | int | None = None,
    verify: bool = True,
) -> WidthSpace:
    """Find the width variables of a model.

    ``example``: what the model is called with (``model(*example)`` for a tuple, ``model(**example)`` for a
    dict), a batch of two samples is enough.  ``more``: other examples, which run what this one does not (the
    cost is the mean over them all); variables of the size of what none of them runs keep their width.
    ``init``: a function that initialises a resized model in place, where the distribution of ``model``'s own
    weights, which is the default, is not enough.  ``buffers``: pattern of names -> a function that makes such
    a buffer (a table of positions) of any shape.  ``keep_heads``: where attention reads a size as heads x
    size, keep the number of heads and search their size; default: the other way round.  ``output``: of
    several outputs the only one that counts, by its key or position: widths of others are free.
    ``verify``: also try resized models, and freeze what breaks.
    The model and all random number generators stay as they are.  Raises UsageError if the model does not
    run on the example, has layers without sizes, or is no plain Python module.
    """
    _check_module(model)
    inputs = [dict(x) if isinstance(x, Mapping) else x for x in (example, *more)]
    with isolated_random_numbers():
        after = reset(model)
        initialisation = record(model, after, init, buffers)
        traced = _traced(model, inputs, initialisation, keep_heads=keep_heads, counts=output)
        changes = find_changes(model, inputs, traced, initialisation) if verify else ()
    space = WidthSpace(model, inputs, traced, initialisation, changes)
    space._keep_structure(after)
    space = space.without(kept_for(idle_modules(traced), traced, space.variables))
    return _rehearsed(space) if verify else space


def _rehearsed(space: WidthSpace) -> WidthSpace:
    """The space without the variables with which a search would fail; tried at random widths."""
    space = space.without(costs_unknown(space))
    numbers, others = random.Random(0), random.Random(1)

    def narrower(space: WidthSpace, names: Sequence[str]) -> str | None:
        return failure_at(space, random_widths(space.widths, names, numbers))

    def wider(space: WidthSpace, names: Sequence[str]) -> str | None:
        return failure_wider(space, wider_widths(space.widths, names, others))

    while True:
        before = _without_failing(space, narrower)
        space = _without_failing(before, wider)
        if space is before:
            return space


def _without_failing(
    space: WidthSpace, failure_of: Callable[[WidthSpace, Sequence[str]], str | None]
) -> WidthSpace:
    """The space without the variables that ``failure_of`` (with these at other widths) finds to blame."""
    tries = 0
    while space.widths:
        names = list(space.widths)
        failure = failure_of(space, names)
        if failure is None:
            return space
        low, high = 0, len(names)  # names[:low] passes, names[:high] fails
        while high - low > 1 and tries < LONGEST_REHEARSAL:
            middle, tries = (low + high) // 2, tries + 1
            found = failure_of(space, names[:middle])
            failure = found or failure
            low, high = (middle, high) if found is None else (low, middle)
        reason = f"a search with other widths of it fails: {failure}"
        space = space.without(dict.fromkeys(names[low:high], reason))
    return space


def _check_module(model: nn.Module) -> None:
    plain = "and cannot be resized: give the plain module"
    for name, module in model.named_modules():
        if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values())):
            wrong = (
                "whose sizes are known only after a first call: state them, or let model() call the network "
                "once before it returns it"
            )
        elif isinstance(module, torch.jit.ScriptModule):
            wrong = f"scripted (torch.jit), {plain}"
        elif type(module).__module__.startswith("torch._dynamo"):
            wrong = f"compiled (torch.compile), {plain}"
        else:
            continue
        what = f"{type(model).__name__}: {name}" if name else "the model"
        raise UsageError(f"{what} is {type(module).__name__}, {wrong}")


def _traced(
    model: nn.Module, examples: Sequence[Any], initialisation: Initialisation, **options: Any
) -> Trace:
    for device in ("meta", "cpu"):  # for real where it reads values, or has tensors of its own
        try:
            traced = run_trace(model, examples, device, **options)
            break
        except UsageError:
            raise
        except Exception as error:
            failure = error
    else:
        said, name = describe_error(failure), type(model).__name__
        if "grad" in said and _runs_with_gradients(model, examples):
            raise UsageError(
                f"{name} runs on the example, but not without gradients, as the trace and evaluations run it "
                f"({said}): put what takes derivatives in its forward under `with torch.enable_grad():`"
            ) from failure
        raise UsageError(f"{name} does not run on the example: {said}") from failure
    for (name, dim), ids in traced.axes.items():
        if not initialisation.can_fill(name, dim):  # values of its own: a filter, a table
            reason = f"{name} is not trained, and has values that another width does not define"
            traced.labels.freeze((ids,), reason, Report.IF_PRODUCED)
    return traced


def _runs_with_gradients(model: nn.Module, examples: Sequence[Any]) -> bool:
    runner = empty_copy(model, "cpu")
    try:
        with torch.enable_grad():
            for example in examples:
                call(runner, to_device(example, "cpu"))
    except Exception:
        return False
    return True

"""Networks in which the values of the weights decide which layers run: a mixture of experts, in a loop.

A trace sees one network.  In another, with fresh weights, other layers may run on the same example: their
units would not be seen there, and what they cost would be another number.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from widthsearch.errors import UsageError
from widthsearch.space.copies import empty_copy
from widthsearch.space.idle import idle_modules, kept_for
from widthsearch.space.initialise import Initialisation, initialise, isolated_random_numbers
from widthsearch.space.labels import size_of_dim
from widthsearch.space.recorder import Trace
from widthsearch.space.tracer import keep_shapes, run_trace
from widthsearch.space.variables import Variables

DRAWS = 4  # networks of fresh weights
DECIDE = "the values of the weights decide"


def keep_what_may_not_run(
    model: nn.Module, examples: Sequence[Any], trace: Trace, initialisation: Initialisation
) -> None:
    """Layers that do not run on the examples with every fresh weight keep their shapes, in this trace."""
    if trace.device == "meta":  # nothing there has a value
        return
    draws = [_traced_alike(model, examples, trace)]
    for seed in range(1, DRAWS + 1):
        fresh = empty_copy(model, trace.device)
        with contextlib.suppress(Exception):  # these weights may be none that it runs with: see the rehearsal
            with isolated_random_numbers(seed):
                initialise(fresh, initialisation)
            draws.append(_traced_alike(fresh, examples, trace))
    first, *others = [(draw.read, list(map(size_of_dim, draw.macs))) for draw in draws]
    trace.routed = any(other != first for other in others)
    if trace.routed:
        idle = (item for draw in draws for item in idle_modules(draw).items())
        keep_shapes(trace, {name: _reason(place) for place, names in idle for name in names})


def _traced_alike(model: nn.Module, examples: Sequence[Any], trace: Trace) -> Trace:
    """A trace with the same random numbers as others: noise of the network's own makes no difference."""
    with isolated_random_numbers():
        return run_trace(model, examples, trace.device, before=trace)


def kept_beside(trace: Trace, variables: Variables) -> dict[str, str]:
    """The variables that a layer may read or make which only other weights make run; why."""
    if not trace.routed:
        return {}
    idle = idle_modules(trace)
    return {
        variable: _reason(place)
        for place, names in idle.items()
        for variable in kept_for({place: names}, trace, variables)
    }


def _reason(place: str) -> str:
    return (
        f"whether {place} runs depends on the values of the weights; with a larger Study(example=...) "
        "all layers may run always"
    )


def costs_unknown(space: Any) -> dict[str, str]:
    """The variables of a space whose cost other weights change, and why they cannot be searched."""
    if not space.traced.routed:
        return {}
    unknown = f"{DECIDE} which layers run, or on what: the network's cost is not known"
    costs = [space.cost]
    for seed in range(1, DRAWS + 1):
        try:
            with isolated_random_numbers(seed):
                costs.append(space.at(space.widths).cost)
        except (UsageError, ValueError):  # these weights make it another network
            return dict.fromkeys(space.widths, unknown)

    def differ(widths: dict[str, int]) -> bool:
        macs = [cost.at(widths)["macs"] for cost in costs]
        return not all(math.isclose(one, macs[0]) for one in macs)

    if differ(space.widths):
        return dict.fromkeys(space.widths, unknown)
    reason = f"{DECIDE} on which samples its layers run: its cost is not known"
    return {v: reason for v, width in space.widths.items() if differ({**space.widths, v: 2 * width + 1})}

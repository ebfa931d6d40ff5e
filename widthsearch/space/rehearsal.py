"""What a search does with a width space, once, at random widths: the last check of a trace.

The network is made at smaller widths and traced there, units are closed and removed, one gated training step
is made, and the cost is compared with torch's own count.  At larger widths, which take longer, it is only
traced and counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError
from torch.utils.flop_counter import FlopCounterMode

from widthsearch.errors import UsageError, describe_error
from widthsearch.space.copies import by_part, call, empty_copy, outputs_of, reference_kernels, to_device
from widthsearch.space.gating import Gating
from widthsearch.space.initialise import isolated_random_numbers
from widthsearch.space.removal import TOLERANCE, removal_error
from widthsearch.space.resize import resized_copy
from widthsearch.space.tangles import told_apart

Space = Any  # a WidthSpace, which is made of this
WIDEST = 2.5  # times as wide: where a search goes
MOST_NAMED = 4  # variables in a reason


def random_widths(
    widths: Mapping[str, int], names: Collection[str], numbers: random.Random
) -> dict[str, int]:
    """Smaller widths of these variables (the check takes less time); the others stay."""
    return {
        name: max(2, int(width * numbers.uniform(0.4, 0.95))) if name in names else width
        for name, width in widths.items()
    }


def wider_widths(widths: Mapping[str, int], names: Collection[str], numbers: random.Random) -> dict[str, int]:
    """Wider widths of these variables, as a search measures them; the others stay."""
    most = {own: max(own + 3, int(WIDEST * own)) for own in widths.values()}
    others = [max(own + 1, int(own * numbers.uniform(1.1, WIDEST))) for own in widths.values()]
    apart = told_apart(list(widths.values()), others, lambda own: range(own + 1, most[own] + 1))
    return {
        name: wider if name in names else own
        for (name, own), wider in zip(widths.items(), apart, strict=True)
    }


class OtherUnitsError(ValueError):
    """A network made at some widths has others: its code divides units by itself."""


def check_units(found: Mapping[str, int], widths: Mapping[str, int]) -> None:
    """:class:`OtherUnitsError` if these widths of a network are not those that it was made with."""
    if list(found.items()) == list(widths.items()):
        return
    other = [name for name in {**widths, **found} if widths.get(name) != found.get(name)]
    if not other:
        raise OtherUnitsError("the layers of the network run in another order")
    made, seen = (
        ", ".join(f"{name}: {each[name]}" if name in each else f"no {name}" for name in other[:MOST_NAMED])
        for each in (widths, found)
    )
    raise OtherUnitsError(f"the network's code divides units by itself: made with {made}, it has {seen}")


def failure_wider(space: Space, widths: Mapping[str, int]) -> str | None:
    """How a search would fail at these larger widths; only what needs no arithmetic is tried."""
    with isolated_random_numbers():
        try:
            there = _sketched(space, widths)
        except (UsageError, ValueError) as error:
            return _said(error)
        return _failure_of_the_cost(space, there)


def _sketched(space: Space, widths: Mapping[str, int]) -> Space:
    """The space at these widths, without memory for its weights where the trace needs none."""
    if space.traced.device == "meta":
        ordered = [widths[name] for name in space.widths]
        model = resized_copy(space.model, space.traced, space.variables, ordered, "meta")
        try:
            return space.at(widths, model=model)
        except (UsageError, ValueError):  # what it says is of that copy
            pass
    return space.at(widths)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, OtherUnitsError) else describe_error(error)


def failure_at(space: Space, widths: Mapping[str, int]) -> str | None:
    """How a search would fail at these widths; None if it would not."""
    with isolated_random_numbers():
        try:
            there = space.at(widths)
        except (UsageError, ValueError) as error:
            return _said(error)
        everyone = range(len(widths))
        off = removal_error(there.model, there.examples, there.traced, there.variables, everyone)
        if off >= TOLERANCE:
            return f"closing units is not the same as removing them (by {off:.1g})"
        return _failure_of_a_step(there) or _failure_of_the_cost(space, there)


def _failure_of_a_step(space: Space) -> str | None:
    """How a training step with gates fails, where one without them does not."""
    gating = Gating(space.model, list(space.widths.values()), space.consumers, space.statistics)
    device = next(space.model.parameters()).device
    z = torch.empty(sum(space.widths.values()), device=device).uniform_(0.5, 1).requires_grad_()
    try:
        _step(space, gating, z)
    except CheckpointError:  # a training says what to do about it
        return None
    except Exception as error:
        try:
            _step(space)
        except Exception:  # nor does the network alone train on its example
            return None
        return f"a gated training step fails: {describe_error(error)}"
    finally:
        gating.remove()
    if z.grad is not None and not z.grad.isfinite().all() and _step(space):
        return "gates get no finite gradient"
    return None


def _step(space: Space, gating: Gating | None = None, z: Any = None) -> bool:
    """One backward pass in training mode; whether all gradients of weights are finite."""
    model = space.model.train()
    model.zero_grad()
    for given in space.examples:
        out = call(model, given) if gating is None else gating.run(z, given)
        outputs = outputs_of(out, space.traced.counts)
        trained: list[Tensor] = [by_part(t).float().square().mean() for t in outputs if t.requires_grad]
        if trained:
            torch.stack(trained).sum().backward()  # type: ignore[no-untyped-call]
    return all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def _failure_of_the_cost(space: Space, there: Space) -> str | None:
    expected = space.cost.at(there.widths)["macs"]
    counted = _counted(there)
    if counted is None or round(counted / there.samples) == expected:
        return None
    own = _counted(space)
    if own is None or round(own / space.samples) != space.cost.at(space.widths)["macs"]:
        return None  # torch counts the operations of this network in another way, at any widths
    return f"its cost would be {expected:,.0f} MACs, torch counts {counted / there.samples:,.0f}"


#: What torch's counter lacks: rows (T, k) by the matrices of their groups, (E, k, m).
FORMULAS: dict[Any, Any] = {
    torch.ops.aten._grouped_mm: lambda rows, matrices, *_, **__: 2 * math.prod(rows) * matrices[-1]
}


def _counted(space: Space) -> int | None:
    """The MACs of a forward pass of the examples by torch's own counter; None where it does not run."""
    device = space.traced.device
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    model = empty_copy(space.model, device).eval()
    try:
        with reference_kernels(device), sdpa_kernel(SDPBackend.MATH), counter:
            for given in space.examples:
                call(model, to_device(given, device))
    except Exception:
        return None
    return int(counter.get_total_flops()) // 2

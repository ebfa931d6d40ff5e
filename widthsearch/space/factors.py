"""Numbers that modules hold and multiply tensors with: which of them scale an attention, which may be stale.

``q @ k.T * self.scale`` is right at another width only if ``scale`` follows.  What is seen as a factor of a
product over units, or as its ``scale``, follows these units; of what else is seen to scale a tensor of units
the trace keeps a note (:mod:`.stale`), as nobody can tell what it means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from widthsearch.space.labels import Dim
from widthsearch.space.marks import Factor, Stated, places_of, plain
from widthsearch.space.recorder import Applied, Label, Place, Recorder

Arguments = tuple[Any, ...]
POWERS = (0.5, -0.5, 1.0, -1.0)  # of a size, that scale something


def _read_multiple(recorder: Recorder, args: Arguments, kwargs: Mapping[str, Any], out: Tensor) -> None:
    """``x * self.scale``; also ``self.scale / x``."""
    given = [*args, *kwargs.values()][:2]
    for number, x in (given, given[::-1]) if len(given) == 2 else ():
        _note(recorder, number, x, out, divides=False)


def _read_part(recorder: Recorder, args: Arguments, kwargs: Mapping[str, Any], out: Tensor) -> None:
    """``x / self.scale``."""
    given = [*args, *kwargs.values()]
    _note(recorder, given[1], given[0], out, divides=True)


def _read_attention(recorder: Recorder, args: Arguments, kwargs: Mapping[str, Any], out: Tensor) -> None:
    """``F.scaled_dot_product_attention(q, k, v, scale=self.scale)``."""
    query = args[0] if args else kwargs["query"]
    _note_elsewhere(recorder, [*args, *(value for key, value in kwargs.items() if key != "scale")])
    for place, by in _origins(recorder, kwargs.get("scale")):
        units = recorder.labels.flat(recorder.label(query).dims[-1])
        if not isinstance(units, int):  # no site: its masked form finds the scale by itself
            recorder.note_scale(Applied(place, recorder.trace.held[place], by), units)


def _read_added_product(recorder: Recorder, args: Arguments, kwargs: Mapping[str, Any], out: Tensor) -> None:
    """``torch.baddbmm(mask, q, k, alpha=self.scale)``."""
    _note_elsewhere(recorder, [*args, *(value for key, value in kwargs.items() if key != "alpha")])
    _note(recorder, kwargs.get("alpha"), out, out, divides=False)


def _read_made(recorder: Recorder, args: Arguments, kwargs: Mapping[str, Any], out: Tensor) -> None:
    """``torch.tensor(self.scale)``: the same number in a tensor."""
    places = [place for value in (*args, *kwargs.values()) for place in places_of(value)]
    if len(places) == 1 and out.numel() == 1:
        recorder.numbers[out] = places[0]
    else:
        _note_elsewhere(recorder, [*args, *kwargs.values()])


#: What reads the factors out of the call of a function (by name, whether of torch or Tensor).
READERS: dict[str, Callable[[Recorder, Arguments, Mapping[str, Any], Any], None]] = {
    **dict.fromkeys(("mul", "mul_", "multiply", "multiply_", "__rdiv__"), _read_multiple),
    **dict.fromkeys(("div", "div_", "divide", "divide_", "true_divide", "true_divide_"), _read_part),
    "scaled_dot_product_attention": _read_attention,
    "baddbmm": _read_added_product,
    **dict.fromkeys(("tensor", "as_tensor", "scalar_tensor", "full", "new_tensor", "new_full"), _read_made),
}


def read_factors(recorder: Recorder, name: str, args: Arguments, kwargs: Mapping[str, Any], out: Any) -> None:
    """Look for numbers that modules hold among the arguments of a function that has run."""
    if name in READERS:
        READERS[name](recorder, args, kwargs, out)
    else:
        _note_elsewhere(recorder, [*args, *kwargs.values()])


def _note_elsewhere(recorder: Recorder, given: list[Any]) -> None:
    recorder.trace.elsewhere.update(
        place for value in given if isinstance(value, Factor) for place in value.places
    )


def _origins(recorder: Recorder, number: Any) -> list[tuple[Place, float]]:
    """The attributes that a number comes from, where they can be told, each with the number."""
    trace = recorder.trace
    if isinstance(number, (Factor, Stated)):
        return [(place, float(plain(number))) for place in places_of(number)]
    if isinstance(number, Tensor):
        place = recorder.numbers.get(number)
        return [] if place is None else [(place, trace.held[place])]
    if type(number) is not float:
        return []
    # Of what was read as a float the only one in this module that explains it.
    found = [
        place
        for place in trace.converted
        if place[0] == recorder.modules.innermost
        and any(math.isclose(number, trace.held[place] ** power) for power in POWERS)
    ]
    return [(found[0], number)] if len(found) == 1 else []


def _note(recorder: Recorder, number: Any, x: Any, out: Tensor, *, divides: bool) -> None:
    """The tensor ``out`` is ``x`` times (or by) the number."""
    if not isinstance(x, Tensor):
        return
    for place, value in _origins(recorder, number):
        if not value:
            continue
        applied = Applied(place, recorder.trace.held[place], 1 / value if divides else value)
        label = recorder.label(x)
        for units, product in label.over:
            if product is not None:
                recorder.note_scale(applied, units, product)
        recorder.trace.applied.append((applied, _units_of(label)))
        result = recorder.label(out)
        result.factors |= {applied}
        recorder.set_label(out, result)


def _units_of(label: Label) -> list[Dim]:
    """What a tensor has units of: its dimensions, their factors, and what it was summed over."""
    factors: list[Dim] = [(factor,) for dim in label.dims for factor in dim]
    return [*factors, *(dim for dim in label.dims if len(dim) > 1), *((units,) for units, _ in label.over)]

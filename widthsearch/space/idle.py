"""Modules that no example runs: a second head, an idle expert, a branch on data.

What they read and make is not seen, only its size: so variables of that size keep their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from widthsearch.space.recorder import Trace


def idle_modules(trace: Trace) -> dict[str, list[str]]:
    """The outermost modules of which no parameter was read, and their parameters; also single parameters."""
    found: dict[str, list[str]] = {}
    for name in trace.parameters:
        if name not in trace.read:
            parts = name.split(".")
            owners = (".".join(parts[:end]) for end in range(1, len(parts)))
            place = next((owner for owner in owners if _is_idle(owner, trace)), name)
            found.setdefault(place, []).append(name)
    return found


def _is_idle(module: str, trace: Trace) -> bool:
    return not any(name.startswith(f"{module}.") for name in trace.read)


def kept_for(idle: Mapping[str, Sequence[str]], trace: Trace, widths: Mapping[str, int]) -> dict[str, str]:
    """The variables that have a size of an idle module, or divide what a linear layer reads; and why."""
    kept: dict[str, str] = {}
    for place, names in idle.items():
        for name in names:
            shape = trace.shapes[name]
            for dim, size in enumerate(shape):
                same = [v for v, width in widths.items() if width == size]
                if not same and (len(shape), dim) == (2, 1):  # it may read flattened units
                    same = [v for v, width in widths.items() if size % width == 0]
                reason = f"{place} has the size {size} too, and may read or make them; {NOT_RUN}"
                for v in same:
                    kept.setdefault(v, reason)
    return kept


NOT_RUN = "no example runs it (one that does: Study(examples=[...]))"

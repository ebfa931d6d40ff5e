"""Modules that no example runs: a second head, an idle expert, a branch on data.

What they read and make is not seen, only its size: so variables of that size keep their width, where the
module can get at their units.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from widthsearch.space.recorder import Trace
from widthsearch.space.variables import Variables


def idle_modules(trace: Trace) -> dict[str, list[str]]:
    """The outermost modules of which no parameter was read, and their parameters; also single parameters."""
    found: dict[str, list[str]] = {}
    for name in trace.parameters:
        if name not in trace.read:
            parts = name.split(".")
            owners = (".".join(parts[:end]) for end in range(1, len(parts)))
            idle = (o for o in owners if not any(read.startswith(f"{o}.") for read in trace.read))
            found.setdefault(next(idle, name), []).append(name)
    return found


def kept_for(idle: Mapping[str, Sequence[str]], trace: Trace, variables: Variables) -> dict[str, str]:
    """The variables that an idle module may read or make: of its sizes, or dividing a linear layer's; why.

    Not those whose units never leave a module that ran and that the idle one is no part of (the hidden units
    of a sibling).
    """
    homes = _homes(trace, variables)
    kept: dict[str, str] = {}
    for place, names in idle.items():
        near = [
            (v, width)
            for v, width in variables.width.items()
            if not homes[v] or f"{place}.".startswith(f"{homes[v]}.")
        ]
        for name in names:
            shape = trace.shapes[name]
            for dim, size in enumerate(shape):
                same = [v for v, width in near if width == size]
                if not same and (len(shape), dim) == (2, 1):  # it may read flattened units
                    same = [v for v, width in near if size % width == 0]
                reason = f"{place} has the size {size} too, and may read or make them; {NOT_RUN}"
                for v in same:
                    kept.setdefault(v, reason)
    return kept


def _homes(trace: Trace, variables: Variables) -> dict[str, str]:
    """Of every variable the innermost module whose forward ran that has all parameters with its units."""
    owners: dict[str, list[list[str]]] = {name: [] for name in variables.names}
    for (parameter, _), ids in trace.axes.items():
        for name in variables.among(ids):
            owners[name].append(parameter.split(".")[:-1])
    homes = {}
    for name, paths in owners.items():
        home = os.path.commonprefix(paths)
        while home and ".".join(home) not in trace.ran:
            home = home[:-1]
        homes[name] = ".".join(home)
    return homes


NOT_RUN = "no example runs it (one that does: Study(examples=[...]))"

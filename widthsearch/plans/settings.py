"""The settings of a search: each declared once, with its default, its check and its help.

A ``Study`` and a ``Plan`` have all of them, the command line makes options of some, and ``launch()`` in
Python takes any: they all read this file.  The name of a field is its name in a study file, in the plan's
JSON and, with dashes, on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, Self

from widthsearch.errors import UsageError

#: What may measure prune ratios in a search.
MEASURES = ("l0", "l1", "taylor")
Pruner = Literal["l0", "l1", "taylor", "sensitivity"]  # the last one in an arm of a comparison alone
PRESSURES = ("neurons", "cost")


class Check(NamedTuple):
    """What a value must be: a test, and the words that follow ``Study(rounds=0): ``."""

    holds: Callable[[Any], bool]
    must: str


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def one_of(*choices: str) -> Check:
    """One of these texts."""
    return Check(lambda v: isinstance(v, str) and v in choices, f"must be one of {', '.join(choices)}")


def from_zero(below: float = math.inf) -> Check:
    """A finite number of at least 0, and below a limit."""
    limit = f" and below {below}" if below < math.inf else ""
    return Check(lambda v: _is_number(v) and 0 <= v < below, f"must be a finite number of at least 0{limit}")


WHOLE = Check(lambda v: _is_whole(v) and 0 < v < 2**31, "must be a whole number of at least 1, below 2**31")
WHOLE_OR_ZERO = Check(
    lambda v: _is_whole(v) and 0 <= v < 2**32, "must be a whole number of at least 0, below 2**32"
)
POSITIVE = Check(lambda v: _is_number(v) and 0 < v < math.inf, "must be a finite number above 0")
SWITCH = Check(lambda v: isinstance(v, bool), "must be True or False")
INTERVAL = Check(lambda v: _is_whole(v) and 2 <= v < 2**31, "at least 2, for an interval")
SHARE = Check(
    lambda v: _is_number(v) and 0 < v <= 1, "must be a share of the recipe's epochs, above 0 and at most 1"
)
OVER = Check(
    lambda v: _is_number(v) and 1 < v <= 1000,
    "must be a finite number above 1, or there is nothing to prune; at most 1000",
)
STEPS = Check(
    lambda v: isinstance(v, Sequence) and bool(v) and all(_is_number(s) and 0 < s <= 2 for s in v),
    "must be a list of changes of the log widths (standard deviations), above 0 and at most 2, "
    "e.g. (0.15, 0.3, 0.6)",
)


def optional(check: Check) -> Check:
    """The same, or ``None``."""
    return Check(lambda v: v is None or check.holds(v), check.must)


def setting(default: Any, check: Check, help: str = "") -> Any:
    """A field of a dataclass with its check and, where the command line or docs show it, its help."""
    return field(default=default, metadata={"check": check, "help": help})


def check_settings(owner: Any) -> None:
    """Refuse the first value that its check does not hold for, in one line."""
    for f in fields(owner):
        check, value = f.metadata.get("check"), getattr(owner, f.name)
        if check is not None and not check.holds(value):
            shown = " ".join(repr(value).split())  # of a network, many lines
            raise UsageError(f"{type(owner).__name__}({f.name}={shown:.60}): {check.must}")


class Fields:
    """A dataclass of the user's whose unknown and missing fields are said in one line, with what is meant."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """Raise :class:`UsageError` for a field that there is not, and for one that is left out."""
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # every subclass is a dataclass
        for name in given:
            if name not in known:
                raise UsageError(f"{cls.__name__}({name}=...): no such field; {_meant(cls, name)}")
        if args or given:  # a copy is made without any
            positional = [f.name for f in fields(cls) if not f.kw_only][: len(args)]  # type: ignore[arg-type]
            for f in fields(cls):  # type: ignore[arg-type]
                needed = f.default is MISSING and f.default_factory is MISSING
                if needed and f.name not in given and f.name not in positional:
                    raise UsageError(f"{cls.__name__}(...) without {f.name}: give {f.name}=...")
        return super().__new__(cls)


def _meant(cls: type, name: str) -> str:
    """What a field of this name may have been meant to be, here or in another class."""
    own = [f.name for f in fields(cls)]
    others = {
        f.name: f"{other.__name__}({f.name}=...)"
        for other in Fields.__subclasses__()
        if other is not cls
        for f in fields(other)  # type: ignore[arg-type]
    }
    if name in others:
        return f"it belongs to {others[name]}"
    for near in (*get_close_matches(name, own, n=1), *get_close_matches(name, others, n=1, cutoff=0.8)):
        return f"did you mean {others.get(near, near)}?"
    return f"there are {', '.join(own)}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How thoroughly to search, and by what."""

    rounds: int = setting(3, WHOLE, "Rounds at most.")
    replicas: int = setting(2, WHOLE, "Gated trainings per round at most: fewer where they agree.")
    pruner: Pruner = setting("l0", one_of(*MEASURES), "What measures prune ratios: l0 (gates), l1 or taylor.")
    seeds: int = setting(4, WHOLE, "Plain trainings per proposal; what is behind on half of them has left.")
    final_seeds: int = setting(4, WHOLE_OR_ZERO, "More of them for the best at the end; 0 for no run-off.")
    report_seeds: int = setting(8, INTERVAL, "Fresh seeds for the verdict.")
    over: float = setting(4.0, OVER, "Cost of the over-wide network, in budgets.")
    measure_length: float = setting(0.3, SHARE, "Of a measure, as a share of the recipe's epochs.")
    step_sizes: Sequence[float] = setting(
        (0.3, 0.6), STEPS, "How far proposals go: standard deviation of the change in log width."
    )
    doublings: int = setting(1, WHOLE_OR_ZERO, "How often the longest is doubled while it is the best.")
    cost_aware_start: bool = setting(True, SWITCH, "Whether cost-aware widths may be the start too.")
    pressure: Literal["neurons", "cost"] = setting("cost", one_of(*PRESSURES), "What an open gate pays for.")
    patience: int = setting(1, WHOLE, "Rounds without a better score after which a search ends.")
    tolerance: float = setting(0.02, from_zero(), "Spread of prune ratios that counts as balanced.")
    retries: int = setting(2, WHOLE_OR_ZERO, "How often a failed training is tried again.")
    seed: int = setting(0, WHOLE_OR_ZERO, "What all random numbers of the study depend on.")

    def settings(self) -> dict[str, Any]:
        """The settings by name, without what a subclass adds."""
        return {f.name: getattr(self, f.name) for f in fields(Settings)}


#: What `--effort` sets: about 4 uniform trainings, what the study says (62 at most by default), 135 at most.
EFFORTS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "rounds": 1,
        "replicas": 1,
        "seeds": 1,
        "step_sizes": (0.3,),
        "doublings": 0,
        "final_seeds": 0,
        "report_seeds": 4,
    },
    "normal": {},
    "thorough": {"rounds": 4, "replicas": 6, "seeds": 6, "final_seeds": 8, "report_seeds": 16},
}
#: Which of them each command has as options.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "launch": ("rounds", "replicas", "pruner", "seeds", "final_seeds", "report_seeds", "seed"),
    "compare": ("report_seeds",),
    "probe": ("report_seeds",),
    "pruners": ("seeds",),
}
HELP: Mapping[str, str] = {f.name: f.metadata["help"] for f in fields(Settings)}


def settings_of_effort(name: str) -> dict[str, Any]:
    """The settings of an effort; :class:`UsageError` for one that there is not."""
    if name not in EFFORTS:
        raise UsageError(f"--effort {name!r:.40}: give one of {', '.join(EFFORTS)}")
    return dict(EFFORTS[name])

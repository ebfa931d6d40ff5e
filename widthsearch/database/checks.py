"""The database is data, and may hold anything: what is read is checked here, and refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from widthsearch.errors import UsageError, describe_error
from widthsearch.plans.plan import Kind

Check = Callable[[Any], bool]
_LARGEST = 2**62


@contextmanager
def reading(study_name: str) -> Iterator[None]:
    """Whatever goes wrong with what a study holds in the database becomes one line about that study."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"study {study_name!r} cannot be read, it holds what no search writes ({describe_error(error)}); "
            "delete it, or read the others by their names"
        ) from error


def check_study(name: str, found: Mapping[str, Any], checks: Mapping[str, Check], needed: set[str]) -> None:
    """:class:`UsageError` for an attribute of a study that is missing, or is none that a search writes."""
    for key in sorted(needed - found.keys()):
        raise UsageError(f"study {name!r} cannot be read: its attribute {key!r} is missing")
    for key, holds in checks.items():
        if key in found and not holds(found[key]):
            raise UsageError(
                f"study {name!r} cannot be read: its attribute {key!r} is {found[key]!r:.60}, which this "
                "version of widthsearch does not write"
            )


def check_run(number: int, found: Mapping[str, Any], widths: Mapping[str, Any]) -> None:
    """``ValueError`` for a trial with attributes that no search writes."""
    for key, holds in _OF_A_RUN.items():
        if (key in found or key in ("round", "replica")) and not holds(found.get(key)):
            raise ValueError(f"{key} of trial {number} is {found.get(key)!r:.60}")
    if "arm" in found and not {"budget", "repeat"} <= found.keys():
        raise ValueError(f"trial {number} has an arm without budget and repeat")
    check_widths(widths)


def check_widths(*found: Mapping[str, Any]) -> None:
    """``ValueError`` for what are no widths."""
    for widths in found:
        for name, width in widths.items():
            if not (is_whole(width) and width > 0):
                raise ValueError(f"the width of {name} is {width!r:.60}")


def is_text(value: Any) -> bool:
    """A text."""
    return isinstance(value, str)


def is_whole(value: Any) -> bool:
    """A whole number that a search may count to."""
    return isinstance(value, int) and not isinstance(value, bool) and -1 <= value < _LARGEST


def is_number(value: Any) -> bool:
    """A number, also none that is finite: a metric may be anything."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_list_of(holds: Check) -> Check:
    """A list of such values."""
    return lambda v: isinstance(v, list) and all(holds(part) for part in v)


def is_map_of(holds: Check) -> Check:
    """An object with such values."""
    return lambda v: isinstance(v, dict) and all(holds(part) for part in v.values())


def has(**parts: Check) -> Check:
    """An object with these values."""
    return lambda v: isinstance(v, dict) and all(k in v and holds(v[k]) for k, holds in parts.items())


def is_pair(value: Any) -> bool:
    """Two texts."""
    return is_list_of(is_text)(value) and len(value) == 2


def check_family(value: Any) -> bool:
    """Whether this is what is written of a family."""
    return has(name=is_text, members=is_list_of(is_text))(value) and bool(value["members"])


def _or_none(holds: Check) -> Check:
    return lambda v: v is None or holds(v)


_NUMBER, _NUMBERS = _or_none(is_number), _or_none(is_map_of(is_number))
_OF_A_RUN: Mapping[str, Check] = {
    "kind": lambda v: is_text(v) and v in get_args(Kind),
    "round": is_whole,
    "replica": is_whole,
    "step": lambda v: is_number(v) and math.isfinite(v),
    "prune_ratio": _NUMBERS,
    "kept": _NUMBERS,
    "error": is_text,
    "arm": is_text,
    "budget": is_whole,
    "repeat": is_whole,
    "asked": is_list_of(is_number),
    "levels": is_list_of(lambda v: isinstance(v, dict)),
    "host": _or_none(is_text),
    **dict.fromkeys(("macs", "params", "training_macs"), _or_none(is_whole)),
    **dict.fromkeys(("accuracy", "test_loss", "test_accuracy", "seconds"), _NUMBER),
}

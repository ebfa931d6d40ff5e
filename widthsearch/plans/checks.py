"""Checks of settings: each refuses a value in one line that says what would be right."""

from __future__ import annotations

import math

from widthsearch.errors import UsageError


def check_positive(owner: object, *, whole: tuple[str, ...], real: tuple[str, ...]) -> None:
    """Refuse attributes of ``owner`` that are no whole number of at least 1, or no finite number above 0."""
    for name in (*whole, *real):
        value = getattr(owner, name)
        good = isinstance(value, int) if name in whole else isinstance(value, int | float)
        if not good or isinstance(value, bool) or not 0 < value < (2**31 if name in whole else math.inf):
            kind = "whole number of at least 1, below 2**31" if name in whole else "finite number above 0"
            raise UsageError(f"{type(owner).__name__}({name}={value!r}): must be a {kind}")


def check_range(owner: object, name: str, below: float = math.inf) -> None:
    """Refuse an attribute that is no finite number of at least 0, and below a limit."""
    value = getattr(owner, name)
    if not isinstance(value, int | float) or not 0 <= value < below:
        limit = f" and below {below}" if below < math.inf else ""
        raise UsageError(
            f"{type(owner).__name__}({name}={value!r}): must be a finite number of at least 0{limit}"
        )


def check_choice(owner: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuse an attribute that is none of these texts."""
    value = getattr(owner, name)
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{type(owner).__name__}({name}={value!r}): must be one of {', '.join(choices)}")

"""What a study says about single width variables, by patterns on their names and modules.

A pattern is a shell pattern (``layer3.*``), matched against the name of a variable and against the modules
that make its units: a residual width has many modules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from widthsearch.errors import UsageError

Modules = Mapping[str, Sequence[str]]  # of every width variable, the modules that make its units


def fixed_by(search: Sequence[str] | None, fix: Sequence[str], modules: Modules) -> dict[str, str]:
    """The variables that stay as they are, and why.

    ``search``: only variables of which every module matches (or the name itself); ``fix``: not those of which
    any module matches.  So a residual width that many blocks share is not searched for the sake of one.
    Raises UsageError for a pattern that selects no variable.
    """
    fixed: dict[str, str] = {}
    for pattern in search or ():
        touched = _matched("search", pattern, modules)
        if not any(_all_of(v, modules[v], search or ()) for v in touched):
            others = [m for m in modules[touched[0]] if not fnmatchcase(m, pattern)]
            raise UsageError(
                f"Study(search=...): {pattern!r} is a part of {touched[0]!r}, whose units are also made by "
                f"{several(others)}; to search it, give its name"
            )
    for pattern in fix:
        reason = f"fixed by the study (fix={pattern!r})"
        fixed.update(dict.fromkeys(_matched("fix", pattern, modules), reason))
    for v in modules:
        if search is not None and v not in fixed and not _all_of(v, modules[v], search):
            fixed[v] = "fixed by the study (not in search)"
    return fixed


def numbers_of(setting: str, value: int | Mapping[str, int], modules: Modules) -> dict[str, int]:
    """``minimum`` or ``multiple_of`` as one number per variable; of several patterns the last one counts.

    Raises UsageError for a pattern that matches no variable and for anything but whole numbers from 1.
    """
    numbers = dict.fromkeys(modules, 1)
    for pattern, number in (value if isinstance(value, Mapping) else {"*": value}).items():
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number < 2**31:
            raise UsageError(
                f"Study({setting}=...): {number!r:.60} for {pattern!r} must be a whole number of at least 1, "
                "below 2**31"
            )
        numbers.update(dict.fromkeys(_matched(setting, pattern, modules), number))
    return numbers


def _all_of(name: str, modules: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the patterns select a whole variable, not merely some of the layers that are tied in it."""
    return name in patterns or all(any(fnmatchcase(m, p) for p in patterns) for m in modules or (name,))


def _matched(setting: str, pattern: str, modules: Modules) -> list[str]:
    """The variables with this name or with a module of this name."""
    text = pattern if isinstance(pattern, str) else ""  # a key of a mapping may be anything
    matched = [v for v in modules if any(fnmatchcase(m, text) for m in (v, *modules[v]))]
    if not matched and modules:
        raise UsageError(f"Study({setting}=...): no width variable {pattern!r}; there are {several(modules)}")
    return matched


def several(names: Collection[str], limit: int = 12) -> str:
    """``a, b, c``, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(list(names)[:limit]) + more

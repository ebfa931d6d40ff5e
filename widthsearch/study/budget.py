"""The budget: what the recommended network may cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from widthsearch.errors import UsageError
from widthsearch.maths.cost import RESOURCES
from widthsearch.plans.settings import WHOLE, Fields, check_settings, setting

ANY = "any"  # no limit
_SUFFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_LARGEST = 10**18  # of any network; beyond that, widths are no longer whole numbers to a computer
_SECONDS = {"us": Fraction(1, 10**6), "ms": Fraction(1, 10**3), "s": Fraction(1)}
_AMOUNT = re.compile(r"(?P<number>\d+(\.\d*)?([eE][+-]?\d{1,2})?|\.\d+|\d+/\d+)(?P<unit>x|k|M|G|us|ms|s)?")


@dataclass(frozen=True)
class Budget(Fields):
    """A ceiling on the cost of the recommended network, per resource.

    Of MACs and parameters, one that is not given is limited to the same share of the model's as the other:
    ``Budget(macs="0.25x")`` means a quarter of both, as does ``Budget(macs=500_000)`` for a model of 2M MACs.
    Otherwise the search would buy what is cheap, and recommend a network that is small in one and huge in
    the other.  ``Budget(macs="0.25x", params="any")`` leaves it free, and so does a latency alone.

    Each value is a number (absolute) or a string: ``"0.25x"`` and ``"1/16x"`` are relative to the model as
    given, ``"30k"``, ``"1.5M"``, ``"2G"`` are absolute.  ``macs`` counts the multiply-accumulates of one
    forward pass for one sample.  ``latency`` (``"0.5x"``, ``"2ms"``, ``"800us"``) is the time of a forward
    pass of ``batch`` samples on the machine that launches the study, by a model fitted to networks that are
    measured there.
    """

    macs: str | float | None = None
    params: str | float | None = None
    latency: str | None = None
    batch: int = setting(1, WHOLE)

    def __post_init__(self) -> None:
        """Raise :class:`UsageError` on a value that cannot be read, or if there is no limit at all."""
        if not self.absolute(dict.fromkeys(RESOURCES, 1)):
            raise UsageError(
                "the budget is empty: give macs, params, latency or several, e.g. Budget(macs='0.25x')"
            )
        check_settings(self)
        if self.batch != 1 and self.latency is None:
            raise UsageError(
                f"Budget(batch={self.batch}): belongs to a latency: Budget(latency='0.5x', batch=32)"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read the command line's form, ``macs=0.25x,params=0.25x`` or ``latency=2ms,batch=32``."""
        values: dict[str, Any] = {}
        known = (*RESOURCES, "batch")
        for part in text.split(","):
            resource, equals, amount = (s.strip() for s in part.partition("="))
            if not equals or not amount:
                raise UsageError(f"budget {text!r}: {part!r} is not of the form resource=amount (macs=0.25x)")
            if resource not in known:
                raise UsageError(
                    f"budget {text!r}: unknown resource {resource!r}; known are {', '.join(known)}"
                )
            if resource in values:
                raise UsageError(f"budget {text!r}: {resource!r} is given twice")
            values[resource] = amount
        if values.get("batch", "").isdecimal():
            values["batch"] = int(values["batch"])
        return cls(**values)

    def absolute(self, seed_cost: Mapping[str, Any]) -> dict[str, Any]:
        """The ceilings in whole MACs and parameters and in seconds, for a seed network of this cost.

        ``seed_cost`` has MACs, parameters and every other resource of the budget.
        """
        given = {r: value for r in RESOURCES if (value := getattr(self, r)) not in (None, ANY)}
        limits = {
            r: _time(value, seed_cost[r]) if r == "latency" else _amount(r, value, seed_cost[r])
            for r, value in given.items()
        }
        for one, other in (("macs", "params"), ("params", "macs")):
            if one in given and getattr(self, other) is None and seed_cost[one]:
                share = Fraction(int(limits[one]), seed_cost[one])
                limits[other] = _same_share(other, given[one], share, seed_cost[other])
        return {r: limits[r] for r in RESOURCES if r in limits}


def _same_share(resource: str, given: str | float, share: Fraction, reference: int) -> int:
    if isinstance(given, str) and given.strip().endswith("x"):
        return _amount(resource, given, reference)
    return min(_LARGEST, max(1, math.floor(share * reference)))


def _amount(resource: str, value: str | float, reference: int) -> int:
    match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and (match is None or match["unit"] in _SECONDS):
        raise UsageError(
            f"budget {resource}={value!r}: give a share of the seed network such as '0.25x' or '1/16x', "
            "or an amount such as 500000, '500k', '1.5M'"
        )
    try:
        number = Fraction(match["number"]) if match else Fraction(value)
    except (ValueError, OverflowError, ZeroDivisionError, TypeError):
        number = Fraction(0)
    unit = (match["unit"] or "") if match else ""
    if 0 < number < 1 and not unit:
        share = match["number"] if match else value
        raise UsageError(
            f"budget {resource}={value!r:.60}: did you mean '{share}x'? That is a share of the seed network"
        )
    limit = math.floor(number * (reference if unit == "x" else _SUFFIX[unit]))
    if number <= 0 or isinstance(value, bool) or limit > _LARGEST:
        raise UsageError(
            f"budget {resource}={value!r:.60}: must be a finite number above 0, and at most {_LARGEST:.0e}"
        )
    return limit


def _time(value: object, reference: float) -> float:
    match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = match["unit"] if match else None
    if match is None or (unit != "x" and unit not in _SECONDS):
        raise UsageError(
            f"budget latency={value!r:.60}: give a share of the seed network's such as '0.5x', "
            "or a time such as '2ms', '800us', '1s'"
        )
    try:
        seconds = float(Fraction(match["number"]) * (Fraction(reference) if unit == "x" else _SECONDS[unit]))
    except (OverflowError, ZeroDivisionError):
        seconds = 0.0
    if seconds <= 0:
        raise UsageError(f"budget latency={value!r:.60}: must be a finite time above 0")
    return seconds

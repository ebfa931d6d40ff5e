"""What a picture of a search shows: seed, uniform, over-wide and best found network, a row of blocks each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from widthsearch.report.types.common import Network as Measured
from widthsearch.report.types.search import SearchSummary
from widthsearch.show.formats import found_name, title
from widthsearch.show.style import colour_of
from widthsearch.show.ties import Tie


@dataclass(frozen=True)
class Network:
    """A row of blocks: what it is called, what stands beside it, and per variable what its block says."""

    name: str
    lines: Sequence[str]
    widths: Mapping[str, int]  # empty: not known yet
    colours: Mapping[str, str] = field(default_factory=dict)
    below: Mapping[str, str] = field(default_factory=dict)  # what is written under a block
    tooltips: Mapping[str, str] = field(default_factory=dict)
    outlines: Mapping[str, int] = field(default_factory=dict)  # other widths to compare with


def networks_of(summary: SearchSummary, ties: Mapping[str, Tie]) -> list[Network]:
    """The four networks, from what ``show --json`` prints; ``ties``: who makes a variable's units."""
    seed = summary["seed"]
    made = {
        v: f"\nmade by {len(tie.modules)} modules: {', '.join(tie.modules)}" if (tie := ties.get(v)) else ""
        for v in seed["widths"]
    }
    before = Network(
        "seed",
        _sizes(seed, None),
        seed["widths"],
        tooltips={v: f"{v}, seed: {w} units{made[v]}" for v, w in seed["widths"].items()},
    )
    uniform = summary["baseline"]
    scaled = Network(
        "uniform",
        _sizes(uniform, seed),
        uniform["widths"],
        tooltips={v: f"{v}, uniform: {w} units" for v, w in uniform["widths"].items()},
    )
    return [before, scaled, _over_wide(summary), _best(summary)]


def _over_wide(summary: SearchSummary) -> Network:
    if not summary["rounds"]:
        return Network("over-wide", ["nothing measured yet"], {})
    last = summary["rounds"][-1]
    widths, ratio, errors = last["over_wide"], last["prune_ratio"], last["prune_ratio_se"] or {}
    tooltips = {
        v: f"{v}, over-wide: {w} units, prune ratio {ratio[v]:.2f}"
        + (f" ± {errors[v]:.2f}" if v in errors else "")
        + f" (round {1 + last['round']}, {last['replicas']} replicas)"
        for v, w in widths.items()
    }
    return Network(
        "over-wide",
        [f"measured in round {1 + last['round']}", f"{sum(widths.values()):,} units"],
        widths,
        colours={v: colour_of(p) for v, p in ratio.items()},
        below={v: f"{p:.2f}" for v, p in ratio.items()},
        tooltips=tooltips,
    )


def _best(summary: SearchSummary) -> Network:
    name, found, uniform = title(summary), summary["candidate"], summary["baseline"]["widths"]
    if found is None:
        none = "nothing scored yet" if summary["verdict"] is None else "none better than uniform"
        return Network(name, [none], {})
    changes = {v: _change(w, uniform[v]) for v, w in found["widths"].items()}
    return Network(
        name,
        [found_name(found), *_sizes(found, summary["seed"])],
        found["widths"],
        below=changes,
        tooltips={
            v: f"{v}, {name}: {w} units, {uniform[v]} in uniform ({changes[v]})"
            for v, w in found["widths"].items()
        },
        outlines=uniform,
    )


def _sizes(network: Measured, seed: Measured | None) -> list[str]:
    """Units, weights and MACs; with what became of the seed's, if that is given."""

    def amounts(of: Measured) -> tuple[int, int, int]:
        return sum(of["widths"].values()), of["params"], of["macs"]

    then = amounts(seed) if seed is not None else (None, None, None)
    return [
        f"{_short(n)} {what}" + (f" ({_change(n, old)})" if old is not None else "")
        for n, old, what in zip(amounts(network), then, ("units", "weights", "MACs"), strict=True)
    ]


def _change(now: int, before: int) -> str:
    """``-36 %``, ``same`` or ``+5 %``."""
    share = now / before - 1
    return "same" if now == before else f"{share:+.0%}".replace("-", "\N{MINUS SIGN}").replace("%", " %")


def _short(n: int) -> str:
    """``1,234``, ``562 k``, ``4.11 G``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if n >= size:
            unit = 1e3 if letter == "k" else size
            return f"{n / unit:.3g} {letter}"
    return f"{n:,}"

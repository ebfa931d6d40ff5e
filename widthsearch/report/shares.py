"""Neurons are not weights: what is removed of each; and which layers were pruned most and least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from widthsearch.plans.words import UNITS
from widthsearch.report.types.common import Network
from widthsearch.report.types.search import Findings, Pruned, Removed, Round, SideCost

COST_AWARE = "the cost-aware widths have"
TOLERATED = 1.1  # of the uniform network's cost: beyond, a person should hear of it


def removed(seed: Network, network: Network | None) -> Removed | None:
    """The shares of the seed network's neurons, weights and MACs that ``network`` does without.

    Both have ``widths``, ``params`` and ``macs``.  Neurons are the units of the width variables; weights are
    all parameters.  Negative where the network has more.  In a chain of equal layers half the neurons are
    three quarters of the weights: a weight has a unit on either side.
    """
    if network is None:
        return None

    def share(now: int, before: int) -> float:
        return 1 - now / before if before else 0.0

    units = (sum(of["widths"].values()) for of in (network, seed))
    return {
        "neurons": share(*units),
        "weights": share(network["params"], seed["params"]),
        "macs": share(network["macs"], seed["macs"]),
    }


def pruned_extremes(rounds: Sequence[Round]) -> tuple[Pruned | None, Pruned | None]:
    """The variables of the last measured round that were pruned most and least.

    The earlier one in the order of execution of equals; ``se`` is null with a single replica.
    """
    if not rounds:
        return None, None
    last = rounds[-1]
    ratio, errors = last["prune_ratio"], last["prune_ratio_se"]

    def entry(variable: str) -> Pruned:
        se = errors[variable] if errors else None
        return {"variable": variable, "prune_ratio": ratio[variable], "se": se, "round": last["round"]}

    return entry(max(ratio, key=ratio.__getitem__)), entry(min(ratio, key=ratio.__getitem__))


def removed_line(summary: Findings) -> str | None:
    """``removed of the seed network: 50.2% of the neurons, 74.9% of the weights, 75.0% of the MACs``.

    What it has more of is called added.
    """
    of = summary["removed"]
    if of is None:
        return None
    shares = (("neurons", of["neurons"]), ("weights", of["weights"]), ("MACs", of["macs"]))
    gone = ", ".join(f"{share:.1%} of the {what}" for what, share in shares if share >= 0)
    more = ", ".join(f"{-share:.1%} of the {what}" for what, share in shares if share < 0)
    lines = [f"removed of the seed network: {gone}"] * bool(gone) + [
        f"added to the seed network: {more}"
    ] * bool(more)
    return "; ".join(lines)


def side_costs(budget: Mapping[str, float], uniform: Network, network: Network | None) -> list[SideCost]:
    """The resources that the budget does not limit, and that grow by more than a tenth over ``uniform``."""
    if network is None:
        return []
    counted = (("macs", uniform["macs"], network["macs"]), ("params", uniform["params"], network["params"]))
    return [
        {"resource": resource, "uniform": before, "network": now}
        for resource, before, now in counted
        if resource not in budget and now > TOLERATED * before
    ]


def side_cost_lines(costs: Sequence[SideCost], of: str) -> list[str]:
    """``side cost: ... 4.0 times the parameters of the uniform network (8,237 against 2,060)``, for each."""
    return [
        f"side cost: {of} {c['network'] / c['uniform']:.1f} times the {UNITS[c['resource']]} of the uniform "
        f"network ({c['network']:,} against {c['uniform']:,}), which the budget does not limit"
        for c in costs
    ]


def pruned_line(summary: Findings) -> str | None:
    """``pruned most in round 2: conv3 (0.57 ± 0.03), least: conv1 (0.21 ± 0.02); the rest between``."""
    most, least = summary["pruned_most"], summary["pruned_least"]
    if most is None or least is None or most["variable"] == least["variable"]:
        return None
    rest = "; the rest between" if len(summary["seed"]["widths"]) > 2 else ""
    return f"pruned most in round {1 + most['round']}: {_ratio(most)}, least: {_ratio(least)}{rest}"


def _ratio(entry: Pruned) -> str:
    se = "" if entry["se"] is None else f" ± {entry['se']:.2f}"
    return f"{entry['variable']} ({entry['prune_ratio']:.2f}{se})"

"""Does balance mean quality?  Random networks around given widths at equal cost: their spread, and their loss.

    python tests/benchmarks/balance.py studies/mnist1d_conv.py 8-6-9-7-8-11-45 -o balance.json

From these widths it goes ``--sizes`` far in ``--directions`` random directions in log width, scaled to the same
budget.  Each network is measured (``--replicas`` gated trainings of the over-wide network in its proportions: the
spread of the prune ratios) and trained on ``--seeds`` seeds, the same for all.  Prints one line per network and the
rank correlation of spread with loss; writes all of it as JSON, from which an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from trainings import begin, load, parser_of, train, widths_of

from widthsearch.driver.prepare import prepare
from widthsearch.maths import rule
from widthsearch.plans.plan import Plan, Slot
from widthsearch.plans.words import joined


def networks(plan: Plan, widths: dict[str, int], directions: int, sizes: list[float]) -> list[dict[str, Any]]:
    """The given widths, then ``sizes`` (root mean square of the change in log width) in each direction."""
    found = [{"size": 0.0, "direction": None, "widths": widths}]
    for i in range(directions):
        direction = np.random.default_rng(i).normal(size=len(widths))
        direction -= direction.mean()  # all wider or all narrower is undone by the budget anyway
        direction /= np.sqrt((direction**2).mean())
        for size in sizes:
            steps = np.exp(size * direction)
            relative = {v: w * float(s) for (v, w), s in zip(widths.items(), steps, strict=True)}
            at_budget = rule.scale_to_budget(relative, plan.constraints())
            found.append({"size": size, "direction": i, "widths": at_budget})
    return found


def finish(network: dict[str, Any], plan: Plan, args: argparse.Namespace, pool: Any) -> None:
    """Measure and train one network; all losses by seed."""
    widths = network["widths"]
    over_wide = plan.over_wide(widths)
    slots = [Slot("measure", 0, k, over_wide) for k in range(args.replicas)]
    slots += [Slot("report", 0, k, widths) for k in range(args.seeds)]
    outcomes = pool.map(train, slots, 1)
    ratios = [o["prune_ratio"] for o in outcomes[: args.replicas] if "prune_ratio" in o]
    network["spread"] = rule.spread(ratios)
    network["val_loss"] = [o["val_loss"] for o in outcomes[args.replicas :]]
    network.update(plan.cost.at(widths))


def report(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank correlations (Spearman's, with its p value): over all networks, and over each size alone."""
    found = {}
    sizes = sorted({n["size"] for n in done if n["size"]})
    for name, own in [("all", done), *((f"size {s:g}", [n for n in done if n["size"] == s]) for s in sizes)]:
        if len(own) < 4:
            continue
        rho, p = spearmanr([n["spread"] for n in own], [loss(n) for n in own])
        found[name] = {"n": len(own), "rho": float(rho), "p": float(p)}
    return found


def loss(network: dict[str, Any]) -> float:
    return float(np.mean([x for x in network["val_loss"] if x is not None]))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("widths", help="the recommended ones, 8-6-9-7-8-11-45")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--directions", type=int, default=20)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    args = parser.parse_args()
    plan = prepare(load(args.study)).plan
    widths = widths_of(plan, args.widths)
    file = Path(args.output)
    known = json.loads(file.read_text())["networks"] if file.exists() else []
    asked = networks(plan, widths, args.directions, args.sizes)
    done: list[dict[str, Any]] = []
    with get_context("spawn").Pool(args.workers, begin, (args.study,)) as pool:
        for network in asked:
            old = [n for n in known if n["widths"] == network["widths"] and n["size"] == network["size"]]
            if old:
                network = old[0]
            else:
                finish(network, plan, args, pool)
            done.append(network)
            settings = {k: v for k, v in vars(args).items() if k not in ("output", "workers")}
            file.write_text(
                json.dumps({**settings, "rank correlation": report(done), "networks": done}, indent=1)
            )
            print(
                f"{network['size']:4g}  {joined(network['widths']):30} "
                f"spread {network['spread']:.3f}  loss {loss(network):.4f}",
                flush=True,
            )
    for name, found in report(done).items():
        print(f"{name}: rank correlation {found['rho']:+.2f} (p = {found['p']:.2g}, n = {found['n']})")


if __name__ == "__main__":
    main()

"""How much was there to find?  A smooth model of all that a comparison trained, and how far each arm came in it.

    python tests/benchmarks/landscape.py mnist1d_conv-compare --storage sqlite:///widthsearch.db --train 8

Fits the logarithm of the validation loss of all of the comparison's networks at the budget (hundreds of random
ones help) by a quadratic function of their log widths, with Huber's weights since failing seeds have long tails,
and looks for its lowest point at the budget.  Prints the modelled loss there, of uniform widths and of what every
arm recommends, and which share of the way from uniform to the lowest point that is (in log loss).  Then trains
the lowest point on ``--train`` of the comparison's fresh seeds, beside what is known of the others on these.

``--surrogate``: also where each search would have ended if its own trainings, the first 28 of them or all, had been
fitted by log loss = a + sum over variables of b_i / width_i, b_i > 0 and drawn to one another, and the widths with
the lowest value of that at the budget were recommended.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from trainings import begin, train

from widthsearch.database.connection import Database, url_from
from widthsearch.database.records import SOURCE, load, plan_of, runs_of
from widthsearch.maths import rule
from widthsearch.plans.comparison import Comparison
from widthsearch.plans.plan import Plan, Run, Slot
from widthsearch.plans.words import joined

Array = NDArray[np.float64]


def log_widths(networks: Sequence[Mapping[str, int]]) -> Array:
    """(N, V), in the order of the variables."""
    return np.log([list(widths.values()) for widths in networks])


class Quadratic:
    """log loss = a + b.z + z'Cz, where z are the standardised log widths."""

    def __init__(self, networks: Sequence[Mapping[str, int]], losses: list[float]) -> None:
        x, y = log_widths(networks), np.log(losses)
        self.mean, self.sd = x.mean(0), x.std(0)
        f, weights = self._features(x), np.ones(len(y))
        for _ in range(30):  # iteratively reweighted least squares; the ridge decides what the data do not
            weighted = f * weights[:, None]
            self.coefficients = np.linalg.solve(weighted.T @ f + 1e-3 * np.eye(f.shape[1]), weighted.T @ y)
            residuals = y - f @ self.coefficients
            scale = 1.48 * np.median(np.abs(residuals))
            weights = 1 / np.maximum(1, np.abs(residuals) / (1.5 * scale))
        self.r2 = 1 - residuals.var() / y.var()

    def __call__(self, networks: Sequence[Mapping[str, int]]) -> Array:
        """The modelled log loss of each."""
        return self._features(log_widths(networks)) @ self.coefficients

    def _features(self, x: Array) -> Array:
        z = (x - self.mean) / self.sd
        n = z.shape[1]
        squares = [z[:, i] * z[:, j] for i in range(n) for j in range(i, n)]
        return np.column_stack([np.ones(len(z)), z, *squares])


class Surrogate:
    """log loss = a + sum of b_i / (w_i / w_i of the uniform network), with Huber's loss and a ridge on log b_i - mean."""

    RIDGE, HUBER = 0.5, 0.3

    def __init__(
        self, networks: Sequence[Mapping[str, int]], losses: list[float], uniform: Mapping[str, int]
    ):
        self.uniform = np.array(list(uniform.values()), dtype=float)
        x, y = self._features(networks), np.log(losses)

        def penalty(parameters: Array) -> float:
            a, log_b = parameters[0], parameters[1:]
            off = np.abs(y - a - x @ np.exp(log_b))
            huber = np.where(off < self.HUBER, off**2 / 2, self.HUBER * (off - self.HUBER / 2))
            return float(huber.sum() + self.RIDGE * ((log_b - log_b.mean()) ** 2).sum())

        start = np.array([y.mean() - 0.5, *np.full(x.shape[1], -3.0)])
        self.b = np.exp(minimize(penalty, start, method="L-BFGS-B").x[1:])

    def __call__(self, networks: Sequence[Mapping[str, int]]) -> Array:
        found: Array = self._features(networks) @ self.b
        return found

    def _features(self, networks: Sequence[Mapping[str, int]]) -> Array:
        ratios: Array = self.uniform / np.array([list(widths.values()) for widths in networks])
        return ratios


def lowest(model: Quadratic | Surrogate, plan: Plan, rounds: int = 8, many: int = 1500) -> dict[str, int]:
    """The widths at the budget with the lowest modelled loss: random search, nearer and nearer."""
    generator, best = np.random.default_rng(0), plan.baseline
    for k in range(rounds):
        spread = 1.0 / (1 + k)
        noise = generator.normal(0, spread, (many, len(best)))
        near = [
            rule.scale_to_budget(
                {v: w * float(np.exp(n)) for (v, w), n in zip(best.items(), row, strict=True)},
                plan.constraints(),
            )
            for row in noise
        ]
        best = [best, *near][int(model([best, *near]).argmin())]
    return best


def known_losses(runs: list[Run], seeds: list[int]) -> dict[str, list[float]]:
    """Loss on the fresh seeds, for every network that has them all."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.key[0] == "report" and run.value is not None:
            found.setdefault(joined(run.widths), {})[run.key[2]] = run.value
    return {w: [of[k] for k in seeds] for w, of in found.items() if all(k in of for k in seeds)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    parser.add_argument("--storage")
    parser.add_argument("--train", type=int, default=8)
    parser.add_argument("--surrogate", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    study = load(args.name, Database.open(url_from(args.storage)))
    comparison, runs = plan_of(study), runs_of(study.get_trials(deepcopy=False))
    assert isinstance(comparison, Comparison)
    plan = replace(comparison.plan, budget=dict(comparison.budgets[0]))
    own = [r for r in runs if r.value is not None and r.branch is not None and r.branch.budget == 0]
    plain = [r for r in own if r.key[0] not in ("measure", "pruned")]  # those are over-wide
    model = Quadratic([r.widths for r in plain], [r.value for r in plain if r.value is not None])
    print(f"{len(plain)} trainings, R2 {model.r2:.2f}")

    bottom = lowest(model, plan)
    networks: list[tuple[str, Mapping[str, int]]] = [
        ("lowest point", bottom),
        ("uniform", plan.baseline),
        ("cost-aware", plan.cost_aware),
    ]
    for outcome in comparison.outcomes(runs):
        if outcome.budget == 0 and outcome.points and outcome.arm not in ("uniform", "equal-ratio"):
            networks.append((f"{outcome.arm}, repeat {outcome.repeat}", outcome.points[-1].widths))
    modelled = model([widths for _, widths in networks])
    low, high = modelled[:2]
    if args.surrogate:
        for name, found in surrogates(plan, plain):
            share = (high - model([found])[0]) / (high - low)
            print(f"surrogate of {name:30} {joined(found):24} {share:4.0%} of the way", flush=True)
    fresh = list(range(plan.seeds, plan.seeds + args.train))
    losses = known_losses(plain, fresh)
    losses[joined(bottom)] = trained(study.user_attrs[SOURCE], bottom, fresh, args.workers)
    for (name, widths), at in zip(networks, modelled, strict=True):
        real = losses.get(joined(widths))  # cost-aware ones need not be an arm
        known = (
            f"; trained {np.mean(real):.4f} ± {np.std(real, ddof=1) / len(real) ** 0.5:.4f}" if real else ""
        )
        share = (high - at) / (high - low)
        print(f"{name:24} {joined(widths):24} modelled {np.exp(at):.4f}, {share:4.0%} of the way{known}")


def surrogates(plan: Plan, runs: list[Run]) -> list[tuple[str, dict[str, int]]]:
    """Of every search with trainings at the budget of its own: what a fit of the first 28, and of all, recommends."""
    searches: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        if run.key[0] in ("score", "baseline") and run.branch is not None:
            searches.setdefault((run.branch.arm, run.branch.repeat), []).append(run)
    found = []
    for (arm, repeat), own in searches.items():
        for some in dict.fromkeys((min(28, len(own)), len(own))):
            losses = [r.value for r in own[:some] if r.value is not None]
            fitted = Surrogate([r.widths for r in own[:some]], losses, plan.baseline)
            found.append((f"{arm}, repeat {repeat}, {some} trainings", lowest(fitted, plan)))
    return found


def trained(source: Mapping[str, Any], widths: dict[str, int], seeds: list[int], workers: int) -> list[float]:
    """The network's losses on these seeds."""
    reference = f"{source['file']}:{source['name']}"
    with get_context("spawn").Pool(workers, begin, (reference,)) as pool:
        return [o["val_loss"] for o in pool.map(train, [Slot("report", 0, k, widths) for k in seeds], 1)]


if __name__ == "__main__":
    main()

"""What gates add to a training step: gated over plain, at equal widths, alternating in one run.

    python tests/benchmarks/gate_overhead.py [--pairs 60]

For each study: its seed network, its recipe, batch 128, one thread.  A step is forward, backward and all
optimizer steps; the gated one includes sampling, the budget controller and the gates' Adam.  Prints the
median over pairs of gated / plain, with quartiles, and the same for plain / plain as a control.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from widthsearch.controller import BudgetController
from widthsearch.gates import Gates
from widthsearch.prepare import make_plan
from widthsearch.study import load_study
from widthsearch.train import loss_function, make_optimizer
from widthsearch.trial import build_space

BLOCK = 10
STAYS = contextlib.ExitStack()  # gates are attached for the whole run
STUDIES = Path(__file__).parents[2] / "studies"


def stepper(study, data, gated: bool) -> Callable[[], None]:
    """A function that makes one training step on the first batch."""
    space = build_space(study, data)
    space = space.at(space.widths)
    plan = make_plan(study, space)
    net = space.model
    if gated:
        gates = Gates(space)
        controller = BudgetController(gates.log_alpha, space.widths, plan.cost, plan.budget, steps=10_000)
        STAYS.enter_context(gates.attached(controller.step))
    optimizer = make_optimizer(list(space.model.parameters()), study.recipe)
    loss_of = loss_function(study.recipe, training=True)
    x, y = (t[:128] for t in data[0])
    net.train()

    def step() -> None:
        loss = loss_of(net(x), y)
        net.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Of one step, the mean over a block: each network finds its own data in the caches, as in training."""
    step()
    start = time.perf_counter()
    for _ in range(BLOCK):
        step()
    return (time.perf_counter() - start) / BLOCK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    for name in ("mnist1d_conv", "digits_mlp", "fashion_mnist"):
        study, _, _ = load_study(str(STUDIES / f"{name}.py"))
        data = study.data()
        times: dict[str, list[float]] = {"plain": [], "control": [], "gated": []}
        steps = [(kind, stepper(study, data, kind == "gated")) for kind in times]
        for i in range(pairs + 2):
            for kind, step in steps[i % 3 :] + steps[: i % 3]:  # rotated, so that no kind always comes first
                t = seconds(step)
                if i >= 2:
                    times[kind].append(t)
        print(
            f"{name}: plain step {1e3 * statistics.median(times['plain']):.2f} ms, {pairs} pairs of blocks of {BLOCK}"
        )
        for kind in ("control", "gated"):
            ratios = [a / b for a, b in zip(times[kind], times["plain"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"  {kind:8s} / plain: median {middle:.3f} (quartiles {low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()

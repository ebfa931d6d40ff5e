"""What gates add to a training step: gated over plain, at equal widths, alternating in one run.

    python tests/benchmarks/gate_overhead.py [--pairs 60] [NAME ...]

For each study its seed network and recipe, batch 128; for public networks SGD, batch 32.  One thread.  A step
is forward, backward and all optimizer steps; the gated one includes sampling, the budget controller and the
gates' Adam.  Prints the median over pairs of gated / plain, with quartiles, and the same for plain / plain as
a control.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widthsearch.driver.prepare import make_plan
from widthsearch.space import WidthSpace, trace
from widthsearch.study.file import load_study
from widthsearch.study.recipe import Recipe
from widthsearch.training.controller import BudgetController
from widthsearch.training.gates import Gates
from widthsearch.training.losses import loss_function
from widthsearch.training.recipe_loop import make_optimizer
from widthsearch.training.trial import build_space

BLOCK_SECONDS = 0.1  # steps are timed in blocks of at least so long
STAYS = contextlib.ExitStack()  # gates are attached for the whole run
TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))

from public import load  # noqa: E402

Step = Callable[[], None]


def stepper(
    space: WidthSpace, budget: dict[str, float], recipe: Recipe, x: Any, y: Tensor, gated: bool
) -> Step:
    """A function that makes one training step."""
    space = space.at(space.widths)
    net = space.model
    if gated:
        gates = Gates(space)
        controller = BudgetController(gates.log_alpha, space.widths, space.cost, budget, steps=10_000)
        STAYS.enter_context(gates.attached(controller.step))
    optimizer = make_optimizer(list(net.parameters()), recipe)
    loss_of = loss_function(recipe, training=True)
    net.train()

    def step() -> None:
        loss = loss_of(net(x), y)
        net.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def study(name: str, gated: bool) -> Step:
    found = load_study(str(TESTS.parent / "studies" / f"{name}.py")).study
    data = found.data()
    space = build_space(found, data)
    assert isinstance(data[0], tuple)  # tensors
    x, y = (t[:128] for t in data[0])
    return stepper(space, make_plan(found, space).budget, found.recipe, x, y, gated)


def public(model: nn.Module, x: Tensor, classes: int, gated: bool) -> Step:
    space = trace(model, x[:2])
    budget = {resource: cost / 4 for resource, cost in space.cost(space.widths).items()}
    y = torch.arange(len(x)) % classes
    return stepper(space, budget, Recipe(lr=0.01), x, y, gated)


def from_timm(name: str, size: int, gated: bool, **options: Any) -> Step:
    model = load("timm").create_model(name, num_classes=10, **options)
    return public(model, torch.randn(32, 3, size, size), 10, gated)


class GPTBlock(nn.Module):
    """Token and position embeddings, one block of GPT-2, and the mean over the positions."""

    def __init__(self) -> None:
        super().__init__()
        package = load("transformers")
        config = package.GPT2Config(n_embd=256, n_head=4, n_layer=1, n_positions=128, vocab_size=256)
        self.body, self.head = package.GPT2Model(config), nn.Linear(256, 10)

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.body(input_ids=ids, use_cache=False)[0].mean(1))


NETWORKS: dict[str, Callable[[bool], Step]] = {
    **{name: partial(study, name) for name in ("mnist1d_conv", "digits_mlp", "fashion_mnist")},
    "ResNet-18": partial(from_timm, "resnet18", 64),
    "MobileNetV2": partial(from_timm, "mobilenetv2_100", 64),
    "ViT-Tiny": partial(from_timm, "vit_tiny_patch16_224", 96, img_size=96),
    "ViT-Small": partial(from_timm, "vit_small_patch16_224", 96, img_size=96),
    "GPT-2 block": lambda gated: public(GPTBlock(), torch.randint(0, 256, (32, 128)), 10, gated),
}


def seconds(step: Step, block: int) -> float:
    """Of one step, the mean over a block: each network finds its own data in the caches, as in training."""
    step()
    start = time.perf_counter()
    for _ in range(block):
        step()
    return (time.perf_counter() - start) / block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETWORKS)}; default: all")
    parser.add_argument("--pairs", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or NETWORKS:
        times: dict[str, list[float]] = {"plain": [], "control": [], "gated": []}
        steps = [(kind, NETWORKS[name](kind == "gated")) for kind in times]
        block = max(1, round(BLOCK_SECONDS / seconds(steps[0][1], 3)))
        for i in range(arguments.pairs + 2):
            for kind, step in steps[i % 3 :] + steps[: i % 3]:  # rotated, so that no kind always comes first
                t = seconds(step, block)
                if i >= 2:
                    times[kind].append(t)
        plain = 1e3 * statistics.median(times["plain"])
        print(f"{name}: plain step {plain:.2f} ms, {arguments.pairs} pairs of blocks of {block}")
        for kind in ("control", "gated"):
            ratios = [a / b for a, b in zip(times[kind], times["plain"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"  {kind:8s} / plain: median {middle:.3f} (quartiles {low:.3f} to {high:.3f})", flush=True)
    STAYS.close()


if __name__ == "__main__":
    main()

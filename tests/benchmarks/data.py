"""What data costs: image files against tensors in memory, the memory of two workers, and of a validation.

    python tests/benchmarks/data.py [--pairs 5]

The first: plain trainings of the seed network of `studies/image_files.py`, from files by two loader processes
and from memory, alternating in one run; the ratio of their times, with quartiles.  The second: two processes
load a table of 512 MB as two workers of a host do, each with its own copy and memory-mapped; the memory that
both take together, by the kernel's proportional count (a page that both have counts half for each).  The
third: a U-Net on images of 96x96 is validated, a few training batches at once, and 1,024 images at once, as
before 2026-11-29: peak memory of the process beyond what it had, and seconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from widthsearch import Recipe
from widthsearch.study.data import load_data
from widthsearch.study.file import load_study
from widthsearch.training import recipe_loop
from widthsearch.training.recipe_loop import RecipeLoop, seed_everything

STUDIES = Path(__file__).parents[2] / "studies"
ROWS, COLUMNS = 2**17, 2**10  # float32: 512 MB


def files_over_memory(pairs: int) -> list[float]:
    loops = {}
    for name in ("study", "in_memory"):
        found = load_study(f"{STUDIES / 'image_files.py'}:{name}").study
        loops[name] = found, RecipeLoop(found.recipe, load_data(found))

    def seconds(name: str) -> float:
        found, loop = loops[name]
        seed_everything(0)
        net = found.model()
        began = time.perf_counter()
        loop.fit(net, 0)
        return time.perf_counter() - began

    ratios = []
    for k in range(pairs):
        took = {name: seconds(name) for name in loops}
        ratios.append(took["study"] / took["in_memory"])
        print(f"pair {k}: files {took['study']:.1f} s, memory {took['in_memory']:.1f} s", flush=True)
    return ratios


def _worker(path: str, mapped: bool, ready: Any, done: Any) -> None:
    x = torch.load(path, mmap=mapped)
    float(x.sum())  # every page is read, as a training does
    ready.put(True)
    done.wait()


def memory_of_two(mapped: bool) -> float:
    """MiB of both together."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "table.pt"))
        torch.save(torch.ones(ROWS, COLUMNS), path)
        context = multiprocessing.get_context("spawn")
        ready, done = context.Queue(), context.Event()
        workers = [context.Process(target=_worker, args=(path, mapped, ready, done)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for _ in workers:
            ready.get()
        # Counted again, now that both hold all of it.
        total = sum(_of(worker.pid) for worker in workers)
        done.set()
        for worker in workers:
            worker.join()
        return total


def _of(pid: int | None) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def unet() -> nn.Module:
    def block(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.middle, self.up = block(3, 16), block(16, 32), block(48, 16)
            self.out = nn.Conv2d(16, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = self.down(x)
            low = nn.functional.interpolate(self.middle(nn.functional.max_pool2d(wide, 2)), scale_factor=2)
            y: torch.Tensor = self.out(self.up(torch.cat([wide, low], 1)))
            return y

    return UNet()


def _validation(batches: int, found: Any) -> None:
    torch.set_num_threads(1)
    recipe_loop.EVALUATION_BATCHES = batches
    x, y = torch.randn(1024, 3, 96, 96), torch.randint(2, (1024, 96, 96))
    net, recipe = unet(), Recipe(batch_size=16)
    loop = RecipeLoop(recipe, ((x, y), (x, y)))
    loop.evaluate(net, "validation")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, began = _kib("VmRSS"), time.perf_counter()
    loop.evaluate(net, "validation")
    found.put((time.perf_counter() - began, (_kib("VmHWM") - before) / 1024))


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def validation(batches: int) -> tuple[float, float]:
    """Seconds, and MiB."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    process = context.Process(target=_validation, args=(batches, found))
    process.start()
    seconds, memory = found.get()
    process.join()
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    sys.path.insert(0, str(STUDIES))
    for mapped in (False, True):
        how = "memory-mapped" if mapped else "each its own copy"
        print(f"two workers, {how}: {memory_of_two(mapped):,.0f} MiB together", flush=True)
    for batches, how in ((8, "8 training batches of 16"), (64, "1,024 images")):
        runs = [validation(batches) for _ in range(3)]
        took, memory = statistics.median(s for s, _ in runs), max(m for _, m in runs)
        print(f"validation at 96x96, {how} at once: {took:.1f} s, {memory:,.0f} MiB more, n = 3", flush=True)
    ratios = files_over_memory(pairs)
    q1, median, q3 = statistics.quantiles(ratios, n=4)
    print(f"files over memory: {median:.3f} ({q1:.3f} to {q3:.3f}), n = {pairs}")


if __name__ == "__main__":
    main()

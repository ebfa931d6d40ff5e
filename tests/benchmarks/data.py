"""What data costs: image files against tensors in memory, and the memory of two workers on one host.

    python tests/benchmarks/data.py [--pairs 5]

The first: plain trainings of the seed network of `studies/image_files.py`, from files by two loader processes
and from memory, alternating in one run; the ratio of their times, with quartiles.  The second: two processes
load a table of 512 MB as two workers of a host do, each with its own copy and memory-mapped; the memory that
both take together, by the kernel's proportional count (a page that both have counts half for each).
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

from widthsearch.study.data import load_data
from widthsearch.study.file import load_study
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
    ratios = files_over_memory(pairs)
    q1, median, q3 = statistics.quantiles(ratios, n=4)
    print(f"files over memory: {median:.3f} ({q1:.3f} to {q3:.3f}), n = {pairs}")


if __name__ == "__main__":
    main()

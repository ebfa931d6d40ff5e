"""How long one evaluation of the cost polynomial takes, alone and among 1,000 candidates.

python tests/benchmarks/cost.py [NAME ...]     names as in tests/zoo.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import zoo  # noqa: E402


def microseconds(evaluate: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        evaluate()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def main() -> None:
    for name in sys.argv[1:] or ("resnet50", "densenet121", "vit_tiny_patch16_224"):
        space, _, _ = zoo.traced(name)
        widths = np.array(list(space.widths.values()), dtype=np.float64)
        many = np.tile(widths, (1000, 1))
        alone = microseconds(lambda: space.cost.values(widths), 300)  # noqa: B023
        among = microseconds(lambda: space.cost.many(many), 20) / len(many)  # noqa: B023
        print(f"{name}, {len(widths)} variables: {alone:.1f} us alone, {among:.1f} us among {len(many)}")


if __name__ == "__main__":
    main()

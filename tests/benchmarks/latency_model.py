"""How far the latency model is off, on networks that it was not fitted to: ``python tests/benchmarks/latency_model.py``.

For each study and batch size a model for a budget at the given share of the way from the overhead to the seed
network's latency, by default half: with small networks the calls alone take most of the time, and "0.5x" would
be out of reach.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from widthsearch import Budget
from widthsearch.speed.calibrate import latency_cost
from widthsearch.study.data import load_data
from widthsearch.study.file import load_study
from widthsearch.training.trial import build_space

STUDIES = Path(__file__).parents[2] / "studies"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "studies", nargs="*", default=[str(STUDIES / f"{s}.py") for s in ("mnist1d_conv", "fashion_mnist")]
    )
    parser.add_argument("--batch", default="1,32")
    parser.add_argument("--share", type=float, default=0.5)
    args = parser.parse_args()
    for file in args.studies:
        found = load_study(file)
        written, name = found.study, found.name
        space = build_space(written, load_data(written))
        one = dict.fromkeys(space.widths, 1)
        for batch in map(int, args.batch.split(",")):
            budget = Budget(latency="0.9x", batch=batch)
            cost, _ = latency_cost(replace(written, budget=budget), space, minimum=one, multiple_of=one)
            fixed = cost.overhead("latency")
            seed = cost(space.widths)["latency"]
            limit = fixed + args.share * (seed - fixed)
            budget = Budget(latency=f"{1e6 * limit:.3f}us", batch=batch)
            study = replace(written, budget=budget)
            _, facts = latency_cost(study, space, minimum=one, multiple_of=one)
            print(
                f"{Path(file).stem}:{name} budget {1e3 * limit:.3g} ms, seed {1e3 * facts.seed:.3g} ms, "
                f"overhead {1e3 * fixed:.3g} ms; {facts}",
                flush=True,
            )


if __name__ == "__main__":
    main()

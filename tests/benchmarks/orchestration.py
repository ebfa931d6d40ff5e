"""What orchestration costs per trial beyond its own training, from the database of a finished study.

    python tests/benchmarks/orchestration.py NAME --workers 2 [--storage URL]

workers x wall seconds - sum of training seconds, per trial.  The wall clock starts when the first training
does (start-up apart) and ends with the last; the study must have run without interruption.
"""

from __future__ import annotations

import argparse

import optuna

from widthsearch.database import open_storage, url_from
from widthsearch.storage import SECONDS, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--storage")
    args = parser.parse_args()
    url = url_from(args.storage)
    trials = load(args.name, open_storage(url, create=False), url).get_trials(
        states=(optuna.trial.TrialState.COMPLETE,)
    )
    ends = [t.datetime_complete.timestamp() for t in trials]
    training = [t.user_attrs[SECONDS] for t in trials]
    wall = max(ends) - min(end - s for end, s in zip(ends, training, strict=True))
    overhead = (args.workers * wall - sum(training)) / len(trials)
    print(
        f"{len(trials)} trials, {args.workers} workers, wall {wall:.1f} s, training {sum(training):.1f} s: "
        f"{overhead:.2f} s per trial"
    )


if __name__ == "__main__":
    main()

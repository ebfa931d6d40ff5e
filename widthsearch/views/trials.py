"""The trials of a study as rows: for tables, frames and figures."""

from __future__ import annotations

from typing import Any

import optuna

from widthsearch import storage as names


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """One plain dictionary per training run, in the order of their numbers; ``None`` for what is not known.

    ``widths`` and ``prune_ratio`` are dictionaries by width variable.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        a = trial.user_attrs
        if names.KIND not in a:
            continue  # asked for by hand, none of ours
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name,
                "kind": a[names.KIND],
                "round": a[names.ROUND],
                "replica": a[names.REPLICA],
                "step": a.get(names.STEP, 0.0),
                "arm": a.get(names.ARM),
                "val_loss": trial.value,
                "val_accuracy": a.get(names.ACCURACY),
                "test_loss": a.get(names.TEST_LOSS),
                "test_accuracy": a.get(names.TEST_ACCURACY),
                "macs": a.get(names.MACS),
                "params": a.get(names.PARAMS),
                "training_macs": a.get(names.TRAINING_MACS),
                "seconds": a.get(names.SECONDS),
                "host": a.get(names.HOST),
                "widths": dict(trial.params),
                "prune_ratio": a.get(names.PRUNE_RATIO),
                "error": a.get(names.ERROR),
            }
        )
    return rows

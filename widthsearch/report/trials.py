"""The trials of a study as rows: for tables, frames and figures."""

from __future__ import annotations

from typing import Any

import optuna

from widthsearch.database import records


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """One plain dictionary per training run, in the order of their numbers; ``None`` for what is not known.

    ``widths`` and ``prune_ratio`` are dictionaries by width variable.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False):
        a = trial.user_attrs
        if records.KIND not in a:
            continue  # asked for by hand, none of ours
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name,
                "kind": a[records.KIND],
                "round": a[records.ROUND],
                "replica": a[records.REPLICA],
                "step": a.get(records.STEP, 0.0),
                "arm": a.get(records.ARM),
                "val_loss": trial.value,
                "val_accuracy": a.get(records.ACCURACY),
                "test_loss": a.get(records.TEST_LOSS),
                "test_accuracy": a.get(records.TEST_ACCURACY),
                "macs": a.get(records.MACS),
                "params": a.get(records.PARAMS),
                "training_macs": a.get(records.TRAINING_MACS),
                "seconds": a.get(records.SECONDS),
                "host": a.get(records.HOST),
                "widths": dict(trial.params),
                "prune_ratio": a.get(records.PRUNE_RATIO),
                "error": a.get(records.ERROR),
            }
        )
    return rows

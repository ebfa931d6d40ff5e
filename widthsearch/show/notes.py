"""Our tables and figures where optuna-dashboard shows them: notes of studies and trials, plotly objects."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState

from widthsearch.plans.words import amounts, slot_name
from widthsearch.report.summary import summary_of
from widthsearch.report.trials import trial_rows
from widthsearch.show.console import table
from widthsearch.show.markup import markdown_of
from widthsearch.show.pages import KINDS, figure_of, page_of
from widthsearch.show.plots import loss_figure, prune_ratio_figure, seeds_figure, widths_figure

_NOTE = "dashboard:{}:note_ver"  # optuna-dashboard's attribute that a trial with a note has


def annotate(study: optuna.Study, url: str) -> None:
    """Write the study's note, its figures, and the notes of finished trials that have none.

    Into attributes that belong to optuna-dashboard: no part of a search reads them.  It needs the extra
    ``dashboard``.
    """
    from optuna_dashboard import save_note, save_plotly_graph_object

    summary, rows = summary_of(study, url), trial_rows(study)
    save_note(study, markdown_of(page_of(summary).renderables))
    for name, figure in _figures(summary, rows).items():
        figure.update_layout(height=None)  # the dashboard has places of one height
        save_plotly_graph_object(study, figure, graph_object_id=name)
    known = study._storage.get_study_system_attrs(study._study_id)
    notes = {row["number"]: _note(row) for row in rows if row["state"] == "COMPLETE"}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.number in notes and _NOTE.format(trial._trial_id) not in known:
            # What save_note() asks of a trial; a real optuna.Trial would sample parameters when it is made.
            place = SimpleNamespace(storage=study._storage, study=study, _trial_id=trial._trial_id)
            save_note(place, notes[trial.number])


def _figures(summary: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures by the id under which the dashboard keeps them: written again, they replace the old ones."""
    if summary["kind"] != "search":
        return {KINDS[summary["kind"]].figure_id: figure_of(summary)}
    return {
        "widthsearch-prune-ratio": prune_ratio_figure(summary, rows),
        "widthsearch-widths": widths_figure(summary),
        "widthsearch-loss": loss_figure(summary, rows),
        "widthsearch-seeds": seeds_figure(summary, rows),
    }


def _note(row: Mapping[str, Any]) -> str:
    """What a trial was for, and its widths."""
    what = slot_name(row["kind"], row["round"], row["replica"], row["step"])
    headers = ("width variable", "width", *(["prune ratio"] if row["prune_ratio"] else []))
    widths = table(*headers, left=range(3))
    for v, width in row["widths"].items():
        widths.add_row(v, str(width), *([f"{row['prune_ratio'][v]:.3f}"] if row["prune_ratio"] else []))
    cost = amounts({r: row[r] for r in ("macs", "params")})
    return markdown_of([what, cost, widths])

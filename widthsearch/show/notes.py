"""Our tables and figures where optuna-dashboard shows them: notes of studies and trials, plotly objects."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState

from widthsearch.plans.words import amounts
from widthsearch.report.summary import summary_of
from widthsearch.report.trials import Trial, trials_of
from widthsearch.report.types.kinds import StudySummary
from widthsearch.show.console import table
from widthsearch.show.markup import markdown_of
from widthsearch.show.pages import KINDS, figure_of, page_of
from widthsearch.show.search_figures import search_figures

_NOTE = "dashboard:{}:note_ver"  # optuna-dashboard's attribute that a trial with a note has


def annotate(study: optuna.Study, url: str) -> None:
    """Write the study's note, its figures, and the notes of finished trials that have none.

    Into attributes that belong to optuna-dashboard: no part of a search reads them.  It needs the extra
    ``dashboard``.
    """
    from optuna_dashboard import save_note, save_plotly_graph_object

    summary, trials = summary_of(study, url), trials_of(study)
    name, sentence, *rest = page_of(summary).renderables
    save_note(study, f"# {markdown_of([sentence])}\n\n{markdown_of([name, *rest])}")
    for name, figure in _figures(summary, trials).items():
        figure.update_layout(height=None)  # the dashboard has places of one height
        save_plotly_graph_object(study, figure, graph_object_id=name)
    known = study._storage.get_study_system_attrs(study._study_id)
    notes = {trial.number: _note(trial) for trial in trials if trial.complete}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.number in notes and _NOTE.format(trial._trial_id) not in known:
            # What save_note() asks of a trial; a real optuna.Trial would sample parameters when it is made.
            place = SimpleNamespace(storage=study._storage, study=study, _trial_id=trial._trial_id)
            save_note(place, notes[trial.number])


def _figures(summary: StudySummary, trials: Sequence[Trial]) -> dict[str, Any]:
    """Figures by the id under which the dashboard keeps them: written again, they replace the old ones."""
    if summary["kind"] == "search":
        return {f"widthsearch-{name}": figure for name, figure in search_figures(summary, trials).items()}
    return {KINDS[summary["kind"]].figure_id: figure_of(summary)}


def _note(trial: Trial) -> str:
    """What a trial was for, and its widths."""
    what = str(trial)
    cost = amounts({"macs": trial.macs, "params": trial.params})
    ratios = trial.prune_ratio
    widths = table("width variable", "width", *(["prune ratio"] if ratios else []), left=range(3))
    for v, width in trial.widths.items():
        widths.add_row(v, str(width), *([f"{ratios[v]:.3f}"] if ratios else []))
    return markdown_of([what, cost, widths])

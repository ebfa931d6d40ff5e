"""The same in Python: launch a search, resume it, look at it in a notebook.

``load`` gives what ``widthsearch show --json`` prints, as attributes, with frames, figures and the network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from widthsearch.database import records
from widthsearch.database.connection import Database, url_from
from widthsearch.driver import launch as launching
from widthsearch.driver import resume as resuming
from widthsearch.driver.backend import session_of
from widthsearch.driver.names import check_new
from widthsearch.errors import UsageError
from widthsearch.report.summary import name_of, summary_of_name
from widthsearch.report.trials import trials_of
from widthsearch.report.types.kinds import Summary
from widthsearch.report.types.search import SearchSummary
from widthsearch.show import search_figures as figures
from widthsearch.show.drawing import drawn
from widthsearch.show.page import report_page, summary_html
from widthsearch.show.pages import figure_of, search_only
from widthsearch.study.budget import Budget
from widthsearch.study.data import load_data
from widthsearch.study.file import check_changes
from widthsearch.study.study import CALLBACKS, Study
from widthsearch.training.trial import build_space

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import nn

    from widthsearch.database.ledger import Callback
    from widthsearch.driver.run import Ended


class Drawing(str):
    """An SVG that a notebook shows."""

    def _repr_svg_(self) -> str:
        return str(self)


class Result:
    """What is known of a study or a family, as it was when it was loaded: :meth:`refresh` looks again.

    Its attributes are named as in ``widthsearch show --json``: ``result.status``,
    ``result.recommended["widths"]``, ``result.gain["ci95"]``, ``result.rounds``...
    """

    def __init__(self, name: str | None, database: Database) -> None:
        self._name, self._database = name, database
        self.refresh()

    def refresh(self) -> Result:
        """Look into the database again; returns itself."""
        self.summary: Summary = summary_of_name(self._name, self._database)
        self._name = name_of(self.summary)
        return self

    @property
    def optuna_study(self) -> optuna.Study:
        """The Optuna study; :class:`UsageError` for a family, which is several."""
        if self.summary["kind"] == "family":
            names_ = ", ".join(member["study"] for member in self.summary["members"])
            raise UsageError(f"{self._name!r} is a family; load one of its members: {names_}")
        return records.load(self._name, self._database)

    def __getattr__(self, name: str) -> Any:
        """A key of the summary."""
        if name != "summary" and name in self.summary:
            return dict(self.summary)[name]
        raise AttributeError(
            f"a result has no {name!r}; it has {', '.join(self.__dict__.get('summary', {}))}"
        )

    def __dir__(self) -> list[str]:
        """Also the summary's keys, so that a notebook completes them."""
        return sorted({*super().__dir__(), *self.summary})

    def __repr__(self) -> str:
        """Name, status, and the recommended widths of a search."""
        return f"<widthsearch.Result {self._name!r}: {self.summary['status']}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return summary_html(self.summary)

    @property
    def widths(self) -> dict[str, int]:
        """The recommended widths by width variable; :class:`UsageError` while there are none."""
        recommended = self.summary["recommended"] if self.summary["kind"] == "search" else None
        if recommended is None:
            raise UsageError(f"{self._name!r} recommends no widths (yet)")
        return dict(recommended["widths"])

    def to_frame(self) -> pd.DataFrame:
        """One row per training run; columns ``width_NAME`` and ``prune_ratio_NAME`` for every variable.

        ``network`` says in words what was trained; ``round`` counts from 1, the starts have none.
        """
        import pandas as pd

        return pd.DataFrame([trial.flat() for trial in trials_of(self.optuna_study)])

    def model(self, file: str | None = None) -> nn.Module:
        """The recommended network, freshly initialised from the study's seed.

        ``file``: where the study file is now, if it was moved.  Raises :class:`UsageError` if it is gone or
        has changed since launch.
        """
        study = resuming.load_again(self.optuna_study, file, force=False).study
        return build_space(study, load_data(study)).resize(self.widths)

    def to_html(self) -> str:
        """The page that ``widthsearch report`` writes."""
        return report_page(self.summary, self._database)

    def _search(self) -> SearchSummary:
        return search_only(self.summary, "only a search has this figure; the others have plot()")

    def plot_architecture(self) -> Drawing:
        """The network before, over-wide and after, to scale (an SVG that a notebook shows)."""
        return Drawing(drawn(self.optuna_study, self._search()))

    def plot(self) -> go.Figure:
        """The figure of a family (loss against cost) or a comparison; :class:`UsageError` for a search."""
        return figure_of(self.summary)

    def plot_prune_ratios(self) -> go.Figure:
        """Heat map: prune ratio by width variable and round."""
        return figures.prune_ratio_figure(self._search(), trials_of(self.optuna_study))

    def plot_widths(self) -> go.Figure:
        """Widths of every variable by round."""
        return figures.widths_figure(self._search())

    def plot_loss(self) -> go.Figure:
        """Loss against search cost."""
        return figures.loss_figure(self._search(), trials_of(self.optuna_study))

    def plot_seeds(self) -> go.Figure:
        """Losses of recommendation and uniform baseline on the same fresh seeds."""
        return figures.seeds_figure(self._search(), trials_of(self.optuna_study))


def load(name: str | None = None, storage: str | None = None) -> Result:
    """What is known of a study or a family, while it runs or after.

    ``name``: default the latest; ``storage``: as ``--storage``.  Raises :class:`UsageError` for a database
    or name that is none.
    """
    return Result(name, Database.open(url_from(storage)))


def launch(
    study: Study | str | Path,
    *,
    name: str | None = None,
    storage: str | None = None,
    budget: Budget | str | None = None,
    budgets: Sequence[str] | None = None,
    workers: int | None = None,
    address: str | None = None,
    checkpoints: str | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Result:
    """Start a study and run it to recommended widths: ``widthsearch launch`` with the same options.

    ``study``: a study file, ``my_study.py`` or ``my_study.py:name``, or a ``Study`` that stands in a file
    (workers, and whoever resumes, load it from there).  ``budgets``, such as ``["1/16", "1/8"]``, starts a
    family, one study for each.  ``callbacks`` are called beside those of ``Study(callbacks=...)``.
    ``settings`` of the study and its recipe (``rounds=2``, ``seeds=8``, ``epochs=3``...) take the place of
    its own.  Ctrl-C stops it, :func:`resume` goes on.

    Raises :class:`UsageError` as the command does, also where the search fails.
    """
    changes = {name_: value for name_, value in settings.items() if value is not None}
    check_changes(changes)
    if budget is not None:
        changes["budget"] = Budget.parse(budget) if isinstance(budget, str) else budget
    reference, url = _reference(study), url_from(storage)
    check_new(reference, url, name, shares=budgets)
    with session_of(url, workers, address, checkpoints, callbacks=_checked(callbacks)) as session:
        ended = launching.launch(reference, session, name=name, changes=changes, budgets=budgets)
    return _result(ended, url)


def resume(
    name: str | None = None,
    *,
    storage: str | None = None,
    study: str | None = None,
    force: bool = False,
    rounds: int | None = None,
    workers: int | None = None,
    address: str | None = None,
    checkpoints: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Go on with a study or family, or make more rounds: ``widthsearch resume`` with the same options."""
    url = url_from(storage)
    with session_of(url, workers, address, checkpoints, callbacks=_checked(callbacks)) as session:
        ended = resuming.resume(name, session, file=study, force=force, rounds=rounds)
    return _result(ended, url)


def _checked(callbacks: Sequence[Callback]) -> Sequence[Callback]:
    if not CALLBACKS.holds(callbacks):
        raise UsageError(f"callbacks={callbacks!r:.60}: {CALLBACKS.must}")
    return callbacks


def _result(ended: Ended, url: str) -> Result:
    if ended.status == "failed":
        raise UsageError(f"study {ended.name!r} cannot go on: {ended.because}")
    return load(ended.name, url)


def _reference(study: Study | str | Path) -> str:
    """Where a study stands: ``file.py:name``."""
    if not isinstance(study, Study):
        return str(study)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        for name, value in vars(module).items() if file else ():
            if value is study:
                return f"{file}:{name}"
    raise UsageError(
        "this Study stands in no file, so workers and resume cannot load it: write it into one "
        "(in a notebook: %%writefile my_study.py) and launch('my_study.py')"
    )

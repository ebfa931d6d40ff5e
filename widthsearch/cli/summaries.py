"""A study's summary, or a family's, printed as a page or as JSON."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from widthsearch.cli.console import out

if TYPE_CHECKING:
    import optuna


def check_plot(file: str | None) -> None:
    """Refuse a figure that cannot be drawn before anything is trained for it."""
    if file is not None:
        from widthsearch.views.compare_plots import check

        check(file)


def open_study(name: str | None, storage: str | None) -> tuple[optuna.Study, str]:
    """An existing study, and the URL of its storage; without a name, the latest."""
    from widthsearch.database import open_storage, url_from
    from widthsearch.storage import load

    url = url_from(storage)
    return load(name, open_storage(url, create=False), url), url


def print_named(
    name: str | None, url: str, as_json: bool = False, plot: str | None = None, *, patient: bool = False
) -> None:
    """Print what is known of a study or a family; without a name, of the latest."""
    from widthsearch.database import open_storage
    from widthsearch.storage import family_of, load
    from widthsearch.views.summary import summary_of_family

    storage = open_storage(url, create=False, patient=patient)
    family = family_of(name, storage)
    if family is None:
        print_summary(load(name, storage, url), url, as_json, plot)
    else:
        _print(summary_of_family(family, storage, url), url, as_json, plot)


def print_summary(study: optuna.Study, url: str, as_json: bool = False, plot: str | None = None) -> None:
    """Print what is known of a study; draw it, too, where a file for the figure is given."""
    from widthsearch.views.summary import summary_of

    _print(summary_of(study, url), url, as_json, plot)


def _print(summary: dict[str, Any], url: str, as_json: bool, plot: str | None) -> None:
    from widthsearch.views.compare_plots import write_comparison
    from widthsearch.views.family_plots import write_family
    from widthsearch.views.summary import finite
    from widthsearch.views.tables import show_comparison, show_family, show_summary

    family = "members" in summary
    if plot is not None:
        (write_family if family else write_comparison)(summary, plot)
    if as_json:
        print(json.dumps(finite(summary), indent=2, allow_nan=False))
        return
    (show_family if family else show_comparison if "comparison" in summary else show_summary)(out, summary)
    if summary["status"] == "interrupted":
        line = f"go on with: {command('resume', summary['family' if family else 'study'], url)}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def command(verb: str, name: str, url: str) -> str:
    """The command line that does ``verb`` to a study; names the storage unless it is found without."""
    from widthsearch.database import hide_password, url_from

    where = "" if url == url_from(None) else f" --storage {shlex.quote(hide_password(url))}"
    return f"widthsearch {verb} {shlex.quote(name)}{where}"

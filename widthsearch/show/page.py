"""A study as one HTML page that needs nothing else: no file, no server, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import optuna

from widthsearch.database.connection import Database
from widthsearch.database.records import load
from widthsearch.plans.words import counted
from widthsearch.report.repeat import Repeat, repeat_of
from widthsearch.report.summary import name_of
from widthsearch.report.trials import Trial, trials_of
from widthsearch.report.types.kinds import FamilySummary, Summary
from widthsearch.report.types.search import SearchSummary
from widthsearch.show.browser import BAR_STYLE, POLICY, SCRIPT, STYLE, packed_plotly
from widthsearch.show.drawing import drawn
from widthsearch.show.formats import opening, reason, title
from widthsearch.show.markup import html_of
from widthsearch.show.pages import figure_of, page_of
from widthsearch.show.search_figures import search_figures
from widthsearch.show.search_page import closing, evidence, network_table, round_table, width_table
from widthsearch.show.tables import trial_table


def summary_html(summary: Summary) -> str:
    """The page of ``show`` as a piece of HTML, for notebooks."""
    return f"<style>{BAR_STYLE}</style>{html_of(page_of(summary).renderables)}"


def report_page(summary: Summary, database: Database) -> str:
    """The whole page of a study or a family with this summary, from the database alone.  It needs plotly."""
    if summary["kind"] == "family":
        repeat = repeat_of(load(summary["members"][0]["study"], database), summary["family"])
        return _page(summary, _family(summary) + _section("To repeat it", _repeat(repeat)))
    study = load(summary["study"], database)
    trials = trials_of(study)
    content = _search(study, summary, trials) if summary["kind"] == "search" else _other(summary)
    listed = html_of([trial_table(trials, summary["metric"])])
    content += (
        f"<section><details><summary>{counted(len(trials), 'trial')}</summary>{listed}</details></section>"
    )
    return _page(summary, content + _section("To repeat it", _repeat(repeat_of(study))))


def figure_page(summary: Summary) -> str:
    """What ``--plot`` writes: what was found, and the figure.  It needs plotly, and no database."""
    return _page(summary, _family(summary) if summary["kind"] == "family" else _other(summary))


def _search(study: optuna.Study, summary: SearchSummary, trials: Sequence[Trial]) -> str:
    figures, best = search_figures(summary, trials), title(summary)
    wide, slim = drawn(study, summary), drawn(study, summary, slim=True)
    scored = summary["baseline"]["val_loss"] is not None
    sections = [_top(summary, [*evidence(summary), network_table(summary)])]
    if scored:
        sections.append(
            _figure("Seed by seed", "Both networks, trained on the same seeds.", figures["seeds"])
        )
    drawing = f'<div class="drawing">{wide}</div><div class="drawing slim">{slim}</div>'
    sections += [
        _section("Widths", html_of([width_table(summary)])),
        _section("Before and after", drawing),
        _figure("How the widths moved", f"From the seed network to the {best} one.", figures["widths"]),
    ]
    if len(summary["rounds"]) > 1:
        says = "Light layers were hard to prune, dark ones easy; ± standard error over replicas."
        sections.append(_figure("Prune ratios", says, figures["prune-ratio"]))
    if scored:
        says = "Every network that was scored, by what the search had cost by then."
        sections.append(_figure("Loss against cost", says, figures["loss"]))
        sections.append(_section("Rounds", html_of([round_table(summary), *closing(summary)])))
    return "".join(sections)


def _family(summary: FamilySummary) -> str:
    says = "What each budget buys, with uniform widths and with those that were found."
    sections = [
        _top(summary, page_of(summary).renderables[len(opening(summary)) :]),
        _figure("Loss against cost", says, figure_of(summary)),
        *(_section(m["study"], html_of([*opening(m)[1:], width_table(m)])) for m in summary["members"]),
    ]
    return "".join(sections)


def _other(summary: Summary) -> str:
    rest = page_of(summary).renderables[len(opening(summary)) :]
    figure = figure_of(summary)
    heading = str(figure.layout.title.text).removeprefix(f"{escape(name_of(summary))}: ")
    return _top(summary, rest) + _figure(heading[:1].upper() + heading[1:], "", figure)


def _top(summary: Summary, rest: Sequence[Any]) -> str:
    """The verdict, large, and what it rests on."""
    head, verdict, *progress = opening(summary)
    studies = summary["members"] if summary["kind"] == "family" else [summary]
    changed = max(of["last_change"] or "" for of in studies).replace("T", " ")
    status = f"{summary['status']}{reason(summary)}; as of {changed or 'its launch'}"
    kind = summary["decision"]["answer"].split()[0]
    return (
        f'<section class="top {kind}"><h1>{escape(name_of(summary))}</h1>'
        f'<p class="note">{escape(status)}</p><p class="verdict">{escape(verdict.plain)}.</p>'
        f"{html_of([*progress, *rest])}</section>"
    )


def _page(summary: Summary, content: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(name_of(summary))}: layer widths</title><style>{STYLE}</style></head>
<body><main>{content}</main>
<script type="text/plain" id="plotly">{packed_plotly()}</script>
<script>{SCRIPT}</script></body></html>
"""


def _section(heading: str, content: str) -> str:
    title = f"<h2>{escape(heading)}</h2>" if heading else ""
    return f"<section>{title}{content}</section>\n"


def _figure(heading: str, says: str, figure: Any) -> str:
    plain = figure.to_json().replace("<", "\\u003c")  # nothing in it may end the script
    note = f'<p class="note">{escape(says)}</p>' if says else ""
    place = f'<div class="figure"></div><script type="application/json">{plain}</script>'
    return _section(heading, note + place)


def _repeat(repeat: Repeat) -> str:
    parts = [f"<pre>{escape(repeat.command)}</pre>"]
    parts += [f'<p class="note">{escape(remark)}</p>' for remark in repeat.unsaid]
    if repeat.versions:
        parts.append(f"<p>{escape(', '.join(f'{k} {v}' for k, v in repeat.versions.items()))}</p>")
    if repeat.settings:
        settings = "\n".join(f"{k} = {v}" for k, v in repeat.settings.items())
        parts.append(f"<details><summary>settings</summary><pre>{escape(settings)}</pre></details>")
    if repeat.code:
        code = f"<pre>{escape(repeat.code)}</pre>"
        parts.append(f"<details><summary>the study file as it was at launch</summary>{code}</details>")
    else:
        parts.append('<p class="note">the study file\'s text was not kept in the database</p>')
    return "".join(parts)

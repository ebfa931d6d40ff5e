"""A study as one HTML page that needs nothing else: no file, no server, no network.

plotly.js is 5 MB; the page carries it compressed and unpacks it when it is opened.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from html import escape
from typing import Any

import optuna

from widthsearch.database.connection import Database
from widthsearch.database.records import load, modules_of
from widthsearch.report.repeat import Repeat, repeat_of
from widthsearch.report.summary import name_of
from widthsearch.report.trials import Trial, trials_of
from widthsearch.report.types import FamilySummary, SearchSummary, Summary
from widthsearch.show.drawing import draw_architecture
from widthsearch.show.formats import reason
from widthsearch.show.markup import html_of
from widthsearch.show.pages import figure_of, page_of
from widthsearch.show.search_figures import search_figures
from widthsearch.show.search_page import (
    closing,
    network_table,
    opening,
    round_table,
    width_table,
)
from widthsearch.show.tables import trial_table

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #1d2530; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 64px; }
section { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; margin: 16px 0;
  padding: 14px 22px 18px; }
h1 { font-size: 24px; margin: 8px 0 0; } h2 { font-size: 17px; margin: 4px 0 10px; }
p { margin: 5px 0; } .note { color: #5b6675; font-size: 13.5px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { padding: 3px 12px 3px 0; text-align: left; white-space: nowrap; }
th { border-bottom: 1px solid #c9d0d8; font-weight: 600; } td { border-bottom: 1px solid #eff1f4; }
th.right, td.right { text-align: right; } .bold { font-weight: 700; } .cyan { color: #0072b2; }
.magenta { color: #cc79a7; } .green { color: #00795a; } .yellow { color: #a86400; } .red { color: #b3261e; }
pre { background: #f2f4f7; border-radius: 6px; padding: 10px 14px; overflow-x: auto; font-size: 13px; }
svg { max-width: 100%; height: auto; } summary { cursor: pointer; font-weight: 600; }
"""

_SCRIPT = """
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
  for (const place of document.querySelectorAll(".figure")) {
    const figure = JSON.parse(place.nextElementSibling.textContent);
    await Plotly.newPlot(place, figure.data, figure.layout, {displaylogo: false, responsive: true});
  }
  document.body.dataset.drawn = "yes";
  document.body.dataset.milliseconds = Math.round(performance.now());
})();
"""

# Nothing may be loaded from anywhere, whatever a name in the database says.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def summary_html(summary: Summary) -> str:
    """The page of ``show`` as a piece of HTML, for notebooks."""
    page = html_of(page_of(summary).renderables)
    return f"<style>.wide td.right, .wide th.right {{ text-align: right; }}</style>{page}"


def report_page(summary: Summary, database: Database) -> str:
    """The whole page of a study or a family with this summary, from the database alone.  It needs plotly."""
    if summary["kind"] == "family":
        repeat = repeat_of(load(summary["members"][0]["study"], database), summary["family"])
        return _page(summary, _family(summary) + _section("To repeat it", _repeat(repeat)))
    study = load(summary["study"], database)
    trials = trials_of(study)
    content = _search(study, summary, trials) if summary["kind"] == "search" else _other(summary)
    listed = html_of([trial_table(trials, summary["metric"])])
    content += f"<section><details><summary>{len(trials)} trials</summary>{listed}</details></section>"
    repeat = repeat_of(study)
    return _page(summary, content + _section("To repeat it", _repeat(repeat)))


def _search(study: optuna.Study, summary: SearchSummary, trials: Sequence[Trial]) -> str:
    figures = search_figures(summary, trials)
    sections = [
        _section("", html_of([*opening(summary)[1:], *closing(summary)])),
        _section("Before and after", draw_architecture(summary, modules_of(study))),
        _section("Width variables", html_of([width_table(summary)])),
        _section("Networks", html_of([network_table(summary)])),
        _figure("Light layers were hard to prune, dark ones easy.", figures["prune-ratio"]),
        _figure("How the widths moved, from uniform to recommended ones.", figures["widths"]),
        _figure("Networks that were scored, by what the search had cost.", figures["loss"]),
        _figure("The same fresh seeds for both networks, a line each.", figures["seeds"]),
    ]
    if summary["rounds"]:
        sections.append(_section("Rounds", html_of([round_table(summary)])))
    return "".join(sections)


def _family(summary: FamilySummary) -> str:
    sections = [
        _section("", html_of(page_of(summary).renderables[1:])),
        _figure("What each budget buys; uniform widths beside it.", figure_of(summary)),
        *(_section(m["study"], html_of([width_table(m)])) for m in summary["members"]),
    ]
    return "".join(sections)


def _other(summary: Summary) -> str:
    says = "What was found, and what it had cost by then."
    return _section("", html_of(page_of(summary).renderables[1:])) + _figure(says, figure_of(summary))


def _page(summary: Summary, content: str) -> str:
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    studies = summary["members"] if summary["kind"] == "family" else [summary]
    changed = escape(max(of["last_change"] or "" for of in studies).replace("T", " "))
    name = escape(name_of(summary))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{name}: layer widths</title><style>{_STYLE}</style></head>
<body><main><h1>{name}</h1><p>{escape(summary["status"] + reason(summary))}</p>
<p class="note">as of {changed}</p>
{content}
</main><script type="text/plain" id="plotly">{packed}</script>
<script>{_SCRIPT}</script></body></html>
"""


def _section(heading: str, content: str) -> str:
    title = f"<h2>{escape(heading)}</h2>" if heading else ""
    return f"<section>{title}{content}</section>\n"


def _figure(says: str, figure: Any) -> str:
    plain = figure.to_json().replace("<", "\\u003c")  # nothing in it may end the script
    place = f'<div class="figure"></div><script type="application/json">{plain}</script>'
    return _section("", f'<p class="note">{escape(says)}</p>{place}')


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

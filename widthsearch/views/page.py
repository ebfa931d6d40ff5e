"""A study as one HTML page that needs nothing else: no file, no server, no network.

plotly.js is 5 MB; the page carries it compressed and unpacks it when it is opened.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from html import escape
from typing import Any

import optuna

from widthsearch.storage import modules_of
from widthsearch.views.compare_page import comparison_page
from widthsearch.views.compare_plots import comparison_figure
from widthsearch.views.drawing import draw_architecture
from widthsearch.views.formats import reason
from widthsearch.views.markup import html_of
from widthsearch.views.plots import loss_figure, prune_ratio_figure, seeds_figure, widths_figure
from widthsearch.views.repeat import Repeat, repeat_of
from widthsearch.views.search_page import (
    closing,
    network_table,
    opening,
    round_table,
    search_page,
    width_table,
)
from widthsearch.views.summary import summary_of
from widthsearch.views.tables import trial_table
from widthsearch.views.trials import trial_rows

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
})();
"""

# Nothing may be loaded from anywhere, whatever a name in the database says.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def summary_html(summary: Mapping[str, Any]) -> str:
    """The page of ``show`` as a piece of HTML, for notebooks."""
    page = comparison_page(summary) if "comparison" in summary else search_page(summary)
    return (
        f"<style>.wide td.right, .wide th.right {{ text-align: right; }}</style>{html_of(page.renderables)}"
    )


def report_page(study: optuna.Study, url: str) -> str:
    """The whole page, from the database (and the study file, if it lies where it did).  It needs plotly."""
    summary, rows = summary_of(study, url), trial_rows(study)
    figures: list[tuple[str, Any]]
    if "comparison" in summary:
        sections = [_section("", html_of(comparison_page(summary).renderables[1:]))]
        figures = [
            ("What the arms found, and what their searches had cost by then.", comparison_figure(summary))
        ]
    else:
        sections = [
            _section("", html_of([*opening(summary)[1:], *closing(summary)])),
            _section("Before and after", draw_architecture(summary, modules_of(study))),
            _section("Width variables", html_of([width_table(summary)])),
            _section("Networks", html_of([network_table(summary)])),
        ]
        figures = [
            (
                "Light layers were hard to prune and grow, dark ones shrink.",
                prune_ratio_figure(summary, rows),
            ),
            ("How the widths moved, from the uniform ones to what is recommended.", widths_figure(summary)),
            (
                "Every network that was scored, by what the search had cost by then.",
                loss_figure(summary, rows),
            ),
            ("The same fresh seeds for both networks: each line is one seed.", seeds_figure(summary, rows)),
        ]
    sections += [_section("", f'<p class="note">{escape(says)}</p>{_figure(f)}') for says, f in figures]
    if summary.get("rounds"):
        sections.append(_section("Rounds", html_of([round_table(summary["rounds"])])))
    trials = html_of([trial_table(rows, summary["metric"])])
    sections.append(f"<section><details><summary>{len(rows)} trials</summary>{trials}</details></section>")
    sections.append(_section("To repeat it", _repeat(repeat_of(study))))
    return _page(summary, "".join(sections))


def _page(summary: Mapping[str, Any], content: str) -> str:
    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    name = escape(summary["study"])
    changed = escape((summary["last_change"] or "").replace("T", " "))
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


def _figure(figure: Any) -> str:
    plain = figure.to_json().replace("<", "\\u003c")  # nothing in it may end the script
    return f'<div class="figure"></div><script type="application/json">{plain}</script>'


def _repeat(repeat: Repeat) -> str:
    parts = [f"<pre>{escape(repeat.command)}</pre>"]
    if repeat.versions:
        parts.append(f"<p>{escape(', '.join(f'{k} {v}' for k, v in repeat.versions.items()))}</p>")
    if repeat.settings:
        settings = "\n".join(f"{k} = {v}" for k, v in repeat.settings.items())
        parts.append(f"<details><summary>settings</summary><pre>{escape(settings)}</pre></details>")
    if repeat.code is not None:
        code = f"<pre>{escape(repeat.code)}</pre>"
        parts.append(f"<details><summary>the study file ({escape(repeat.remark)})</summary>{code}</details>")
    return "".join(parts)

"""What a browser gets with every page: its style, for light and dark and for phones, and its script."""

from __future__ import annotations

import base64
import gzip

#: Nothing may be loaded from anywhere, whatever a name in the database says.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

BAR_STYLE = """
.bar { display: inline-block; width: 84px; height: 9px; border-radius: 2px; background: #80808026; }
.bar i { display: block; height: 100%; border-radius: 2px; background: #2a7fc1; }
.bar.magenta i { background: #b8659a; }
td.right, th.right { text-align: right; }
"""

STYLE = f"""
:root {{ color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #1d2530; --soft: #5b6675;
  --line: #e2e6eb; --code: #f2f4f7; --blue: #0067a3; --green: #00734f; --amber: #8a5300; --red: #b3261e; }}
@media (prefers-color-scheme: dark) {{ :root {{ --page: #0f1318; --card: #181d24; --ink: #e4e8ee;
  --soft: #9aa5b3; --line: #2d3540; --code: #11161c; --blue: #6bb5ea; --green: #45c796; --amber: #e0a24a;
  --red: #f28b82; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 20px 20px 64px; }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 14px 0;
  padding: 14px 22px 18px; }}
h1 {{ font-size: 15px; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 17px; margin: 2px 0 6px; }}
p {{ margin: 5px 0; overflow-wrap: anywhere; }} .note {{ color: var(--soft); font-size: 13.5px; }}
.verdict {{ font-size: 25px; line-height: 1.3; font-weight: 650; margin: 10px 0 12px; text-wrap: balance; }}
.top {{ border-left: 6px solid var(--soft); }} .top.better {{ border-left-color: var(--green); }}
.top.none {{ border-left-color: var(--blue); }} .top.not {{ border-left-color: var(--amber); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }}
th, td {{ padding: 3px 12px 3px 0; text-align: left; white-space: nowrap; }}
th {{ border-bottom: 1px solid var(--soft); font-weight: 600; }}
td {{ border-bottom: 1px solid var(--line); }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: var(--card); }}
td.name {{ white-space: normal; overflow-wrap: anywhere; min-width: 9em; }}
.bold {{ font-weight: 700; }} .cyan {{ color: var(--blue); }} .dim {{ color: var(--soft); }}
.green {{ color: var(--green); }} .yellow {{ color: var(--amber); }} .red {{ color: var(--red); }}
pre {{ background: var(--code); border-radius: 6px; padding: 10px 14px; overflow-x: auto; font-size: 13px; }}
summary {{ cursor: pointer; font-weight: 600; }}
.drawing svg {{ max-width: 100%; height: auto; }} .drawing.slim {{ display: none; }}
.figure {{ min-height: 240px; }}
{BAR_STYLE}
@media (max-width: 640px) {{ main {{ padding: 8px 8px 40px; }} section {{ padding: 12px 12px 14px; }}
  .verdict {{ font-size: 20px; }} table {{ font-size: 13px; }} th, td {{ padding-right: 7px; }}
  th {{ white-space: normal; vertical-align: bottom; }} .se {{ display: block; color: var(--soft); }}
  .between {{ white-space: normal; }}
  .spare {{ display: none; }} .drawing {{ display: none; }} .drawing.slim {{ display: block; }} }}
@media (prefers-color-scheme: dark) {{
  .drawing [fill="white"] {{ fill: none; }} .drawing [fill="#222222"] {{ fill: #e4e8ee; }}
  .drawing [stroke="white"] {{ stroke: #181d24; }} .drawing [stroke="#222222"] {{ stroke: #0f1318; }}
  .drawing [fill="#767676"] {{ fill: #9aa5b3; }} .drawing [stroke="#767676"] {{ stroke: #9aa5b3; }}
  .drawing [fill="#E3E3E3"] {{ fill: #2d3540; }} .drawing [fill="#0072B2"] {{ fill: #6bb5ea; }}
  .drawing [stroke="#0072B2"] {{ stroke: #6bb5ea; }} }}
"""

#: Draws every figure, again whenever the page turns dark or narrow: then panels stand below one another.
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)"), slim = matchMedia("(max-width: 640px)");
const cut = (text, n) => text.length <= 2 * n ? text : text.slice(0, n) + "…" + text.slice(-n);
function dressed(layout) {
  const style = getComputedStyle(document.documentElement), of = name => style.getPropertyValue(name).trim();
  const l = structuredClone(layout), clear = "rgba(0,0,0,0)";
  delete l.title;
  Object.assign(l, {paper_bgcolor: clear, plot_bgcolor: clear, font: {...l.font, color: of("--ink")}});
  l.margin = {t: l.annotations?.some(a => a.yref == "paper") ? 60 : 24, r: 24, b: 48, l: 64, ...l.margin};
  const axes = Object.keys(l).filter(key => /^[xy]axis/.test(key));
  const lines = {gridcolor: of("--line"), zerolinecolor: of("--soft"), linecolor: of("--soft")};
  for (const axis of [...axes.map(key => l[key]), l.template.layout.xaxis, l.template.layout.yaxis])
    Object.assign(axis, lines);
  l.modebar = {bgcolor: clear, color: of("--soft"), activecolor: of("--ink")};
  if (!slim.matches) return l;
  l.font.size = 11;
  l.margin = {...l.margin, l: 52, r: Math.min(l.margin.r, 84)};
  for (const key of axes) if (l[key].ticktext) l[key].ticktext = l[key].ticktext.map(text => cut(text, 7));
  const across = axes.filter(key => key[0] == "x"), n = across.length;
  if (n > 1) {
    const heads = (l.annotations || []).filter(a => a.xref == "paper" && a.yref == "paper").slice(0, n);
    l.height = 80 + 270 * n;
    across.forEach((key, i) => {
      const up = key.replace("x", "y"), top = 1 - i / n, gap = 0.3 / n;
      Object.assign(l[key], {domain: [0, 1], showticklabels: true});
      Object.assign(l[up], {domain: [top - 1 / n + gap, top - 0.06 / n], showticklabels: true});
      l[up].title = l[up].title || l.yaxis.title;
      if (heads[i]) Object.assign(heads[i], {x: 0.5, y: top - 0.05 / n});
    });
  }
  if (l.legend) l.legend.y = n > 1 ? -0.01 : -75 / l.height;
  return l;
}
const BRIGHT = {"#0072B2": "#4F9BFF", "#009E73": "#2FC398", "#D55E00": "#F28A44", "#7A5CC4": "#A890E8",
  "#4AA3DF": "#A3DCF0"};
const options = {displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"]};
async function draw() {
  for (const place of document.querySelectorAll(".figure")) {
    const text = place.nextElementSibling.textContent, lit = /#0072B2|#009E73|#D55E00|#7A5CC4|#4AA3DF/g;
    const figure = JSON.parse(dark.matches ? text.replace(lit, colour => BRIGHT[colour]) : text);
    const layout = dressed(figure.layout);
    place.style.minHeight = layout.height + "px";
    const bar = slim.matches ? false : "hover";
    await Plotly.react(place, figure.data, layout, {...options, displayModeBar: bar});
  }
}
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), c => c.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
  await draw();
  dark.addEventListener("change", draw);
  slim.addEventListener("change", draw);
  document.body.dataset.drawn = "yes";
  document.body.dataset.milliseconds = Math.round(performance.now());
})();
"""


def packed_plotly() -> str:
    """plotly.js as the script above unpacks it: 5 MB become 1.5."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()

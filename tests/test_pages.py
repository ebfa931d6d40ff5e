"""The pages for a browser, in a real Chromium: the report, and optuna-dashboard with our tables and figures."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import MODEL, URL, Finished, command, interrupt, start, write_study
from optuna_dashboard import get_note
from played import play

from widthsearch.database.connection import Database
from widthsearch.database.records import PLAN, load
from widthsearch.report.summary import summary_of, summary_of_name
from widthsearch.show.dashboard import look, only_from_here
from widthsearch.show.markup import html_of, markdown_of
from widthsearch.show.notes import annotate
from widthsearch.show.page import report_page
from widthsearch.show.search_page import search_page

pytestmark = pytest.mark.usefixtures("working_folder")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


# The browser's clock, dictionary and lists, which it fetches whatever page is open.
BROWSERS_OWN = re.compile(r"https?://[\w.-]+\.(google|gvt1|googleapis)\.com/")


def opened(url: str, folder: Path) -> tuple[str, list[str], list[str]]:
    """What a browser makes of a page: its DOM, what it says on its console, and whom it asks."""
    log = folder / "net.json"
    result = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--virtual-time-budget=20000",  # ms: less than a served page waits until it loads itself again
            "--enable-logging=stderr",
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={log}",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    asked = re.findall(r'"url":"(https?://[^"]+)"', log.read_text())
    return result.stdout, console, [url for url in asked if not BROWSERS_OWN.match(url)]


@needs_chromium
@pytest.mark.slow
def test_the_report_opens_and_draws_without_asking_anybody(finished: Finished, tmp_path: Path) -> None:
    assert command("report", "--storage", finished.url, "-o", "report.html").code == 0
    page = tmp_path / "report.html"
    assert page.stat().st_size < 5e6
    dom, console, asked = opened(page.as_uri(), tmp_path)
    assert not console
    assert not asked
    assert 'data-drawn="yes"' in dom
    assert dom.count('class="main-svg"') >= 4  # one or more for each of the figures
    assert "Before and after" in dom and 'class="verdict">' in dom


def test_a_large_study_is_a_small_page(tmp_path: Path) -> None:
    large_report(tmp_path)


@needs_chromium
@pytest.mark.nightly
def test_a_large_study_opens_as_a_small_one_does(tmp_path: Path) -> None:
    """Nothing complains, and what the browser has to draw stays few elements."""
    dom, console, asked = opened(large_report(tmp_path).as_uri(), tmp_path)
    assert not console and not asked
    assert 'data-drawn="yes"' in dom and dom.count("<path") < 20_000


def large_report(tmp_path: Path) -> Path:
    """50 width variables, 300 trials: under 5 MB, of which the figures are less than 1 (test_plots.py)."""
    layers = ", ".join(f"nn.Linear({8 if k == 0 else 12}, 12), nn.ReLU()" for k in range(50))
    deep = f"return nn.Sequential({layers}, nn.Linear(12, 3))"
    file = write_study(tmp_path, (MODEL, deep), name="deep")
    study = play(file, URL, 300, rounds=10, replicas=8, seeds=8, report_seeds=40, tolerance=0.0, patience=20)
    page = tmp_path / "deep.html"
    page.write_text(report_page(summary_of(study, URL), Database(study._storage, URL)))
    assert page.stat().st_size < 5e6
    return page


@needs_chromium
@pytest.mark.slow
def test_the_browser_does_notice_a_page_that_asks_and_complains(tmp_path: Path) -> None:
    """The test above can fail."""
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script>')
    _, console, asked = opened(page.as_uri(), tmp_path)
    assert any("no" in line for line in console)
    assert "http://127.0.0.1:9/x.png" in asked


def test_the_report_has_what_repeats_the_study(finished: Finished) -> None:
    database = Database.open(finished.url)
    page = report_page(summary_of_name("tiny", database), database)
    for text in ("fc1", "step_sizes", "class Net(nn.Module)", "torch 2."):
        assert text in page


def test_a_hostile_name_stays_text(tiny: Path) -> None:
    interrupt(tiny, 5, name="</script><script>alert(1)</script>")
    assert command("report", "-o", "page.html").code == 0
    assert "<script>alert" not in Path("page.html").read_text()


def test_a_report_while_nothing_is_measured(tiny: Path) -> None:
    interrupt(tiny, 0)
    assert command("report").code == 0
    assert "nothing measured yet" in Path("tiny.html").read_text()


@pytest.mark.parametrize(
    ("output", "says"),
    [("page.pdf", "give the name of an .html file"), ("nowhere/page.html", "cannot be written")],
)
def test_where_a_report_cannot_be_written(finished: Finished, output: str, says: str) -> None:
    result = command("report", "--storage", finished.url, "-o", output)
    assert result.code == 2
    assert says in result.err and output in result.err


def test_html_and_markdown_hold_every_cell_of_the_page(finished: Finished) -> None:
    summary = summary_of(load("tiny", Database.open(finished.url)), finished.url)
    parts = search_page(summary).renderables
    html, markdown = html_of(parts), markdown_of(parts)
    for width in summary["baseline"]["widths"].values():
        assert f">{width}<" in html and f"| {width} |" in markdown
    loss = f"{summary['baseline']['val_loss']['mean']:.4f}"
    assert loss in html and loss in markdown
    assert html.count("<table>") == 3
    assert "█" not in html + markdown  # bars are boxes of the page's style, and Markdown has none


def test_notes_are_written_once_and_follow_the_study(tiny: Path) -> None:
    interrupt(tiny, 3)
    url = "sqlite:///widthsearch.db"
    study = load("tiny", Database.open(url))
    annotate(study, url)
    first = get_note(study)
    assert first.startswith("# Not decided yet: interrupted after 3 of at most 11 trainings")
    attributes = study._storage.get_study_system_attrs(study._study_id)
    notes = [k for k in attributes if k.endswith(":note_ver") and k != "dashboard:note_ver"]
    assert len(notes) == 3
    annotate(study, url)
    again = study._storage.get_study_system_attrs(study._study_id)
    assert all(again[k] == 1 for k in notes)  # not written again
    assert command("resume").code == 0
    annotate(study, url)
    assert summary_of(study, url)["decision"]["sentence"] in get_note(study)
    # What the dashboard keeps is no part of the search.
    assert command("show").code == 0


def test_a_study_that_cannot_be_read_is_told_of_once(tiny: Path) -> None:
    assert command("launch", tiny).code == 0
    url = "sqlite:///widthsearch.db"
    database = Database.open(url)
    study = load("tiny", database)
    plan = study.user_attrs[PLAN]
    study.set_user_attr(PLAN, plan | {"format": 99})
    said: list[str] = []
    seen: dict[str, object] = {}
    for _ in range(3):
        look(database, said.append, seen)
    assert len(said) == 1 and "tiny" in said[0] and "another version" in said[0]
    study.set_user_attr(PLAN, plan)
    look(database, said.append, seen)
    assert len(said) == 1 and "uniform widths" in get_note(study)


@pytest.mark.parametrize(
    ("asked", "kind", "figure"),
    [
        (("compare", "--arms", "uniform,constant"), "comparison", "comparison"),
        (("probe", "--inflate", "fc1=2"), "probe", "starts"),
        (("pruners", "--pruners", "l0,obd", "--levels", "1/2", "--seeds", "1"), "pruners", "pruners"),
    ],
    ids=["compare", "probe", "pruners"],
)
def test_what_is_no_single_search_has_its_kind_note_and_figure_too(
    tiny: Path, asked: tuple[str, ...], kind: str, figure: str
) -> None:
    name, *options = asked
    assert command(name, tiny, *options, "--workers", "0").code == 0
    url = "sqlite:///widthsearch.db"
    study = load(None, Database.open(url))
    assert summary_of(study, url)["kind"] == kind
    annotate(study, url)
    assert f"tiny-{name}" in get_note(study)
    attributes = study._storage.get_study_system_attrs(study._study_id)
    assert any(f"widthsearch-{figure}" in str(key) + str(value)[:200] for key, value in attributes.items())


class Served:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def served(finished: Finished) -> Iterator[Served]:
    process = start("dashboard", "--storage", finished.url, "--port", "0")
    assert process.stdout is not None
    line = process.stdout.readline()
    port = int(re.search(r"127\.0\.0\.1:(\d+)", line)[1])  # type: ignore[index]
    yield Served(port)
    process.kill()


@pytest.mark.slow
def test_the_dashboard_shows_our_note_and_figures(served: Served, tmp_path: Path) -> None:
    study: dict[str, object] = {}
    for _ in range(100):
        status, body = served.get("/api/studies/1?after=0")
        study = json.loads(body)
        if status == 200 and len(study.get("plotly_graph_objects", [])) == 4:  # type: ignore[arg-type]
            break
        time.sleep(0.3)
    figures = {f["id"] for f in study["plotly_graph_objects"]}  # type: ignore[attr-defined]
    names = ("prune-ratio", "widths", "loss", "seeds")
    assert figures == {f"widthsearch-{name}" for name in names}
    assert study["objective_names"] == ["validation loss"]
    page = served.get("/dashboard")[1]
    assert "graph-hyperparameter-importances" in page and page.index("</style>") < page.index("</head>")
    if CHROMIUM is not None:
        dom, _, asked = opened(f"{served.url}/dashboard/studies/1/note", tmp_path)
        assert "<table>" in dom and "width variable" in dom and "fc1" in dom
        assert any(url.startswith(served.url) for url in asked)


def test_the_dashboard_is_for_its_own_pages_alone(served: Served) -> None:
    assert served.get("/dashboard")[0] == 200
    assert served.get("/api/studies", Origin="http://evil.example")[0] == 403
    assert served.get("/api/studies", Host="evil.example")[0] == 403
    assert served.get("/api/studies", Origin=served.url)[0] == 200


def test_the_guard_passes_nothing_on_that_it_refuses() -> None:
    def app(environ: dict[str, object], start_response: object) -> list[bytes]:
        raise AssertionError("passed on")

    answers: list[str] = []
    guarded = only_from_here(app, 80)  # type: ignore[arg-type]
    for environ in ({}, {"HTTP_HOST": "evil:80"}, {"HTTP_HOST": "localhost:80", "HTTP_ORIGIN": "null"}):
        guarded(dict(environ), lambda status, headers: answers.append(status))
    assert answers == ["403 Forbidden"] * 3


def test_a_port_that_is_taken_is_one_line(served: Served, finished: Finished) -> None:
    port = served.url.rpartition(":")[2]
    result = command("dashboard", "--storage", finished.url, "--port", port)
    assert result.code == 2
    assert f"--port {port}" in result.err and "give another one" in result.err

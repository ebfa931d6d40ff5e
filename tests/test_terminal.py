"""Pages on terminals: nothing is cropped or split, columns go where there is no room, no text commands a terminal."""

from __future__ import annotations

import io
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import URL, write_study
from optuna.trial import TrialState
from played import play

from widthsearch.report.summary import summary_of
from widthsearch.show.console import Line, Name, SafeConsole, say, table
from widthsearch.show.formats import age
from widthsearch.show.search_page import search_page

pytestmark = pytest.mark.usefixtures("working_folder")

LONG = ("self.fc1, self.fc2, self.out", "self.first_of_all_layers, self.fc2, self.out")


def printed(page: Any, columns: int, terminal: bool = True) -> str:
    file = io.StringIO()
    console = SafeConsole(file=file, width=columns, force_terminal=terminal, color_system=None)
    console.print(page, crop=False)
    return file.getvalue()


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("terminal")
    url = f"sqlite:///{folder / 'widthsearch.db'}"
    file = write_study(folder, LONG, ("(self.fc1(", "(self.first_of_all_layers("))
    return summary_of(play(file, url, 999, rounds=3, tolerance=0.0, report_seeds=5), url)


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140])
def test_nothing_is_cropped_and_no_number_is_split(summary: Any, columns: int) -> None:
    page = printed(search_page(summary), columns)
    assert max(map(len, page.splitlines())) <= columns
    assert "…" not in page
    lines = [line.strip() for line in page.splitlines()]
    assert not any(line.startswith("±") or line.endswith("±") for line in lines)
    for network in (summary["baseline"], summary["candidate"]):
        loss = network["val_loss"]
        assert f"{loss['mean']:.4f} ± {loss['se']:.4f}" in page
        for width in network["widths"].values():
            assert re.search(rf"\b{width}\b", page)
    assert summary["decision"]["sentence"] in " ".join(page.split())
    assert ("median" in page, "█" in page) == (columns != 80, columns > 100)


def test_a_pipe_gets_every_column_and_whole_lines(summary: Any) -> None:
    page = printed(search_page(summary), 120, terminal=False)
    assert "median" in page and "█" in page
    assert summary["decision"]["sentence"] in page.splitlines()
    assert any(line.startswith("validation loss: ") and len(line) > 100 for line in page.splitlines())


def test_long_widths_and_names_break_behind_their_joints() -> None:
    widths = "-".join(str(1000 + k) for k in range(12))
    rows = table("network", "widths", "loss", left=(0, 1))
    rows.add_row(Name("encoder.layers.0.attention.output"), Name(widths), "0.1234 ± 0.0012")
    lines = printed(rows, 70).splitlines()
    assert max(map(len, lines)) <= 70 and "0.1234 ± 0.0012" in lines[1]
    cells = [line.split() for line in lines[1:]]
    assert "".join(part for row in cells for part in row if re.fullmatch(r"[\d-]+", part)) == widths
    assert all(part.endswith(("-", "1011")) for row in cells for part in row if re.fullmatch(r"[\d-]+", part))


HOSTILE = "tiny\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe"
CLEAN = "tiny�]0;owned�[2J�31m�txt.exe"  # Rich itself leaves bells out


def test_no_text_commands_the_terminal() -> None:
    rows = table("study", "error", left=(0, 1))
    rows.add_row(Name(HOSTILE), HOSTILE)
    for page in (rows, Line(HOSTILE), HOSTILE):
        found = printed(page, 140)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", found)
        assert "owned" in found and "txt.exe" in found
    file = io.StringIO()
    say(f"one\ntwo {HOSTILE}", SafeConsole(file=file))
    assert file.getvalue() == f"one\ntwo {CLEAN}\n"  # a new line is none
    assert "\x1b[1m" in styled()  # nor is what the page itself has


def styled() -> str:
    file = io.StringIO()
    SafeConsole(file=file, force_terminal=True, color_system="standard").print(Line("bold", "bold"))
    return file.getvalue()


def test_a_running_study_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = play(write_study(tmp_path), URL, 5, rounds=2)
    study.add_trial(unfinished(study))
    monkeypatch.setattr("widthsearch.report.search.status_of", lambda study, url: "running")
    found = summary_of(study, URL)
    at_most = found["progress"]["at_most"]
    assert found["progress"] == {
        "done": 5,
        "at_most": at_most,
        "running": ["round 1 measure 1"],
        "seconds_left": pytest.approx((at_most - 5) * 0.01),
    }
    page = printed(search_page(found), 120, terminal=False)
    assert f"Not decided yet: 5 of at most {at_most} trainings" in page
    assert re.search(r"1 running, at most 0s left, last change \d+ s ago: round 1 measure 1\n", page)


def unfinished(study: Any) -> Any:
    """A trial that runs: the second replica of the first measure."""
    first = next(t for t in study.get_trials() if t.user_attrs["kind"] == "measure")
    first.user_attrs = {k: v for k, v in first.user_attrs.items() if k not in ("kept", "prune_ratio")}
    first.user_attrs["replica"] = 1
    first.state, first.values, first.datetime_complete = TrialState.RUNNING, None, None
    return first


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0, "0 s"), (119, "119 s"), (121, "2 min"), (7100, "118 min"), (7300, "2 h"), (200_000, "2 days")],
)
def test_an_age_is_said_in_its_own_unit(seconds: int, says: str) -> None:
    now = datetime(2026, 1, 1)
    assert age((now - timedelta(seconds=seconds)).isoformat(), now) == says

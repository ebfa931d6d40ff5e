"""The team's page over real HTTP: what it shows, to whom, and that it only reads."""

from __future__ import annotations

import json
import queue
import signal
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy
from commands import (
    URL,
    Finished,
    Quiet,
    assert_refused,
    command,
    here,
    interrupt,
    snapshot,
    start,
    write_study,
)
from test_pages import needs_chromium, opened

from widthsearch.database.connection import Database
from widthsearch.database.records import STATUS, load
from widthsearch.driver.launch import launch
from widthsearch.serve import studies as watched
from widthsearch.serve.app import serve
from widthsearch.serve.studies import Studies

pytestmark = pytest.mark.usefixtures("working_folder")

TOKEN = "0123456789abcdef"
HOSTILE = "</a><script>alert(1)</script>"


class Answer(NamedTuple):
    code: int
    text: str
    headers: Any


def serving(url: str, token: str | None = None) -> str:
    """Its address; it serves until the process ends."""
    said: queue.Queue[str] = queue.Queue()
    database = Database.open(url)
    threading.Thread(target=serve, args=(database, "127.0.0.1", 0, token, said.put), daemon=True).start()
    return said.get(timeout=60).split()[0]


class _StaysHere(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def ask(address: str, data: bytes | None = None, method: str = "GET", **headers: str) -> Answer:
    request = urllib.request.Request(address, data=data, method=method, headers=headers)
    try:
        with urllib.request.build_opener(_StaysHere).open(request, timeout=60) as answer:
            return Answer(answer.status, answer.read().decode(), answer.headers)
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode(), error.headers)


@pytest.fixture(scope="module")
def address(finished: Finished) -> Iterator[str]:
    yield serving(finished.url)


def test_the_api_says_what_show_says(finished: Finished, address: str) -> None:
    shown = json.loads(command("show", "--json", "--storage", finished.url).out)
    answer = ask(f"{address}/api/studies/tiny")
    assert answer.code == 200 and json.loads(answer.text) == shown
    listed = json.loads(ask(f"{address}/api/studies").text)
    wanted = ("kind", "status", "decision", "progress", "last_change")
    assert listed == [{"name": "tiny", **{key: shown[key] for key in wanted}}]


def test_the_pages_have_the_decision_and_the_report(finished: Finished, address: str) -> None:
    shown = json.loads(command("show", "--json", "--storage", finished.url).out)
    page = ask(address)
    assert page.code == 200 and shown["decision"]["sentence"][:40] in page.text
    assert "Refresh" in page.headers and page.headers["Content-Security-Policy"].startswith(
        "default-src 'none'"
    )
    report = ask(f"{address}/studies/tiny")
    assert report.code == 200 and "fc1" in report.text and "To repeat it" in report.text
    assert "Refresh" not in report.headers  # it is finished
    assert ask(f"{address}/health").text == "ok"


def test_what_is_not_there_is_said_in_one_line(address: str) -> None:
    missing = ask(f"{address}/studies/{urllib.parse.quote(HOSTILE, safe='')}")
    assert missing.code == 404 and "<script" not in missing.text
    assert json.loads(ask(f"{address}/api/studies/nope").text) == {"error": "no study 'nope'"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(method: str, finished: Finished, address: str) -> None:
    before = snapshot(finished.url)
    for path in ("", "/studies/tiny", "/api/studies/tiny", "/login"):
        assert ask(address + path, b"{}", method).code in (404, 405)
    assert snapshot(finished.url) == before


def test_a_page_whose_name_was_bent_to_this_machine_is_refused(address: str) -> None:
    assert ask(f"{address}/api/studies", Host="evil.example").code == 400


def test_nobody_gets_in_without_the_token(finished: Finished) -> None:
    address = serving(finished.url, TOKEN)
    for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "widthsearch_token=wrong"}):
        for path in ("/", "/studies/tiny", "/api/studies", "/api/studies/tiny", "/nope"):
            answer = ask(address + path, **wrong)
            assert answer.code == 401 and "tiny" not in answer.text
    assert ask(f"{address}/health").code == 200  # it gives nothing away
    assert ask(f"{address}/api/studies/tiny", Authorization=f"Bearer {TOKEN}").code == 200
    assert ask(f"{address}/login", b"token=wrong", "POST").code == 401
    assert ask(f"{address}/login", b"token=" + TOKEN.encode() * 1000, "POST").code == 401
    entered = ask(f"{address}/login", f"token={TOKEN}".encode(), "POST")
    cookie = entered.headers["Set-Cookie"]
    assert entered.code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
    assert ask(address, Cookie=cookie.partition(";")[0]).code == 200


def test_beyond_this_machine_only_with_a_token(finished: Finished) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert_refused(command("serve", "--storage", finished.url, "--host", host), host, "--token-file")
    Path("short").write_text("secret\n")
    for file, says in {"short": "16 letters", "nope": "FileNotFoundError"}.items():
        assert_refused(command("serve", "--storage", finished.url, "--token-file", file), file, says)


def counted(database: Database) -> list[str]:
    """All that is asked of a database from now on."""
    statements: list[str] = []
    engine = database.storage.engine  # type: ignore[attr-defined]
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    return statements


def test_only_what_has_changed_is_read_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "PAUSE_SECONDS", 0.0)
    for name in ("a", "b", HOSTILE):
        interrupt(tiny, 3, name=name)
    database = Database.open(URL)
    found = Studies(database)
    first = found.look()
    assert list(first) == ["a", "b", HOSTILE]
    statements = counted(database)
    again = found.look()
    assert all(again[name] is first[name] for name in first)
    assert not [s for s in statements if "trial_user_attributes" in s]
    load("b", database).set_user_attr(STATUS, "failed")
    changed = found.look()
    assert changed["b"]["status"] == "failed"  # type: ignore[index]
    assert changed["a"] is first["a"]
    assert command("delete", "a", "--yes").code == 0
    assert list(found.look()) == ["b", HOSTILE]


def test_families_and_studies_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    launch(str(file), here(Quiet(0)), name="curve", budgets=["1/2", "1/4"])
    interrupt(file, 2, name=HOSTILE)
    interrupt(file, 1, name="broken")
    load("broken", Database.open(URL)).set_user_attr("widthsearch:plan", {"format": 0})
    address = serving(URL)
    page = ask(address).text
    assert "<script" not in page and "alert(1)" in page
    assert page.index("curve-1-4") < page.index("curve-1-2") and "another version" in page
    assert json.loads(ask(f"{address}/api/studies/curve").text)["kind"] == "family"
    assert ask(f"{address}/studies/curve").code == 200
    assert ask(f"{address}/studies/{urllib.parse.quote(HOSTILE, safe='')}").code == 200
    assert ask(f"{address}/studies/broken").code == 500


@pytest.mark.sample(1)
@pytest.mark.parametrize("verb", ["serve", "dashboard"])
def test_ctrl_c_ends_what_serves(verb: str, finished: Finished) -> None:
    process = start(verb, "--port", "0", "--storage", finished.url)
    assert process.stdout is not None
    assert "Ctrl-C ends it" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.splitlines()[-1], err) == (0, "ended", "")


@needs_chromium
@pytest.mark.slow
def test_a_browser_finds_nothing_to_complain_of_and_asks_nobody_else(
    finished: Finished, tmp_path: Path
) -> None:
    interrupt(finished.file, 2, name=HOSTILE)
    address = serving(URL)
    for path, sign in (
        ("/", "alert(1)"),
        (f"/studies/{urllib.parse.quote(HOSTILE, safe='')}", 'data-drawn="yes"'),
    ):
        while ask(address + path).headers.get("Refresh") == "1":  # the study is still being read
            time.sleep(0.1)
        dom, console, asked = opened(address + path, tmp_path)
        assert sign in dom and not console
        assert {url for url in asked if not url.startswith(address)} == set()

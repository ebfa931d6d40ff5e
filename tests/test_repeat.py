"""The command on a report's page makes the same study again, whatever kind it is of."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import BUDGET, Result, command, interrupt, setting, write_study

from widthsearch.database.connection import Database
from widthsearch.database.records import FINGERPRINT, load, plan_of
from widthsearch.driver import run as driving

FIRST, AGAIN = "sqlite:///first.db", "sqlite:///again.db"


@pytest.fixture(autouse=True)
def nothing_is_trained(working_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "run_in_process", lambda *arguments: None)


def run(*words: str | Path, url: str) -> Result:
    """A command up to the plan: without a training it ends as interrupted."""
    result = command(*words, "--workers", "0", "--storage", url)
    assert result.code == 130, result.err
    return result


def page_of(name: str, url: str = FIRST) -> str:
    assert command("report", name, "--storage", url, "-o", "page.html").code == 0
    section = Path("page.html").read_text().partition("<h2>To repeat it</h2>")[2]
    return html.unescape(section.partition("</section>")[0])


def commands_of(page: str) -> list[list[str]]:
    found = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert found is not None
    return [shlex.split(line) for line in found[1].splitlines()]


def repeated(name: str, verb: str) -> dict[str, Any]:
    """The plan that the commands of a report's page write, under another name into another database."""
    commands = commands_of(page_of(name))
    assert commands[0][:2] == ["widthsearch", verb]
    for words in commands:
        assert words.count(name) == 1
        run(*("other" if word == name else word for word in words[1:]), url=AGAIN)
    return plan_in(AGAIN, "other")


def plan_in(url: str, name: str) -> dict[str, Any]:
    return plan_of(load(name, Database.open(url))).to_json()


BOTH = (BUDGET, 'budget=Budget(macs="0.5x", params="0.6x")')


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--rounds", "3", "--replicas", "4", "--seeds", "5", "--final-seeds", "6", "--pruner", "l1"),
        ("--budget", "macs=0.4x,params=150"),
    ],
)
def test_a_search(tiny: Path, options: tuple[str, ...]) -> None:
    run("launch", tiny, *options, url=FIRST)
    assert repeated("tiny", "launch") == plan_in(FIRST, "tiny")


def test_a_search_that_was_given_more_rounds(tiny: Path) -> None:
    run("launch", tiny, "--seeds", "3", url=FIRST)
    run("resume", "tiny", "--rounds", "4", url=FIRST)
    assert repeated("tiny", "launch") == plan_in(FIRST, "tiny")


def test_a_search_of_a_hostile_name(tiny: Path) -> None:
    name = "a 'quoted' <b>name</b>; rm -rf &amp;"
    run("launch", tiny, "--name", name, url=FIRST)
    assert repeated(name, "launch") == plan_in(FIRST, name)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--arms", "uniform,grow-shrink:l1,tpe*10", "--report-seeds", "5", "--repeats", "2"),
        ("--cost", "30.5", "--budgets", "1/4,0.37"),
        ("--budgets", "1/3"),
        ("--budgets", "0.5"),
    ],
)
@pytest.mark.parametrize("edits", [(), (BOTH,)], ids=["one resource", "two"])
def test_a_comparison(tmp_path: Path, edits: Any, options: tuple[str, ...]) -> None:
    run("compare", write_study(tmp_path, *edits), *options, url=FIRST)
    assert repeated("tiny-compare", "compare") == plan_in(FIRST, "tiny-compare")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "options",
    [
        ("--inflate", "fc2=3", "--inflate", "fc1=0.25", "--scale", "2,0.5", "--constant", "--again", "2"),
        ("--each", "--rounds", "4", "--report-seeds", "3"),
        ("--each", "--factor", "2.5", "--inflate", "fc1=4"),
        ("--again", "1"),
        ("--constant", "--rounds", "1"),
    ],
)
def test_a_probe(tmp_path: Path, options: tuple[str, ...]) -> None:
    run("probe", write_study(tmp_path, ("rounds=1", "rounds=2")), *options, url=FIRST)
    assert repeated("tiny-probe", "probe") == plan_in(FIRST, "tiny-probe")


def test_a_probe_that_was_given_more_rounds(tmp_path: Path) -> None:
    run("probe", write_study(tmp_path, ("rounds=1", "rounds=5")), "--again", "1", url=FIRST)
    run("resume", "tiny-probe", "--rounds", "3", url=FIRST)
    assert repeated("tiny-probe", "probe") == plan_in(FIRST, "tiny-probe")


@pytest.mark.parametrize("options", [(), ("--pruners", "obd,l0", "--levels", "1/3,0.7,1/2", "--seeds", "3")])
def test_a_comparison_of_pruners(tiny: Path, options: tuple[str, ...]) -> None:
    run("pruners", tiny, *options, url=FIRST)
    assert repeated("tiny-pruners", "pruners") == plan_in(FIRST, "tiny-pruners")


def test_a_family_and_each_of_its_members(tmp_path: Path) -> None:
    options = ("--budgets", "1/2,0.25x", "--seeds", "3")
    run("launch", write_study(tmp_path, BOTH), *options, url=FIRST)
    members = ("tiny-0.25", "tiny-1-2")
    for member in members:
        assert repeated(member, "launch") == plan_in(FIRST, member)
        assert "one of the family 'tiny'" in page_of(member)
        Path("again.db").unlink()
    (words,) = commands_of(page_of("tiny"))
    run(*words[1:], url=AGAIN)
    for member in members:
        assert plan_in(AGAIN, member) == plan_in(FIRST, member)


@pytest.mark.parametrize(
    "changes",
    [
        {"tolerance": 0.5, "report_seeds": 5, "step_sizes": (0.2, 0.4)},
        {"epochs": 2, "optimizer": "adamw", "lr": 0.01, "search": ["fc1"]},
    ],
)
def test_whatever_was_changed_is_changed_again(tiny: Path, changes: Mapping[str, Any]) -> None:
    interrupt(tiny, 0, FIRST, **changes)
    assert repeated("tiny", "launch") == plan_in(FIRST, "tiny")
    settings = [load("tiny", Database.open(FIRST)), load("other", Database.open(AGAIN))]
    assert settings[0].user_attrs[FINGERPRINT] == settings[1].user_attrs[FINGERPRINT]


def test_what_is_set_must_be_a_setting(tiny: Path) -> None:
    for given, says in {
        "lrr=1": "did you mean lr?",
        "model=3": "no setting of a study",
        "callbacks=[1]": "no setting of a study",
        "lr": "give a field and its value",
        "lr=fast": "Recipe(lr='fast')",
        "over=0.5": "Study(over=0.5)",
    }.items():
        result = command("launch", tiny, "--set", given)
        assert result.code == 2 and says in result.err


def test_a_budget_that_is_no_share(tmp_path: Path) -> None:
    file = write_study(tmp_path, (BUDGET, 'budget=Budget(macs="0.5x", params=100)'), setting("threads=1"))
    run("compare", file, "--arms", "uniform", url=FIRST)
    assert repeated("tiny-compare", "compare") == plan_in(FIRST, "tiny-compare")

"""Fixtures of the tests that run the command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import STARTED, Finished, clean_process, command, trials, write_study
from hypothesis import settings

# One thread, here and in all that is started: two test processes on two cores, each with two threads that wait for
# one another in a loop, take up to five times as long.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Run in the background of a script, or under nohup, pytest is told to ignore these, and what it starts would too.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler)


# A deadline per example would be a test of the machine.  `.ci/run` takes the profile ci: the same examples each time.
settings.register_profile("suite", max_examples=100, deadline=None)
settings.register_profile("ci", settings.get_profile("ci"), max_examples=100, deadline=None)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("suite")

#: Files that take a minute or more, longest first: one that is begun last keeps one worker waiting for the other.
LONGEST = (
    "test_faults", "test_users_code", "test_compare", "test_search", "test_docker", "test_large_studies", "test_fuzz",
    "test_zoo", "test_readme", "test_export", "test_bench", "test_cli", "test_family", "test_comparison",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """In the order below, where xdist by itself starts with the file that has the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked nightly run where ``-m`` speaks of them, or a test is named by its ``file::name``."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for own in cases.values():  # spread evenly, from the first to the last
        many = own[0].get_closest_marker("sample").args[0]  # type: ignore[union-attr]
        kept = {round(k * (len(own) - 1) / max(1, many - 1)) for k in range(many)}
        for k, item in enumerate(own):
            if k not in kept:
                item.add_marker(pytest.mark.nightly)
    if "nightly" not in config.option.markexpr and not any("::" in given for given in config.args):
        config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker("nightly")])
        items[:] = [i for i in items if not i.get_closest_marker("nightly")]
    rank = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test in a folder of its own, with nothing from the user's environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("WIDTHSEARCH_STORAGE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    with clean_process():
        yield
    for process in STARTED:
        process.kill()  # what it started dies with it


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_study(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A study that ran to its end, undisturbed: shared, read only."""
    folder = tmp_path_factory.mktemp("finished")
    file, url = write_study(folder), f"sqlite:///{folder / 'widthsearch.db'}"
    result = command("launch", file, "--storage", url)
    return Finished(file, url, result, trials(url))

"""Whatever is typed: a right result, or one line on stderr and exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import math
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import torch
from commands import (
    HEADER,
    MODEL,
    RECIPE,
    URL,
    Finished,
    Result,
    assert_refused,
    clean_process,
    command,
    setting,
    write_study,
)
from examples import fuzz
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial
from torch import nn

from widthsearch import Budget, Recipe, Study, UsageError, WidthSpace, trace
from widthsearch.database.connection import open_storage
from widthsearch.database.lock import driver_lock, is_driven
from widthsearch.maths.cost import RESOURCES
from widthsearch.study.file import StudyFile

pytestmark = pytest.mark.usefixtures("working_folder")


#: Where an input costs no more than a call.
cheap = settings(fuzz, max_examples=3 * settings.default.max_examples)


def strictly(text: str) -> Any:
    """JSON without Python's own NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def assert_right_or_refused(result: Result) -> None:
    if result.code:
        assert_refused(result)
    else:
        assert result.err == ""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is looked up and nothing but this machine is reached, however an address is mangled."""
    original = socket.getaddrinfo

    def numeric(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
        if not name.startswith("127.") or name.strip("0123456789."):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return original(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", numeric)
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")  # libpq looks names up by itself
    monkeypatch.setenv("PGPORT", "1")


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """A port at which nothing listens, and nobody else can in the meantime."""
    with socket.socket() as held:
        held.bind(("", 0))
        yield held.getsockname()[1]


@pytest.fixture
def refused_study(tmp_path: Path) -> Path:
    """A study whose model raises: with anything else in order, a launch comes that far and no further."""
    return write_study(tmp_path, (MODEL, "raise OSError('as far as the model')"), name="refused")


def files(folder: Path) -> dict[Path, int]:
    """All files below it, with their size; without what reading alone leaves (caches, SQLite's helpers)."""
    return {
        p: p.stat().st_size
        for p in folder.rglob("*")
        if "__pycache__" not in p.parts and p.suffix not in (".db-wal", ".db-shm")
    }


# Any character at all: also NUL, lone surrogates, right-to-left marks, newlines, emoji.
ANY = st.text(st.characters(), max_size=20)


def short(text: str) -> str:
    """A test's name."""
    return ascii(text[:4]) + (f" {len(text)}" if len(text) > 4 else "")


# Budgets -------------------------------------------------------------------------------------------------

AMOUNTS = st.one_of(
    ANY,
    st.text("0123456789.eExkMG/+-_ \t\n\0٣²", max_size=8),
    st.from_regex(r"\A[0-9]{1,3}(\.[0-9]{0,3})?([eE][+-]?[0-9]{1,3})?[xkMG]?\Z"),
    st.from_regex(r"\A[0-9٠-٩]{1,4}/[0-9٠-٩]{1,4}x?\Z"),
    st.sampled_from(["inf", "nan", "-inf", "Infinity", "1e400", "1e999x", "9" * 400, "9" * 5000, "1e-99x"]),
)


def spaced(text: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.sampled_from(["", " ", "\t", "\n"]), text).map("".join)


BUDGETS = st.one_of(
    ANY,
    st.lists(
        st.tuples(spaced(st.sampled_from(["macs", "params", "flops", ""])), spaced(AMOUNTS)).map("=".join),
        max_size=3,
    ).map(",".join),
)


@fuzz
@given(text=BUDGETS)
@example("macs=" + "9" * 400)
@example("params=1e99")
@example("macs=1e308x")
def test_any_budget_on_the_command_line(refused_study: Path, text: str) -> None:
    before = files(refused_study.parent)
    assert_refused(command("launch", refused_study, f"--budget={text}"))
    assert files(refused_study.parent) == before


def understood(amount: str, reference: int) -> int:
    """What an amount means, written down a second time and independently."""
    digits = amount.strip()
    scale = {"x": reference, "k": 10**3, "M": 10**6, "G": 10**9}.get(digits[-1:])
    return math.floor(Fraction(digits if scale is None else digits[:-1]) * (1 if scale is None else scale))


@cheap
@given(
    macs=st.one_of(st.none(), AMOUNTS, st.integers(-10, 10**400), st.floats()),
    params=st.one_of(st.none(), AMOUNTS, st.fractions(), st.booleans(), st.lists(st.integers(), max_size=2)),
)
@example(macs=True, params=None)
@example(macs=10**400, params=None)
@example(macs=1e308, params=None)
@example(macs="1.", params=None)
@example(macs="٣x", params=None)
def test_a_budget_is_understood_or_refused(macs: Any, params: Any) -> None:
    try:
        budget = Budget(macs="any" if macs is None else macs, params="any" if params is None else params)
        limits = budget.absolute({"macs": 1000, "params": 70})
    except UsageError:
        return
    given_values = {"macs": macs, "params": params}
    assert limits.keys() == {r for r in RESOURCES if given_values.get(r) is not None}
    for resource, limit in limits.items():
        value = given_values[resource]
        assert not isinstance(value, bool)
        assert 0 <= limit <= 10**18, "no network costs that much: its widths would not even be numbers"
        reference = {"macs": 1000, "params": 70}[resource]
        assert limit == (understood(value, reference) if isinstance(value, str) else math.floor(value))


@pytest.mark.parametrize("budget", ["macs=1e99", "params=1e308x", f"macs={'9' * 400}", "params=1e18"])
def test_a_budget_beyond_all_numbers(tiny: Path, budget: str) -> None:
    result = command("launch", tiny, "--budget", budget, "--seeds", "1", "--replicas", "1")
    assert_refused(result)


# Names ---------------------------------------------------------------------------------------------------

ODD_NAMES = [
    "a'b", 'a"b', "a\nb", "a\tb", " ", "a b", "größer", "名前", "😀", "👩‍👩‍👧", "\u202eabc", "../../x", "a/b", "..", ".",
    "-x", "--help", "-", "$(touch x)", "`x`", "[red]x[/]", "%s", "{}", "\\", "x" * 512, "名" * 512, "😀" * 512,
    "Tiny", "TINY", "e\u0301", "é", "\x1b[31m", "tiny ", "tiny\n", "a_b", "NUL", "con", "*", "?", ":memory:",
]  # fmt: skip
IMPOSSIBLE_NAMES = ["x" * 513, "x" * 5000, "\ud800", "a\udcffb", "a\0b", "\0"]
NAMES = st.one_of(
    st.text(st.characters(), min_size=1, max_size=20),
    st.sampled_from(ODD_NAMES),
    st.sampled_from(IMPOSSIBLE_NAMES),
)


@pytest.fixture
def many_names(finished: Finished, tmp_path: Path) -> tuple[str, list[str]]:
    """A database with finished studies of all the odd names that a launch accepts."""
    url = f"sqlite:///{tmp_path / 'names.db'}"
    attributes = optuna.load_study(study_name="tiny", storage=finished.url).user_attrs
    storage = open_storage(url, create=True)
    for name in ODD_NAMES:  # without their trials, which would take a minute to copy
        study = optuna.create_study(study_name=name, storage=storage)
        for key, value in attributes.items():
            study.set_user_attr(key, value)
    return url, ODD_NAMES


@pytest.mark.nightly
def test_every_odd_name_is_found_again(finished: Finished, many_names: tuple[str, list[str]]) -> None:
    """Among all the others: those that differ only in case, normalisation or blanks at the end, too."""
    url, names = many_names
    listed = "".join(command("list", "--storage", url).out.split())
    resumed = (
        "tiny ",
        "e\u0301",
        "--help",
    )  # their names are looked up as those of `show`, but they are trained
    for name in resumed:
        result = command(
            "resume",
            "--workers",
            "0",
            "--study",
            finished.file,
            "--checkpoints",
            "here",
            "--storage",
            url,
            "--",
            name,
        )
        assert result.code == 0, result.err
    for name in names:
        result = command("show", "--json", "--storage", url, "--", name)
        assert result.code == 0, result.err
        shown = strictly(result.out)
        assert shown["study"] == name
        assert bool(shown["trials"]) == (name in resumed)
        if len(name) < 20 and name.isprintable():
            assert "".join(name.split()) in listed


@fuzz
@given(name=NAMES)
def test_a_name_that_is_not_there_is_refused_everywhere(finished: Finished, name: str) -> None:
    for verb in ("show", "resume"):
        args = ("--workers", "0") if verb == "resume" else ()
        result = command(verb, *args, "--storage", finished.url, "--", f"{name}?")
        assert_refused(result, "no study", "tiny")


@fuzz
@given(name=NAMES)
def test_a_launch_takes_any_name_as_far_as_the_model(refused_study: Path, name: str) -> None:
    before = files(refused_study.parent)
    assert_refused(command("launch", refused_study, f"--name={name}"))
    assert files(refused_study.parent) == before


@pytest.mark.parametrize("name", ["", *IMPOSSIBLE_NAMES], ids=short)
def test_names_that_no_database_can_keep_are_refused(tiny: Path, name: str) -> None:
    """PostgreSQL keeps no NUL and no more than 512 characters; no database keeps half a character."""
    assert_refused(command("launch", tiny, f"--name={name}"), "name")
    assert not Path("widthsearch.db").exists()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "name", ["-x", "a'b\n c", "𝒜" * 128, "../../x größer", "[red]x[/nope]", "x" * 300], ids=short
)
def test_an_odd_name_from_launch_to_the_end(tiny: Path, name: str) -> None:
    result = command("launch", tiny, f"--name={name}", "--replicas=1", "--seeds=1")
    if result.code:
        assert_refused(result, "name")  # as good: but then before anything is written
        assert not Path("widthsearch.db").exists()
        return
    assert strictly(command("show", "--json", "--", name).out)["study"] == name
    assert "finished" in command("list").out
    page = command("show", "--", name).out
    assert "".join(name.split()) in "".join(page.split()) or not name.isprintable()
    assert_refused(command("launch", tiny, f"--name={name}"), "exists already")
    assert optuna.get_all_study_names(URL) == [name]
    assert not (Path.cwd().parent / "x").exists()


@fuzz
@given(names=st.lists(st.one_of(NAMES, st.text("aA_. é", max_size=4)), min_size=2, max_size=2, unique=True))
@example(["Tiny", "tiny"])
@example(["é", "e\u0301"])
@example(["a b", "a_b"])
@example(["a/b", "a_b"])
@example(["a b", "a_b-c8687a08aa5d6ed2"])  # the name of the first one's lock, once
@example(["😀" * 512, "😀" * 511])
@example(["𝒜" * 60, "𝒜" * 61])
def test_no_two_names_share_a_lock(tmp_path: Path, names: list[str]) -> None:
    first, second = names
    if any(unfit(name) for name in names):
        return
    url = f"sqlite:///{tmp_path / 'lock.db'}"
    with driver_lock(url, first):
        assert is_driven(url, first)
        assert not is_driven(url, second)
        with driver_lock(url, second):
            locks = {p.name.casefold() for p in tmp_path.glob("*.lock")}
    assert not is_driven(url, first)
    assert len(locks) >= 2  # also where a file system does not tell "a" from "A"


def unfit(name: str) -> bool:
    """Whether no launch gets as far as the lock with this name."""
    return not 0 < len(name) <= 512 or "\0" in name or any("\ud800" <= c <= "\udfff" for c in name)


# Databases -----------------------------------------------------------------------------------------------

SECRET = "s3cr3t"
URLS = [
    f"postgresql://me:{SECRET}@127.0.0.1:1/x",
    f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/x?sslmode=disable",
    f"postgresql://127.0.0.1:1/x?user=me&password={SECRET}",
    f"mysql://me:{SECRET}@127.0.0.1:1/x",
    f"sqlite://me:{SECRET}@/x.db",
    f"sqlite://:{SECRET}@host/:memory:",
    f"oracle+cx_oracle://me:{SECRET}@127.0.0.1:1/x",
]


@st.composite
def mangled(draw: st.DrawFn, texts: list[str]) -> str:
    """One of the texts with a slip of the keyboard, but not where it says that here is a password."""
    text = draw(st.sampled_from(texts))
    spared = range(0)
    if SECRET in text:
        start = text.index(SECRET)
        spared = range(start - len("password=" if "password=" in text else ":"), start + len(SECRET))
    slip = draw(st.sampled_from(["insert", "delete", "cut"]))
    i = draw(st.sampled_from([i for i in range(len(text)) if i not in spared]))
    if slip == "cut":
        return text[:i]
    return text[:i] + (draw(st.characters()) + text[i:] if slip == "insert" else text[i + 1 :])


def no_secret(result: Result) -> None:
    assert SECRET not in result.out + result.err


@fuzz
@given(url=st.one_of(ANY, ANY.map("sqlite:///".__add__), mangled([*URLS, "sqlite:///no/x.db"])), name=NAMES)
@example(url="sqlite:///" + "x" * 300, name="x")
@example(url="sqlite:///\ud800", name="x")
@example(url="sqlite:///a\0b", name="x")
@example(url=f"postgresql://me:{SECRET}:5432/x", name="x")
@example(url=f"password={SECRET} host=127.0.0.1", name="x")
@example(url=f"postgres//127.0.0.1/x?password={SECRET}", name="x")
def test_any_storage_url(no_network: None, refused_study: Path, url: str, name: str) -> None:
    before = files(refused_study.parent)
    for args in (("show",), ("list",), ("resume", "--workers", "0"), ("launch", refused_study)):
        given_name = () if args[0] in ("list", "launch") else ("--", name)
        result = command(*args, f"--storage={url}", *given_name)
        if url:  # no URL: the default one
            assert_refused(result)
        no_secret(result)
    assert files(refused_study.parent) == before


PASSWORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


@fuzz
@given(before=PASSWORDS, after=PASSWORDS, quoted=st.booleans())
@example(before="p@", after="", quoted=False)
@example(before="p@h/", after="", quoted=False)
@example(before="p@h?", after="", quoted=False)
@example(before="p/", after="#", quoted=False)
@example(before="p:", after=":", quoted=False)
def test_no_password_is_ever_shown(
    no_network: None, refused_study: Path, before: str, after: str, quoted: bool
) -> None:
    """Written as it should be, or with its special characters as they are."""
    from urllib.parse import quote

    password = before + SECRET + after
    url = f"postgresql://me:{quote(password, safe='') if quoted else password}@127.0.0.1:1/x"
    for args in (
        ("show",),
        ("launch", refused_study),
        ("launch", refused_study, "--submit=http://127.0.0.1:1"),
    ):
        result = command(*args, f"--storage={url}")
        assert result.code == 2
        assert len(result.err.splitlines()) == 1
        no_secret(result)


def test_braces_in_the_path_of_a_database(tiny: Path) -> None:
    """Optuna would fill in ``{SCHEMA_VERSION}``."""
    for name in ("{x}.db", "{SCHEMA_VERSION}.db", "{{x}}.db"):
        assert command("launch", tiny, "--storage", f"sqlite:///{name}", "--replicas=1").code == 0
        assert command("show", "--storage", f"sqlite:///{name}").code == 0
        assert Path(name).is_file()


def test_an_sqlite_uri_is_refused_before_the_search(tiny: Path) -> None:
    for url in ("sqlite:///file:x.db?uri=true", "sqlite:///x.db?mode=ro&uri=true"):
        for args in (("launch", tiny), ("show",)):
            assert_refused(command(*args, "--storage", url))
    assert not list(Path().glob("*x.db*"))


# Paths ---------------------------------------------------------------------------------------------------


@fuzz
@given(
    path=st.one_of(ANY, ANY.map("~".__add__), ANY.map(lambda s: f"{s}.py"), ANY.map(lambda s: f"x.py:{s}"))
)
@example("x" * 300 + ".py")
@example("~nobody-of-this-name/x.py")
@example("a\0b.py")
@example("\ud800.py")
def test_any_study_file(path: str) -> None:
    for args in (("launch",), ("widths",)):
        assert_refused(command(*args, "--", path) if args[0] == "widths" else launch_of(path))
    assert not Path("widthsearch.db").exists()


def launch_of(path: str) -> Result:
    return command("launch", "--workers", "0", "--", path)


@pytest.mark.nightly
@fuzz
@given(
    folder=st.one_of(
        ANY.map("/dev/null/".__add__),
        ANY.map(lambda s: f"nope-{s}://x"),
        st.sampled_from(["~nobody-of-this-name/x", "a\0b", "\ud800", "/dev/null", "/proc/nope", "x" * 300]),
        st.sampled_from(
            ["s3://bucket/x", "gs://x", f"s3://me:{SECRET}@x/y", f"nope://me:{SECRET}@x", "dir://x"]
        ),
        st.sampled_from(["ftp://127.0.0.1:1/x", "reference://", "zip://x::/dev/null/x.zip"]),
    )
)
def test_checkpoints_that_cannot_be_kept(
    no_network: None, finished: Finished, tmp_path: Path, folder: str
) -> None:
    before = files(tmp_path)
    result = command(
        "launch", finished.file, "--name=other", "--storage", finished.url, f"--checkpoints={folder}"
    )
    assert_refused(result)
    no_secret(result)
    assert optuna.get_all_study_names(finished.url) == ["tiny"]
    assert files(tmp_path) == before


def test_no_study_is_made_for_checkpoints_that_cannot_be_kept(no_network: None, tiny: Path) -> None:
    for folder in ("/dev/null/x", "http://127.0.0.1:1/x"):
        assert_refused(command("launch", tiny, "--checkpoints", folder))
        assert optuna.get_all_study_names(URL) == []


# Addresses -----------------------------------------------------------------------------------------------


@st.composite
def addresses(draw: st.DrawFn, schemes: list[str]) -> str:
    """Addresses of this machine at which nothing listens, and texts that are no address at all."""
    if draw(st.booleans()):
        return draw(st.one_of(ANY, mangled([f"{scheme}127.0.0.1:1" for scheme in schemes])))
    host = draw(st.one_of(st.integers(1, 254).map("127.0.0.{}".format), ANY, st.just("x" * 70 + ".invalid")))
    port = draw(
        st.one_of(
            st.integers(-2, 20).map(str), ANY, st.sampled_from(["65536", "٣", "1_0", "9" * 5000, "{port}"])
        )
    )
    return draw(st.sampled_from(schemes)) + host + ":" + port


@fuzz
@given(address=addresses(["", "ray://", "http://"]))
def test_any_ray_address(no_network: None, closed_port: int, tiny: Path, address: str) -> None:
    address = address.replace("{port}", str(closed_port))
    if address == "auto":
        return
    assert_refused(command("launch", tiny, "--workers", "1", f"--address={address}"), "Ray")
    assert not Path("widthsearch.db").exists()


@fuzz
@given(server=addresses(["http://", "https://", "", "nope://", "ray://", "json://"]))
@example("")
@example("127.0.0.1:1")
@example("json://x")
@example("http://[::1")
@example("http://127.0.0.1:99999")
@example(f"http://me:{SECRET}@127.0.0.1:1")
def test_any_job_server(
    no_network: None, closed_port: int, tiny: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    server = server.replace("{port}", str(closed_port))
    result = command("launch", tiny, f"--submit={server}")
    assert_refused(result)
    no_secret(result)
    assert result.out == ""


# Settings ------------------------------------------------------------------------------------------------


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def data() -> Any:
    x = torch.zeros(8, 8)
    return (x, x[:, :3]), (x, x[:, :3])


STUDY = Study(model=model, data=data, budget=Budget(params="0.5x", macs="any"))
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10), st.integers(), st.sampled_from([10**400, -(10**400)]),
    st.floats(), st.complex_numbers(), ANY, st.binary(max_size=5), st.decimals(), st.fractions(),
    st.lists(st.one_of(ANY, st.integers(), st.none()), max_size=3),
    st.dictionaries(st.one_of(ANY, st.integers(), st.none()), st.one_of(st.integers(), ANY, st.floats()), max_size=3),
    st.sampled_from([object(), int, len, ..., NotImplemented, {1}, frozenset(), range(3), bytearray(b"x")]),
    st.builds(lambda: iter(["0"])), st.builds(lambda: torch.ones(2)), st.builds(lambda: torch.ones(2).numpy()),
)  # fmt: skip


@cheap
@given(name=st.sampled_from(sorted(f for f in STUDY.__dataclass_fields__)), value=ANYTHING)
@example("search", 5)
@example("fix", None)
@example("fix", 5)
@example("minimum", {1: 4})
@example("over", 10**400)
def test_any_setting_of_a_study(name: str, value: Any) -> None:
    with suppress(UsageError):
        replace(STUDY, **{name: value})


@cheap
@given(name=st.sampled_from(sorted(f for f in Recipe.__dataclass_fields__)), value=ANYTHING)
def test_any_setting_of_a_recipe(name: str, value: Any) -> None:
    with suppress(UsageError):
        Recipe(**{name: value})


NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 40), st.sampled_from([2**31, 10**18, 10**400, 1.5, math.nan, math.inf]),
    st.sampled_from(["4", "x", b"x", [4], (), {"0": 4}, {"*": 4, "0": 2}, {"0": None}, {1: 4}, {"nope": 2}, {}]),
)  # fmt: skip
PATTERNS = st.one_of(
    st.none(), st.lists(st.sampled_from(["0", "2", "*", "?", "[", "[0-2]", "", "\0", "nope", "\ud800"]), max_size=2),
    st.sampled_from(["0", b"0", 5, ("0",), [0], {"0"}, [None], {"0": 1}]),
)  # fmt: skip


@fuzz
@given(search=PATTERNS, fix=PATTERNS, minimum=NUMBERS, multiple_of=NUMBERS)
@example(None, (), 10**400, 1)
@example(None, (), {1: 4}, 1)
def test_what_is_searched_and_its_bounds(
    module: ModuleType, search: Any, fix: Any, minimum: Any, multiple_of: Any
) -> None:
    """From the constructor to the plan, which is where patterns meet the variables."""
    from widthsearch.driver.prepare import prepare

    try:
        study = replace(module.study, search=search, fix=fix, minimum=minimum, multiple_of=multiple_of)
        with clean_process():
            prepared = prepare(StudyFile(study, Path(str(module.__file__)), "study"))
    except UsageError:
        return
    plan = prepared.plan
    baseline = plan.baseline
    assert 0 < len(baseline) <= 2
    assert all(w >= plan.minimum[v] and w % plan.multiple_of[v] == 0 for v, w in baseline.items())
    strictly(json.dumps(plan.to_json()))


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The tiny study as a module."""
    from widthsearch.study.file import import_file

    with clean_process():
        loaded: ModuleType = import_file(write_study(tmp_path_factory.mktemp("module")))
    return loaded


@pytest.mark.parametrize(
    "text",
    [
        "over=1e308",
        "over=10**400",
        "threads=10**10",
        "minimum=10**400",
        "multiple_of=10**30",
        "patience=10**400",
    ],
)
def test_settings_beyond_all_bounds(tmp_path: Path, text: str) -> None:
    file = write_study(tmp_path, setting(text), ("replicas=2", "replicas=1"))
    result = command("launch", file)
    assert_right_or_refused(result)
    if result.code:
        assert not Path("widthsearch.db").exists()


# Widths --------------------------------------------------------------------------------------------------

SPACE: WidthSpace = trace(model(), torch.zeros(2, 8))
HUGE = (10**15, 2**63, 10**30, 10**400)
WIDTHS = st.one_of(
    st.integers(-2, 40), st.sampled_from(HUGE), st.sampled_from([None, True, "4", "x", 1.5, 4.0, math.nan, math.inf, [4]])
)  # fmt: skip


@fuzz
@given(
    widths=st.one_of(
        st.fixed_dictionaries(dict.fromkeys(SPACE.widths, WIDTHS)),
        st.dictionaries(st.sampled_from([*SPACE.widths, "nope", "", 1, None]), WIDTHS, max_size=3),
        st.sampled_from([[], [4, 4], "44"]),
    )
)
@example(dict.fromkeys(SPACE.widths, 10**30))
@example(dict.fromkeys(SPACE.widths, math.inf))
@example(dict.fromkeys(SPACE.widths))
def test_any_widths(widths: Any) -> None:
    """A network of these widths, or an error that says what is wrong with them."""
    makers: list[Callable[[Mapping[str, int]], nn.Module]] = [SPACE.resize, lambda w: SPACE.at(w).model]
    for make in makers:
        try:
            net = make(widths)
        except (ValueError, UsageError):
            continue
        except RuntimeError as error:  # torch's own words are clear enough
            assert any(w in HUGE for w in widths.values())
            assert "memory" in str(error)
            continue
        wanted = [widths[v] for v in SPACE.widths]
        first, second = net[0], net[2]  # type: ignore[index]
        assert [first.out_features, second.out_features] == wanted
        assert [second.in_features, net[4].in_features] == wanted  # type: ignore[index]
        assert net(torch.zeros(2, 8)).shape == (2, 3)


@fuzz
@given(
    text=st.one_of(
        ANY,
        st.text("0123456789,-: ", max_size=8),
        st.lists(st.sampled_from(["2", "8", "0", "-1", "9" * 30, "٣", "1_0"]), max_size=4).map(",".join),
        st.sampled_from(["2,8:int", "2,8:float", "2,8:double", "2,9", "2," + "9" * 5000]),
    )
)
def test_any_input_shape(text: str) -> None:
    result = command("widths", "--model", "torch.nn:Linear(8, 3)", f"--input={text}", "--json")
    assert_right_or_refused(result)
    if not result.code:
        strictly(result.out)


@fuzz
@given(text=st.one_of(ANY, ANY.map("torch.nn:".__add__), mangled(["torch.nn:Linear(8, 3)"])))
def test_any_model(text: str) -> None:
    result = command("widths", f"--model={text}", "--input=2,8", "--json")
    assert_right_or_refused(result)
    if not result.code:
        strictly(result.out)


# JSON ----------------------------------------------------------------------------------------------------


@pytest.mark.sample(4)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e308], ids=str)
@pytest.mark.parametrize("attribute", ["accuracy", "test_loss", "value"])
def test_json_is_strict_whatever_a_training_reports(
    finished: Finished, tmp_path: Path, attribute: str, number: float
) -> None:
    """A metric may be anything, and losses may be finite although their squares are not."""
    if attribute == "value" and not math.isfinite(number):
        return  # a training that ends so has failed
    url = f"sqlite:///{tmp_path / 'odd.db'}"
    original = optuna.load_study(study_name="tiny", storage=finished.url)
    study = optuna.create_study(storage=open_storage(url, create=True), study_name="tiny")
    for key, value in original.user_attrs.items():
        study.set_user_attr(key, value)
    for i, t in enumerate(original.trials):
        odd = number if i % 2 else 0.5
        attributes = t.user_attrs if attribute == "value" else {**t.user_attrs, attribute: odd}
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=odd if attribute == "value" else t.value,
                params=t.params,
                distributions=t.distributions,
                user_attrs=attributes,
                constraints=t.constraints,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy says that it overflows
        result = command("show", "--json", "--storage", url)
        assert result.code == 0, result.err
        strictly(result.out)
        for verb in ("show", "list"):
            assert command(verb, "--storage", url).code == 0


def test_a_metric_that_is_not_finite_is_told_as_such(tmp_path: Path) -> None:
    metric = "def metric(output, target):\n    return float('nan')\n\n\n"
    file = write_study(tmp_path, (HEADER, metric + HEADER), (RECIPE, f"{RECIPE[:-1]}, metric=metric)"))
    assert_right_or_refused(result := command("launch", file, "--replicas=1", "--seeds=1"))
    if not result.code:
        strictly(command("show", "--json").out)

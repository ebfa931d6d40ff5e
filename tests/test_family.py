"""``launch --budgets``: one study per budget; stopped and resumed as a whole, shown as one table and figure."""

import json
from pathlib import Path

import optuna
import pytest
from commands import (
    BUDGET,
    URL,
    Quiet,
    assert_refused,
    clean_process,
    command,
    complete,
    custom_loss,
    here,
    setting,
    snapshot,
    start,
    trials,
    write_study,
)

from widthsearch.database.connection import open_storage
from widthsearch.database.lock import driver_lock
from widthsearch.database.records import family_of
from widthsearch.driver.launch import launch
from widthsearch.show.family import family_figure

pytestmark = pytest.mark.usefixtures("working_folder")

BOTH = (BUDGET, 'budget=Budget(macs="0.5x", params="0.5x")')
BUDGETS = "1,1/4,1/2"
MEMBERS = ("tiny-1-4", "tiny-1-2", "tiny-1")
SMALLEST, MIDDLE, LARGEST = MEMBERS


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, BOTH)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """A family that ran to its end, undisturbed: its URL, what it printed, its figure."""
    folder = tmp_path_factory.mktemp("whole")
    file, url = write_study(folder, BOTH), f"sqlite:///{folder / 'whole.db'}"
    result = command("launch", file, "--budgets", BUDGETS, "--storage", url)
    assert result.code == 0, result.err
    return url, result.out


@pytest.fixture(scope="module")
def found(whole):
    """Member -> what its completed trials found."""
    return {name: complete(trials(whole[0], name)) for name in MEMBERS}


class StopIn(Quiet):
    """Presses Ctrl-C in the given member: when the trial is about to run, or before any (``None``)."""

    def __init__(self, member: str, trial: int | None) -> None:
        super().__init__()
        self.where = (member, trial)

    def begin(self, plan, study):
        self.member = study.study_name
        if self.where == (self.member, None):
            raise KeyboardInterrupt

    def started(self, number, slot):
        if self.where == (self.member, number):
            raise KeyboardInterrupt


def interrupt_in(file: Path, member: str, trial: int | None) -> None:
    with clean_process():
        ended = launch(str(file), here(StopIn(member, trial), URL), budgets=BUDGETS.split(","))
    assert (ended.name, ended.status) == ("tiny", "interrupted")


def test_members_run_from_the_smallest_budget_to_the_largest_each_to_its_verdict(whole):
    url, out = whole
    starts = [out.index(f"{name}: 2 width variables") for name in MEMBERS]
    assert starts == sorted(starts)
    assert family_of("tiny", open_storage(url, create=False)) == ("tiny", MEMBERS)
    for name in MEMBERS:
        shown = json.loads(command("show", name, "--json", "--storage", url).out)
        assert (shown["status"], shown["family"]) == ("finished", "tiny")
        assert shown["verdict"] is not None


def test_a_member_is_the_study_that_launch_makes_under_its_budget(found, study: Path):
    assert command("launch", study, "--budget", "macs=1/2x,params=1/2x").code == 0
    assert complete(trials()) == found[MIDDLE]


def test_the_page_has_both_networks_of_every_member_and_its_gain(whole):
    url, out = whole
    page = command("show", "tiny", "--storage", url).out
    assert page in out and page == command("show", "--storage", url).out  # the latest
    assert page.startswith("tiny  finished")
    summary = json.loads(command("show", "tiny", "--json", "--storage", url).out)
    for member in summary["members"]:
        lines = [line.split() for line in page.splitlines() if line.split()[:1] == [member["study"]]]
        networks, gains = lines
        assert "-".join(map(str, member["baseline"]["widths"].values())) in networks
        assert f"{member['baseline']['macs']:,}" in networks
        assert gains[1] == "finished"
        if member["candidate"] is not None:
            mean = next(word for word in gains if word.startswith(("+", "-")))
            assert float(mean) == pytest.approx(member["gain"]["mean"], rel=0.01, abs=1e-4)
            assert "-".join(map(str, member["candidate"]["widths"].values())) in page


def test_json_holds_what_show_prints_of_each_member(whole):
    url, _ = whole
    summary = json.loads(command("show", "tiny", "--json", "--storage", url).out)
    assert summary.keys() == {"kind", "family", "status", "decision", "members"}
    assert (summary["kind"], summary["family"], summary["status"]) == ("family", "tiny", "finished")
    alone = [json.loads(command("show", name, "--json", "--storage", url).out) for name in MEMBERS]
    assert summary["members"] == alone
    assert [m["budget"]["macs"] for m in alone] == [356 // 4, 356 // 2, 356]


def test_list_puts_the_members_under_their_family(whole):
    url, _ = whole
    lines = command("list", "--storage", url).out.splitlines()[1:]
    assert [line.rstrip() for line in lines[:1]] == ["tiny        family"]
    assert [line.split()[:2] for line in lines[1:]] == [[name, "finished"] for name in MEMBERS]
    assert all(line.startswith("  ") for line in lines[1:])


def test_the_figure_has_both_curves_over_macs_and_parameters(whole, tmp_path: Path):
    url, _ = whole
    file = tmp_path / "family.html"
    assert command("show", "tiny", "--storage", url, "--plot", file).code == 0
    assert "tiny-1-4" in file.read_text() and 'src="http' not in file.read_text()
    summary = json.loads(command("show", "tiny", "--json", "--storage", url).out)
    figure = family_figure(summary)
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"
    for resource, axis in (("macs", "x"), ("params", "x2")):
        traces = {t.name: t for t in figure.data if t.xaxis == axis}
        ends = {
            "uniform": [m["baseline"] for m in summary["members"]],
            "best found": [m["candidate"] or m["baseline"] for m in summary["members"]],
        }
        for name, of in ends.items():
            networks = sorted(of, key=lambda network: network[resource])
            assert list(traces[name].x) == [n[resource] for n in networks]
            assert list(traces[name].y) == [n["val_loss"]["mean"] for n in networks]
            assert list(traces[name].error_y.array) == [n["val_loss"]["se"] for n in networks]
        # Under a budget of once its own cost the uniform network is the seed network.
        seed, full = traces["seed network"], summary["members"][-1]["baseline"]
        assert (list(seed.x), list(seed.y)) == (
            [summary["members"][0]["seed"][resource]],
            [full["val_loss"]["mean"]],
        )


@pytest.mark.sample(1)
@pytest.mark.parametrize("stop", [(MIDDLE, 3), (MIDDLE, None), (LARGEST, 0)])
def test_an_interrupted_family_is_resumed_to_the_same_end(found, study: Path, stop: tuple[str, int | None]):
    interrupt_in(study, *stop)
    before = snapshot(name=SMALLEST)
    shown = command("show")
    assert shown.out.startswith("tiny  interrupted") and "widthsearch resume tiny\n" in shown.out
    states = [m["status"] for m in json.loads(command("show", "--json").out)["members"]]
    assert states[0] == "finished" and states[2] == "interrupted"
    result = command("resume", "tiny")
    assert result.code == 0, result.err
    assert {name: complete(trials(name=name)) for name in MEMBERS} == found
    assert snapshot(name=SMALLEST) == before
    assert command("resume", "tiny").code == 0
    assert snapshot(name=SMALLEST) == before


@pytest.mark.nightly
@pytest.mark.slow
def test_a_killed_driver_loses_nothing(found, tmp_path: Path):
    file = write_study(tmp_path, BOTH, *custom_loss("import time\ntime.sleep(0.1)"))
    process = start("launch", file, "--budgets", BUDGETS, "--workers", "0", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith(f"{MIDDLE}:"):
        assert process.poll() is None and line
    states = [m["status"] for m in json.loads(command("show", "--json").out)["members"]]
    assert states == ["finished", "running", "running"]  # the last one waits for its turn
    while "trial 1" not in process.stdout.readline():
        assert process.poll() is None
    process.kill()
    process.communicate()
    assert command("show").out.startswith("tiny  interrupted")
    assert command("resume").code == 0
    for name in MEMBERS:
        assert {k: (p, v) for k, (p, v, *_) in complete(trials(name=name)).items()} == {
            k: (p, v) for k, (p, v, *_) in found[name].items()
        }


def test_a_second_driver_of_the_family_is_refused(study: Path):
    interrupt_in(study, MIDDLE, 0)
    with driver_lock(URL, "tiny"):
        assert json.loads(command("show", "--json").out)["status"] == "running"
        assert_refused(command("resume", "tiny"), "'tiny' is running on")


def test_a_member_that_fails_does_not_keep_the_others_from_their_verdict(tmp_path: Path):
    narrow = "def init(model):\n    assert sum(p.numel() for p in model.parameters()) > 130, 'too narrow'\n\n\ndef model():"
    file = write_study(tmp_path, BOTH, ("def model():", narrow), setting("init=init, retries=0"))
    result = command("launch", file, "--budgets", "1/4,1/2")
    assert_refused(result, "'tiny' cannot go on: tiny-1-4: ", "too narrow")
    summary = json.loads(command("show", "tiny", "--json").out)
    assert summary["status"] == "failed"
    assert [m["status"] for m in summary["members"]] == ["failed", "finished"]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--budgets", "much"), ("'muchx'", "0.25x")),
        (("--budgets", "1/0,1/2"), ("1/0x",)),
        (("--budgets", "1/4,,1/2"), ("'x'",)),
        (("--budgets", "-1/4"), ("-1/4x",)),
        (("--budgets", "1/4,0.25"), ("1/4,0.25", "once")),
        (("--budgets", "1/4,1/4"), ("1/4,1/4", "once")),
        (("--budgets", "1/2,1/100"), ("macs=3", "too small")),
        (("--budgets", "1/2", "--budget", "macs=0.5x"), ("--budgets 1/2", "(--budget)", "not both")),
        (("--budgets", "1/2", "--name", "a\nb"), ("study name",)),
    ],
)
def test_wrong_budgets_are_refused_and_nothing_is_written(study: Path, options, fragments):
    assert_refused(command("launch", study, *options), *fragments)
    assert not Path("widthsearch.db").exists()


def test_names_do_not_clash(study: Path):
    interrupt_in(study, SMALLEST, 1)
    launch = ("launch", study, "--budgets", "1/4,1/2")
    assert_refused(command(*launch), "family 'tiny' exists already", "widthsearch resume tiny;")
    assert_refused(command("launch", study), "family 'tiny' exists already", "widthsearch resume tiny;")
    # Nothing was trained for it yet, but it waits for its turn.
    assert_refused(command("launch", study, "--name", LARGEST), f"study '{LARGEST}' exists already")
    optuna.create_study(study_name="other", storage=URL)
    optuna.create_study(study_name="third-1-2", storage=URL).ask()
    assert_refused(command(*launch, "--name", "other"), "study 'other' exists already")
    assert_refused(command(*launch, "--name", "third"), "study 'third-1-2' exists already")
    assert_refused(command("resume", "tiny", "--rounds", "5"), "--rounds", "family", SMALLEST)
    assert_refused(command("show", "tiny-1-8"), "no study 'tiny-1-8'", SMALLEST)
    assert command("resume", "tiny").code == 0


def test_a_launch_that_was_killed_while_it_wrote_the_members_is_repeated(found, study: Path):
    interrupt_in(study, SMALLEST, None)
    optuna.delete_study(study_name=LARGEST, storage=URL)  # as if it had not come so far
    assert_refused(command("resume", "tiny"), "'tiny' was cut short", "launch it again")
    assert command("launch", study, "--budgets", BUDGETS).code == 0
    assert {name: complete(trials(name=name)) for name in MEMBERS} == found

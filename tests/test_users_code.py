"""Whatever the user's code raises, changes or hangs in: a failed training or one line, and a clean process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import (
    DATA,
    HEADER,
    MODEL,
    Result,
    assert_refused,
    command,
    complete,
    custom_loss,
    interrupt,
    real_command,
    setting,
    start,
    trained_by,
    trials,
    worker,
    write_study,
)
from rich.console import Console

from widthsearch.errors import TrainingError, UsageError, describe_error
from widthsearch.plans.plan import Slot
from widthsearch.show.progress import Tracker
from widthsearch.study.file import load_study
from widthsearch.study.users_code import time_limit, users_code

pytestmark = pytest.mark.usefixtures("working_folder")

STRANGE = {
    "exit": ("raise SystemExit(0)", "SystemExit: 0"),
    "exit without a word": ("raise SystemExit", "SystemExit"),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
    "stop iteration": ("raise StopIteration(3)", "StopIteration: 3"),
    "keyboard": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "no text": ("raise Mute", "Mute: (its text cannot be had: str() raises ZeroDivisionError)"),
    "half a character": (r"raise ValueError('\udc80\x1b[2J')", "ValueError: ??[2J"),
    "an own base": ("raise type('Odd', (BaseException,), {})('x')", "Odd: x"),
}
MUTE = (HEADER, f"class Mute(Exception):\n    def __str__(self):\n        return 1 / 0\n\n\n{HEADER}")
PLACES = {
    "model()": lambda raising: (MODEL, f"{raising}"),
    "data()": lambda raising: (DATA, f"{raising}"),
    "forward()": lambda raising: ("return self.out(", f"{raising}\n        return self.out("),
    "import": lambda raising: ("def model():", f"{raising}\n\n\ndef model():"),
}


def launched(*edits: tuple[str, str]) -> Result:
    return real_command("launch", write_study(Path.cwd(), *edits), "--workers", "0")


@pytest.mark.sample(4)
@pytest.mark.parametrize("raising", STRANGE)
def test_a_training_that_raises_anything_at_all_has_failed(raising: str) -> None:
    code, said = STRANGE[raising]
    edits = (MUTE, *custom_loss(f"if len(output) > 4: {code}"), setting("retries=0"))
    # What comes from a signal is told from what does not by our handlers, which are set while a search runs.
    result = command("launch", write_study(Path.cwd(), *edits))
    assert_refused(result, "no training at the start came to its end", said)
    assert [t.user_attrs["error"] for t in trials()] == [said] * 2


@pytest.mark.parametrize("raising", STRANGE)
@pytest.mark.parametrize("place", PLACES)
def test_a_study_that_raises_anything_at_all_is_refused(place: str, raising: str) -> None:
    if raising == "keyboard":
        pytest.skip("in this process nobody but Python handles Ctrl-C: see below")
    code, said = STRANGE[raising]
    assert_refused(
        command("launch", write_study(Path.cwd(), MUTE, PLACES[place](code))), said.partition(":")[0]
    )


@pytest.mark.sample(2)
@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_keyboard_interrupt_of_the_studys_own_is_no_ctrl_c(place: str) -> None:
    assert_refused(launched(PLACES[place]("raise KeyboardInterrupt")), "KeyboardInterrupt")


def test_workers_outlive_what_a_training_raises() -> None:
    for code, said in (STRANGE["exit"], STRANGE["keyboard"], STRANGE["no text"]):
        name = said.partition(":")[0]
        file = write_study(Path.cwd(), MUTE, *custom_loss(f"if len(output) > 4: {code}"), name=name)
        interrupt(file, 0, name=name)
        actor, slot = worker(file, name)
        for _ in range(2):
            assert trained_by(actor, slot)["outcomes"] == [{"error": said}]


@pytest.mark.slow
def test_ctrl_c_interrupts_a_training_that_catches_it() -> None:
    body = """
        print("training", flush=True)
        try:
            import time; time.sleep(600 * (len(output) > 4))
        except BaseException:
            pass
        """
    file = write_study(Path.cwd(), *custom_loss(body))
    process = start("launch", file, "--workers", "0", stderr=subprocess.STDOUT, PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    while "tiny: " not in process.stdout.readline():
        pass
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "widthsearch resume tiny" in out and "Traceback" not in out
    assert [t.user_attrs.get("error") for t in trials()] == [None]


def test_a_study_that_changes_the_folder_finds_itself_and_the_database() -> None:
    """The functions of a file that changes it when it is imported run there, every time."""
    Path("there").mkdir()
    Path("there", "size").write_text("96")
    leaving = custom_loss("import os; os.chdir('/')")
    moving = (HEADER, f"import os\nos.chdir('there')\n\n\n{HEADER}")
    reading = ("torch.randn(96,", "torch.randn(int(open('size').read()),")
    interrupt(write_study(Path.cwd(), moving, reading, *leaving), 3)
    assert command("resume", "tiny").code == 0
    assert len(complete(trials())) > 3
    assert sorted(p.name for p in Path("there").iterdir()) == ["size"]


def test_where_memory_is_full_it_says_what_to_lower() -> None:
    full = "if len(output) > 4: raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB')"
    result = command("launch", write_study(Path.cwd(), MUTE, *custom_loss(full), setting("retries=0")))
    assert_refused(result, "Tried to allocate 9 GiB; lower Recipe(batch_size=...)")


def test_handlers_are_put_back_and_a_signal_is_no_failure() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with users_code():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt), users_code():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SystemExit(0) from None
    with pytest.raises(UsageError, match="it raised KeyboardInterrupt"), users_code(what="it raised "):
        raise KeyboardInterrupt


@pytest.mark.parametrize("caught", ["Exception", "BaseException"])
def test_what_takes_too_long_is_ended_whatever_it_catches(
    caught: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("widthsearch.study.users_code.AGAIN_SECONDS", 0.05)
    kind = {"Exception": Exception, "BaseException": BaseException}[caught]
    with pytest.raises(TrainingError, match=r"longer than Study\(timeout=0.1\) seconds"), time_limit(0.1):
        for _ in range(3):
            try:
                time.sleep(60)
            except kind:
                continue
    time.sleep(0.2)  # and it is over
    with time_limit(60), users_code():
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_error_in_one_line() -> None:
    assert describe_error(ValueError("\n\n  a\nb")) == "ValueError: a"
    assert os.linesep not in describe_error(RuntimeError("x\ry"))


HANGING = """
    import ctypes, time
    if len(output) == 32 and torch.initial_seed() == {seed}:
        {hangs}
    """


@pytest.mark.slow
def test_a_training_that_hangs_fails_and_the_search_goes_on() -> None:
    """One fresh seed of each network; in Python, and in a library that holds on to the interpreter."""
    seed = Slot("report", 0, 3, {}).random_seed(0)
    inside = "ctypes.PyDLL(None).sleep(600)"  # (PyDLL: nobody else gets the interpreter)
    for name, hangs, workers in (("python", "time.sleep(600)", "0"), ("library", inside, "2")):
        body = HANGING.format(seed=seed, hangs=hangs)
        edits = (*custom_loss(body), setting("timeout=3, retries=0"), ("report_seeds=2", "report_seeds=3"))
        assert seed != Slot("report", 0, 2, {}).random_seed(0)
        run = command if workers == "0" else real_command
        result = run("launch", write_study(Path.cwd(), *edits), "--workers", workers, "--name", name)
        assert result.code == 0, result.err
        failed = [t for t in trials(name=name) if t.state.name == "FAIL"]
        assert {t.user_attrs["replica"] for t in failed} == {3}
        assert {t.user_attrs["error"] for t in failed} == {"it took longer than Study(timeout=3) seconds"}


def test_what_no_other_try_mends_stops_the_search() -> None:
    """In a worker as in this process: with the line, exit code 2, and none of the retries used up."""
    from widthsearch.cluster.workers import LedgerSearcher  # imports Ray

    body = "from widthsearch import UsageError\nif len(output) == 32: raise UsageError('no second try helps')"
    file = write_study(Path.cwd(), *custom_loss(body))
    assert_refused(command("launch", file), "no second try helps", "can be resumed")
    assert [t.user_attrs.get("error") for t in trials()] == [None]
    actor, slot = worker(file)
    outcome = trained_by(actor, slot)
    assert outcome["stop"] == "no second try helps"
    ledger: Any = SimpleNamespace(next_step=lambda: slot, take=lambda of: [(of, 0)])
    searcher = LedgerSearcher(ledger)
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"outcome": json.dumps(outcome)})
    assert str(searcher.error) == "no second try helps" and searcher.suggest("b") == "FINISHED"


@pytest.mark.slow
def test_output_that_nobody_reads_stops_the_search_in_one_line() -> None:
    process = start("launch", write_study(Path.cwd()), "--workers", "0", PYTHONUNBUFFERED="1")
    assert process.stdout is not None and process.stderr is not None
    while not process.stdout.readline().startswith("tiny: "):
        assert process.poll() is None
    process.stdout.close()
    assert process.wait(120) == 2
    assert_refused(Result(2, "", process.stderr.read()), "nothing can be printed any more", "resumed")
    for words in (("launch", "tiny.py", "--name", "full", "--workers", "0"), ("list",)):
        with Path("/dev/full").open("w") as full:
            process = start(*words, stdout=full)
            _, err = process.communicate(timeout=120)
        assert_refused(Result(process.returncode, "", err), "No space left on device")


def test_a_ray_that_is_slow_to_start_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray raises on a busy machine is a plain Exception."""
    from widthsearch.cluster import node

    said: list[str] = []
    starts: list[int] = []

    def init(**_: object) -> SimpleNamespace:
        starts.append(1)
        if len(starts) < 3:
            raise Exception("The current node timed out during startup. This could happen because...")
        return SimpleNamespace(dashboard_url="")

    monkeypatch.setattr(node.ray, "init", init)
    monkeypatch.setattr(node, "PAUSE_BETWEEN_STARTS", 0.0)
    study = load_study(str(write_study(Path.cwd()))).study
    node.start_ray(study, 1, None, said.append)
    assert said[0] == "starting Ray" and len(said) == 3
    assert all("timed out during startup" in line and line.endswith("trying again") for line in said[1:])
    monkeypatch.setattr(node, "STARTS", 1)
    starts.clear()
    with pytest.raises(UsageError, match="Ray does not start here: Exception: The current node timed out"):
        node.start_ray(study, 1, None, said.append)


def test_a_training_that_takes_much_longer_than_others_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(Console(quiet=True))
    tracker.running, tracker.seconds = {}, defaultdict(list)
    tracker.round = 0
    tracker.seconds["score"] = [10.0, 40.0]
    tracker.started(7, Slot("score", 0, 1, {}))
    tracker.started(8, Slot("measure", 0, 1, {}))
    now = time.monotonic()
    for after, notes in ((59, 0), (100, 0), (125, 1)):
        monkeypatch.setattr(time, "monotonic", lambda after=after: now + after)
        assert len(tracker.stalled()) == notes
    assert "trial 7 has run for 2m05s" in tracker.stalled()[0]
    assert "so far for 40s" in tracker.stalled()[0]

"""What is logged: nothing unless asked for, on stderr, no secret in it; and scalars for TensorBoard."""

import logging
import os
import pty
import re
import struct
from pathlib import Path

import pytest
from commands import (
    TRIALS,
    assert_refused,
    command,
    custom_loss,
    interrupt,
    start,
    trials,
    write_study,
)
from postgres import Postgres, postgres_server  # noqa: F401

import widthsearch

pytestmark = pytest.mark.usefixtures("working_folder")


def test_quiet_by_default(tiny: Path):
    assert command("launch", tiny).err == ""
    assert command("resume", "tiny").err == ""
    assert any(isinstance(h, logging.NullHandler) for h in logging.getLogger(widthsearch.__name__).handlers)


def test_verbose_says_what_is_handed_out_and_why(tiny: Path):
    result = command("launch", tiny, "-v")
    assert result.code == 0
    assert "widthsearch." not in result.out
    lines = result.err.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d widthsearch\.[\w.]+: ", line) for line in lines)
    told = re.compile("trial (\\d+): complete, loss")
    assert [int(m[1]) for line in lines if (m := told.search(line))] == list(range(TRIALS))
    # The over-wide network, under its budget; the price and cost of each measure; the end.
    over_wide = "-".join(map(str, trials()[2].params.values()))
    assert f"phase: round 1 measure 0; budget {{'params': 193}}, widths {over_wide} cost" in result.err
    gates = re.findall(
        r"gates: price ([\d.]+) at the end, expected cost ([\d.]+) times its params", result.err
    )
    assert len(gates) == 2 and all(float(price) >= 0 and float(cost) > 0 for price, cost in gates)
    assert "'tiny' is finished: " in lines[-1]
    assert "epoch" not in result.err and "asked in" not in result.err
    assert logging.getLogger("widthsearch").level == logging.NOTSET


def test_very_verbose_says_more(tiny: Path):
    err = command("launch", tiny, "-vv").err
    assert "driver lock of 'tiny' in sqlite:///widthsearch.db" in err
    assert err.count("widthsearch.training.recipe_loop: epoch 1 of 1: training loss") == TRIALS
    assert "no checkpoint measure-0-0.ckpt" in err


def once(folder: Path, what: str, call: int) -> Path:
    """A study of four epochs whose loss does something when it is called for that time, and never again."""
    body = (
        "from pathlib import Path\nseen = Path('seen')\nn = len(seen.read_text()) if seen.exists() else 0\n"
    )
    body += f"seen.write_text('x' * (n + 1))\nif n == {call}: {what}"
    file = write_study(folder, *custom_loss(body))
    file.write_text(file.read_text().replace("epochs=1", "epochs=4"))
    return file


def test_a_resumed_training_says_where_it_goes_on(tmp_path: Path):
    # The first two calls check the loss; a training at the start has four epochs of two steps and a validation each.
    file = once(tmp_path, "import signal; signal.raise_signal(signal.SIGINT)", 5)
    assert command("launch", file).code == 130
    err = command("resume", "-v").err
    assert "uniform widths 0: again, after interrupted" in err
    assert "checkpoint baseline-0.ckpt: goes on after 1 epochs" in err


def test_a_failure_is_told_with_its_reason(tmp_path: Path):
    err = command("launch", once(tmp_path, "raise OSError('lost it')", 2), "-v").err
    assert "trial 0: failed: OSError: lost it" in err
    assert "uniform widths 0: again, after failed OSError: lost it" in err


def test_the_password_of_a_database_is_never_logged(server: Postgres, tiny: Path):
    url = server.new_database()
    password = re.search(r"://[^:]+:([^@]+)@", url)[1]
    result = command("launch", tiny, "--storage", url, "-vv")
    assert result.code == 0
    assert "driver lock of 'tiny' in postgresql" in result.err and "***" in result.err
    assert password not in result.err


def test_on_a_terminal_the_lines_go_above_the_panel(tiny: Path):
    """Every line is whole, with nothing of the panel in it."""
    ours, theirs = pty.openpty()
    process = start("launch", tiny, "--workers", "0", "-v", stdout=theirs, stderr=theirs, COLUMNS="200")
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how a terminal ends
            break
        shown += part
    assert process.wait(timeout=60) == 0
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode()).replace("\r", "\n").splitlines()
    logged = [line for line in lines if " widthsearch." in line]
    assert len([line for line in logged if re.search(r"trial \d+: complete, loss [\d.]+$", line)]) == TRIALS
    assert all(re.match(r"\d\d:\d\d:\d\d widthsearch\.", line) for line in logged)


# TensorBoard ---------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value: what TensorBoard would show (https://www.tensorflow.org/tutorials/load_data/tfrecord)."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime_ns):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                found.clear()  # from step 0 on
            for value in event.summary.value:
                assert event.step not in found.setdefault(value.tag, {})
                found[value.tag][event.step] = value.simple_value
    return found


def test_scalars_are_those_of_all_trials_however_often_it_is_resumed(tmp_path: Path):
    interrupt(write_study(tmp_path), 3)
    board = tmp_path / "board"
    for options in ((), ("--rounds", "2")):
        assert command("resume", "--tensorboard", board, *options).code == 0
        found = scalars(board / "tiny")
        done = [t for t in trials() if t.state.name == "COMPLETE"]
        of_kinds = [points for tag, points in found.items() if tag.startswith("val_loss/")]
        losses = {step: value for points in of_kinds for step, value in points.items()}
        assert losses == pytest.approx({t.number: t.value for t in done})
        ratios = {t.number: t.user_attrs["prune_ratio"]["fc1"] for t in done if "prune_ratio" in t.user_attrs}
        assert found["prune_ratio/fc1"] == pytest.approx(ratios)
        assert found["seconds/measure"].keys() == found["val_loss/measure"].keys() == ratios.keys()
    assert len(list((board / "tiny").iterdir())) == 2


def test_a_folder_that_cannot_be(tiny: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert_refused(
        command("launch", tiny, "--tensorboard", tmp_path / "file" / "board"), "--tensorboard", "file/board"
    )

"""Ctrl-C: the first one stops gently and has some seconds for it, a second one ends the process at once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# A search that hangs: it says so at the first signal, and goes on hanging.
HANGING = """
import sys, time
from widthsearch import stopping

stopping.PATIENCE_SECONDS = float(sys.argv[1])
with stopping.stop_on_signals("my study") as stop:
    stop.gently = lambda: print("gently", flush=True)
    print("ready", flush=True)
    while True:
        time.sleep(600)
"""
NEVER, AT_ONCE = "1e6", "0.1"


def hanging(patience: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, patience], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def assert_left_at_once(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip() == "left at once, nothing is lost; go on with: widthsearch resume 'my study'"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_ends_whatever_hangs(number: signal.Signals) -> None:
    process = hanging(NEVER)
    process.send_signal(number)
    assert process.stdout is not None and process.stdout.readline() == "gently\n"
    assert process.poll() is None
    process.send_signal(number)
    assert_left_at_once(process)


def test_a_gentle_stop_has_some_seconds_and_no_more() -> None:
    process = hanging(AT_ONCE)
    process.send_signal(signal.SIGINT)
    assert_left_at_once(process)


ENDED = """
import time
from widthsearch import stopping

with stopping.stop_on_signals("my study"):
    pass
print("ready", flush=True)
time.sleep(600)
"""


def test_after_a_search_signals_mean_what_they_meant_before() -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120) and process.returncode == -signal.SIGTERM


LOST = """
import os, signal, sys, weakref
from widthsearch import stopping

class Freed:
    pass

hook = sys.unraisablehook
with stopping.stop_on_signals("my study"):
    freed = Freed()
    gone = weakref.ref(freed, lambda _: (os.kill(os.getpid(), signal.SIGINT), sum(range(1000))))
    if len(sys.argv) > 1:
        gone = None
    del freed
    while gone is not None:
        pass
assert sys.unraisablehook is hook
"""


def test_a_signal_that_python_loses_while_it_frees_an_object_ends_it_at_once() -> None:
    assert_left_at_once(
        subprocess.Popen(
            [sys.executable, "-c", LOST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    )
    assert subprocess.run([sys.executable, "-c", LOST, "no signal"], check=False).returncode == 0

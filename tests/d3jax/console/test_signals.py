"""Ctrl-C and SIGTERM end a process with a documented code and no traceback, whatever it does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from d3jax.console.exits import INTERRUPTED, TERMINATED
from d3jax.console.signals import interrupts
from d3jax.errors import Preempted


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C interrupts these tests, also where a shell has put them in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


START = """
import os, sys, time
from pathlib import Path
from d3jax.console.endings import ending
from d3jax.console.signals import *
from d3jax.console.terminal import Console
leave_at_once()
leave_on_second_ctrl_c()
def ready():
    print("ready", flush=True)
"""
WAIT = """
with ending(["wait"], Console(stderr=True)):
    try:
        ready()
        time.sleep(60)
    finally:
        Path(sys.argv[1]).write_text("cleared")
"""
SWALLOWED = """
class Deaf:
    def __del__(self):
        ready()
        time.sleep(60)
with ending(["wait"], Console(stderr=True)):
    deaf = Deaf()
    del deaf
    time.sleep(60)
"""
IMPORTING = """
folder = Path(sys.argv[1])
folder.mkdir()
lines = "import time", "print('ready', flush=True)", "time.sleep(0.5)"
(folder / "slow.py").write_text("\\n".join(lines))
sys.path.append(sys.argv[1])
with ending(["wait"], Console(stderr=True)):
    import slow
    time.sleep(60)
"""
COMPUTING = """
import hashlib
with ending(["wait"], Console(stderr=True)):
    ready()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
OF_ITS_OWN = """
class QueryStopped(Exception): ...
with ending(["wait"], Console(stderr=True)):
    try:
        ready()
        time.sleep(60)
    except BaseException:
        raise QueryStopped("interrupted")
"""
TRAINING = """
with ending(["wait"], Console(stderr=True)), stop_signals() as should_stop:
    ready()
    while not should_stop(0):
        time.sleep(0.01)
    print("saved")
    time.sleep(float(sys.argv[1]))
"""
ENDED = """
with ending(["wait"], Console(stderr=True)):
    pass
ready()
time.sleep(60)
"""


def ended_by(script: str, *numbers: int, argument: str = "", pause: float = 0.2) -> tuple[int, str]:
    """The exit code and what was said after the signals."""
    command = [sys.executable, "-c", START + script, argument]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        time.sleep(pause)
        process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)]
)
@pytest.mark.parametrize("script", [WAIT, SWALLOWED, IMPORTING, OF_ITS_OWN, ENDED])
def test_one_signal_ends_a_command(number: int, code: int, script: str, tmp_path: Path) -> None:
    assert ended_by(script, number, argument=str(tmp_path / "file")) == (code, "")
    if script == WAIT:
        assert (tmp_path / "file").read_text() == "cleared"


def test_a_second_ctrl_c_ends_what_no_handler_interrupts() -> None:
    assert ended_by(COMPUTING, signal.SIGINT, signal.SIGINT) == (INTERRUPTED, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_loop_that_trains_is_asked(number: int) -> None:
    heard = "stopping after this step, which saves the run; Ctrl-C once more ends it at once"
    assert ended_by(TRAINING, number, argument="0") == (0, f"\n{heard}\nsaved\n")


def test_a_second_ctrl_c_does_not_wait_for_a_loop_that_trains() -> None:
    code, _ = ended_by(TRAINING, signal.SIGINT, signal.SIGINT, argument="60")
    assert code == INTERRUPTED


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)]
)
def test_a_signal_while_the_command_is_imported(number: int, code: int) -> None:
    script = (
        "import signal, sys, types, os\n"
        "class Late:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'd3jax.cli':\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Late())\n"
        "from d3jax.__main__ import main\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script, "check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (code, "")


def test_a_programs_ctrl_c_saves_first_and_raises_then() -> None:
    def train() -> None:
        with interrupts() as stop:
            assert not stop(3)
            signal.raise_signal(signal.SIGINT)
            assert stop(4)
            raise Preempted("stopped after step 4, which is saved")

    with pytest.raises(KeyboardInterrupt, match=r"^stopped after step 4, which is saved$"):
        train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_programs_second_ctrl_c_raises_at_once() -> None:
    reached = []

    def train() -> None:
        with interrupts():
            for time in (1, 2):
                signal.raise_signal(signal.SIGINT)
                reached.append(time)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert reached == [1]


def test_a_programs_ctrl_c_is_not_lost_where_nothing_stops() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts():
        signal.raise_signal(signal.SIGINT)


def test_a_programs_own_handlers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(1))
    try:
        with interrupts() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop(1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [1]

"""A run that was killed, at any moment, ends with the bits of one that never was."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from d3jax.cli import main
from d3jax.evaluate import trainer_for
from d3jax.parameters import named_leaves
from d3jax.run import open_run
from tests.cases import cases
from tests.conftest import QUICKLY
from tests.flags import LONG

ROOT = Path(__file__).parents[2]
FLAGS = [*LONG, "--start-ratio", "0.5"]
"""33 steps an epoch; the second half of the run weighs rows."""

Moment = Callable[[Path], bool]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """One device, and programs that compile quickly: most of the time is spent on starting."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICKLY,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


@contextmanager
def launched(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A `d3jax` process; it doesn't outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from d3jax.cli import main; main()", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(environment: dict[str, str], *arguments: str) -> str:
    """What a process that succeeds says."""
    with launched(environment, *arguments) as process:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
    return said


def freeze(process: subprocess.Popen[str], run: Path, arrived: Moment) -> None:
    """Stops the process in the moment, which thus can't pass before what is done next."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if arrived(run):
            process.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            if arrived(run):
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    pytest.fail("the moment never came")


def saved(run: Path) -> list[int]:
    """The steps of the whole checkpoints on disk, oldest first."""
    return sorted(int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit())


def started(run: Path) -> bool:
    return (run / "metrics.jsonl").exists()


def before_any_checkpoint(run: Path) -> bool:
    return started(run) and not any(run.glob("checkpoints/*"))


def during_the_first_save(run: Path) -> bool:
    return not saved(run) and any(run.glob("checkpoints/*.orbax-checkpoint-tmp"))


def within_the_first_epoch(run: Path) -> bool:
    return bool(saved(run)) and saved(run)[-1] in (7, 14, 21, 28)


def within_the_second_epoch(run: Path) -> bool:
    # Not where losses were just logged: those since then must survive in the checkpoint.
    return bool(saved(run)) and 35 < saved(run)[-1] < 66 and saved(run)[-1] % 5 != 0


KILLS = {
    "once": [within_the_second_epoch],
    "three times": [before_any_checkpoint, during_the_first_save, within_the_second_epoch],
}


def ending(run: Path) -> dict[str, bytes]:
    """All that a run leaves: its files, and the newest checkpoint's progress and arrays."""
    opened = open_run(run)
    checkpoints = opened.checkpoints(writer=False)
    restored = checkpoints.restore(trainer_for(opened).abstract)
    checkpoints.close()
    files = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "evaluation.json")}
    arrays = {name: np.asarray(a).tobytes() for name, a in named_leaves(restored.state).items()}
    return {**files, **arrays, "progress": json.dumps(restored.progress).encode()}


def assert_same_ending(run: Path, other: dict[str, bytes]) -> None:
    """Equal bits; the names of what differs are told before any of the bytes."""
    ours = ending(run)
    assert ours.keys() == other.keys()
    assert [name for name in ours if ours[name] != other[name]] == []


@pytest.fixture(scope="module")
def start(prepared: Path, small: list[str]) -> Callable[[Path], list[str]]:
    """The arguments that start the run of these tests in a given directory."""
    return lambda run: ["train", str(prepared), "--out", str(run), *FLAGS, *small]


@pytest.fixture(scope="module")
def uninterrupted(
    environment: dict[str, str],
    start: Callable[[Path], list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(environment, *start(run))
    return ending(run)


@pytest.mark.slow
def test_the_comparison_covers_the_optimizer_the_key_and_the_losses(
    uninterrupted: dict[str, bytes],
) -> None:
    names = " ".join(uninterrupted)
    assert all(part in names for part in ("params", ".mu", ".nu", "step", "key"))
    assert json.loads(uninterrupted["progress"])["step"] == 99
    assert uninterrupted["metrics.jsonl"].count(b"train/loss") == 20
    assert uninterrupted["metrics.jsonl"].count(b"validation/overall/auc") == 7


@pytest.mark.parametrize("kills", cases(KILLS, quick=["once"]))
def test_a_killed_run_ends_with_the_same_bits(
    kills: str,
    environment: dict[str, str],
    start: Callable[[Path], list[str]],
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    arguments = start(run)
    for moment in KILLS[kills]:
        with launched(environment, *arguments) as process:
            freeze(process, run, moment)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert moment(run)
        assert not (run / "evaluation.json").exists()
        arguments = ["train", "--resume", str(run)]
    newest = saved(run)[-1]
    assert f"resuming after step {newest}" in finish(environment, *arguments)
    assert_same_ending(run, uninterrupted)


@pytest.mark.slow
def test_a_run_asked_to_stop_saves_its_step_and_ends_with_the_same_bits(
    environment: dict[str, str],
    start: Callable[[Path], list[str]],
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with launched(environment, *start(run)) as process:
        freeze(process, run, within_the_first_epoch)
        with pytest.raises(SystemExit, match=r"^2$"):
            main(["train", "--resume", str(run)])
        second = f"process {process.pid} is training {run} already; wait for it, or stop it"
        assert second in capsys.readouterr().err.replace("\n", "")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 75, said
    stopped = re.search(r"stopped after step (\d+), which is saved; resume to go on", said)
    assert stopped, said
    assert saved(run)[-1] == int(stopped[1])
    assert f"resuming after step {stopped[1]}" in finish(environment, "train", "--resume", str(run))
    assert_same_ending(run, uninterrupted)


def test_resuming_a_finished_run_only_evaluates_it_again(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ending(trained)
    figure = (trained / "figures" / "attention.png").read_bytes()
    (trained / "evaluation.json").unlink()
    main(["train", "--resume", str(trained)])
    assert "resuming after step 18" in capsys.readouterr().err
    assert_same_ending(trained, before)
    assert (trained / "figures" / "attention.png").read_bytes() == figure


@pytest.mark.slow
def test_a_run_killed_at_twelve_random_moments_ends_with_the_same_bits(
    environment: dict[str, str],
    start: Callable[[Path], list[str]],
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    arguments = start(run)
    moments = random.Random(20240226)
    killed = 0
    while killed < 12 and not (run / "evaluation.json").exists():
        with launched(environment, *arguments) as process:
            freeze(process, run, started)
            process.send_signal(signal.SIGCONT)
            time.sleep(moments.uniform(0.5, 4.0))
            process.kill()
            killed += process.wait() == -signal.SIGKILL
        arguments = ["train", "--resume", str(run)]
    finish(environment, *arguments)
    assert killed >= 3
    assert_same_ending(run, uninterrupted)

"""Two processes of four devices train, evaluate, stop and fail as one run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from d3jax.cli import parse
from d3jax.errors import ConfigError
from d3jax.evaluate import trainer_for
from d3jax.parameters import named_leaves
from d3jax.run import open_run
from tests.flags import LONG

ROOT = Path(__file__).parents[3]
TWO_EPOCHS = ["--batch-size", "256", "--epochs", "2", "--log-every", "4", "--patience", "0"]
"""The flags of the run `trained`."""

Process = subprocess.Popen[str]
Moment = Callable[[], bool]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Compiled programs are shared by the processes, which spend most of their time starting."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def launched(
    environment: dict[str, str], devices: int, *flags: Sequence[str]
) -> Iterator[list[Process]]:
    """A `d3jax train` for each list of flags; none outlives the block."""
    forced = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    with ExitStack() as stack:
        processes = []
        for arguments in flags:
            process = subprocess.Popen(
                [sys.executable, "-c", "from d3jax.cli import main; main()", *arguments],
                cwd=ROOT,
                env=environment | forced,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def pair(*arguments: str) -> list[list[str]]:
    """The flags of two processes that meet."""
    meeting = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    return [["train", *arguments, *meeting, "--process", str(index)] for index in (0, 1)]


def ends(processes: Sequence[Process]) -> list[str]:
    """What each process has said, without the chatter of Gloo, once all have ended."""
    said = [process.communicate(timeout=240)[0] for process in processes]
    return [re.sub(r"(?m)^\[Gloo\].*\n", "", text) for text in said]


def finish_pair(environment: dict[str, str], *arguments: str) -> list[str]:
    with launched(environment, 4, *pair(*arguments)) as processes:
        said = ends(processes)
        assert [process.returncode for process in processes] == [0, 0], said
    return said


def finish_alone(environment: dict[str, str], *arguments: str) -> str:
    with launched(environment, 8, ["train", *arguments]) as processes:
        [said] = ends(processes)
        assert processes[0].returncode == 0, said
    return said


def wait_for(processes: Sequence[Process], moment: Moment) -> None:
    deadline = time.monotonic() + 240
    while not moment():
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.01)


def saved(run: Path) -> list[int]:
    return sorted(int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit())


def lines(run: Path) -> list[dict[str, float]]:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def final_state(run: Path) -> dict[str, np.ndarray]:
    opened = open_run(run)
    checkpoints = opened.checkpoints(writer=False)
    state = checkpoints.restore(trainer_for(opened).abstract).state
    checkpoints.close()
    return {name: np.asarray(array) for name, array in named_leaves(state).items()}


def assert_same_ending(run: Path, other: Path, bits: bool = False) -> None:
    """Equal metrics and arrays, but for the rounding of sums that are taken in another order.

    Of moments and parameters the largest error counts: near 0 it is large beside the number.
    """
    for ours, theirs in zip(lines(run), lines(other), strict=True):
        assert ours == (theirs if bits else pytest.approx(theirs, rel=1e-5))
    mine, expected = final_state(run), final_state(other)
    assert mine.keys() == expected.keys()
    for name, array in expected.items():
        limit = 0.0 if bits else 2e-4 * np.abs(array).max()
        np.testing.assert_allclose(mine[name], array, rtol=0, atol=limit, err_msg=name)


def test_two_processes_train_and_evaluate_as_one(
    environment: dict[str, str], trained: Path, prepared: Path, small: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first, second = finish_pair(environment, str(prepared), "--out", str(run), *TWO_EPOCHS, *small)
    assert "8 cpu devices" in first
    assert "test rows, best weights" in first
    assert second == ""
    assert_same_ending(run, trained)
    ours, theirs = (
        json.loads((path / "evaluation.json").read_text())["overall"] for path in (run, trained)
    )
    assert ours["rows"] == theirs["rows"] == 600
    assert ours["auc"] == theirs["auc"]
    assert ours["logloss"] == pytest.approx(theirs["logloss"], rel=1e-6)
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert (run / "figures" / "attention.png").exists()


@pytest.mark.slow
def test_a_process_with_other_flags_is_named_and_nothing_is_made(
    environment: dict[str, str], prepared: Path, small: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first, second = pair(str(prepared), "--out", str(run), *TWO_EPOCHS, *small)
    with launched(environment, 4, first, [*second, "--seed", "5"]) as processes:
        said = ends(processes)
        assert [process.returncode for process in processes] == [2, 2], said
    for text in said:
        assert (
            "process 1 runs something else than process 0 (config.train.seed: 0 -> 5); "
            "give all processes the same flags" in text
        )
    assert not run.exists()


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_the_other(
    environment: dict[str, str], trained: Path, prepared: Path
) -> None:
    with launched(environment, 4, *pair(str(prepared), "--out", str(trained))) as processes:
        first, second = ends(processes)
        assert [process.returncode for process in processes] == [2, 2], (first, second)
    assert f"error: {trained} exists; go on with it by --resume" in first
    assert f"error: process 0 stopped: {trained} exists; go on with it by --resume" in second


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_with_an_error_of_its_own_says_it_and_ends_the_other(
    victim: int, environment: dict[str, str], prepared: Path, small: list[str], tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(prepared, damaged)
    label = np.load(damaged / "train" / "label.npy")
    label[17] = 3
    np.save(damaged / "train" / "label.npy", label)
    flags = pair(str(prepared), "--out", str(tmp_path / "run"), *TWO_EPOCHS, *small)
    flags[victim][1] = str(damaged)
    with launched(environment, 4, *flags) as processes:
        said = ends(processes)
        assert [process.returncode for process in processes] == [2, 2], said
    assert "error: " in said[victim]
    assert "row 17" in said[victim]
    assert "of this run ended" not in said[victim]
    # Process 0 reads the data for both when it makes the run, and tells the other what is wrong.
    told = "of this run ended" if victim else "stopped: label 3.0 in row 17"
    assert f"error: process {victim} {told}" in said[1 - victim]
    assert "Check failure" not in said[1 - victim]
    assert "unforeseen" not in said[1 - victim]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_at_once_and_the_run_goes_on_alone(
    victim: int,
    environment: dict[str, str],
    alone: Path,
    prepared: Path,
    small: list[str],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with launched(
        environment, 4, *pair(str(prepared), "--out", str(run), *LONG, *small)
    ) as processes:
        wait_for(processes, lambda: len(saved(run)) > 0)
        processes[victim].kill()
        killed = time.monotonic()
        survivor = processes[1 - victim]
        [said] = ends([survivor])
        assert time.monotonic() - killed < 5
        assert survivor.returncode == 2, said
    assert (
        f"error: process {victim} of this run ended, so process {1 - victim} stops too; see the "
        f"last words of process {victim}. Resume the run to go on from its newest checkpoint"
    ) in said
    assert "Check failure" not in said
    assert "resuming after step" in finish_alone(environment, "--resume", str(run))
    assert_same_ending(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_at_one_step_and_they_go_on_with_the_same_bits(
    number: signal.Signals,
    environment: dict[str, str],
    together: Path,
    prepared: Path,
    small: list[str],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    step = stop_pair(environment, [str(prepared), "--out", str(run), *LONG, *small], run, number)
    first, second = finish_pair(environment, "--resume", str(run))
    assert f"resuming after step {step}" in first
    assert second == ""
    assert_same_ending(run, together, bits=True)


def stop_pair(
    environment: dict[str, str], arguments: list[str], run: Path, number: signal.Signals
) -> int:
    """Signals process 1 after the first checkpoint; the step after which both stopped."""
    with launched(environment, 4, *pair(*arguments)) as processes:
        wait_for(processes, lambda: len(saved(run)) > 0)
        processes[1].send_signal(number)
        said = ends(processes)
        assert [process.returncode for process in processes] == [75, 75], said
    steps = {re.findall(r"stopped after step (\d+), which is saved", text)[0] for text in said}
    assert steps == {str(saved(run)[-1])}
    return saved(run)[-1]


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(
    environment: dict[str, str], alone: Path, prepared: Path, small: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [str(prepared), "--out", str(run), *LONG, *small]
    step = stop_pair(environment, arguments, run, signal.SIGTERM)
    assert f"resuming after step {step}" in finish_alone(environment, "--resume", str(run))
    assert_same_ending(run, alone)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(
    environment: dict[str, str], alone: Path, prepared: Path, small: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ["train", str(prepared), "--out", str(run), *LONG, *small]
    with launched(environment, 8, flags) as processes:
        wait_for(processes, lambda: len(saved(run)) > 0)
        processes[0].send_signal(signal.SIGTERM)
        [said] = ends(processes)
        assert processes[0].returncode == 75, said
    stopped = saved(run)[-1]
    first, _ = finish_pair(environment, "--resume", str(run))
    assert f"resuming after step {stopped}" in first
    assert_same_ending(run, alone)


@pytest.fixture(scope="module")
def alone(
    environment: dict[str, str],
    prepared: Path,
    small: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An uninterrupted run of one process with eight devices."""
    run = tmp_path_factory.mktemp("alone") / "run"
    finish_alone(environment, str(prepared), "--out", str(run), *LONG, *small)
    return run


@pytest.fixture(scope="module")
def together(
    environment: dict[str, str],
    prepared: Path,
    small: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An uninterrupted run of two processes with four devices each."""
    run = tmp_path_factory.mktemp("together") / "run"
    finish_pair(environment, str(prepared), "--out", str(run), *LONG, *small)
    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator", "a:1"], r"--coordinator, --processes and --process go together"),
        (["--distributed", "--processes", "2"], r"give all four, or --distributed alone"),
        (
            ["--distributed", "--coordinator", "host", "--processes", "2", "--process", "0"],
            r"coordinator is 'host'; it must be HOST:PORT",
        ),
        (
            ["--distributed", "--coordinator", "a:1", "--processes", "2", "--process", "2"],
            r"process is 2; it must be at least 0 and below processes, which is 2",
        ),
    ],
)
def test_flags_that_say_too_little_or_too_much_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(["train", *flags])


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_refused(
    environment: dict[str, str], prepared: Path, tmp_path: Path
) -> None:
    arguments = ["train", str(prepared), "--out", str(tmp_path / "run"), "--distributed"]
    with launched(environment, 4, arguments) as processes:
        [said] = ends(processes)
        assert processes[0].returncode == 2
    assert "--distributed found no cluster around it" in said
    assert "by --coordinator, --processes and --process" in said
    assert not (tmp_path / "run").exists()

"""Kills a training run at random moments, and compares what it comes to with an undisturbed one.

Each victim is resumed after each kill. One that ends before its killer came is compared, and
the next begun, so that kills fall evenly on all parts of a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGUSR1
from typing import NamedTuple

from d3jax.config import Config
from d3jax.console.terminal import Console, Table, styled
from d3jax.data.synthetic import SyntheticConfig, synthetic, write
from d3jax.errors import CheckpointError, ConfigError, TrainingError
from d3jax.owned import building
from d3jax.run import open_run

SYNTHETIC_ROWS = 60_000
FILES = ("metrics.jsonl", "evaluation.json")
"""The files of a run that must come out the same, byte by byte."""

_GLANCE = 0.05
"""Seconds that a process needs to write down where it is."""

# The child writes its stacks to the file named first when it gets SIGUSR1.
_CHILD = """
import faulthandler, signal, sys
stacks = open(sys.argv.pop(1), "w")
faulthandler.register(signal.SIGUSR1, file=stacks)
from d3jax.cli import main
main()
"""


@dataclass(frozen=True)
class Plan:
    """A plan of what to train, how often to kill it, and where everything goes."""

    data: Path | None
    config: Config
    kills: int
    out: Path


class Kill(NamedTuple):
    """One kill: of which victim, how many seconds into its training, what it was doing then,
    and the step that it resumes from (0: the start)."""

    victim: int
    seconds: float
    doing: str
    resumes_from: int


def chaos(plan: Plan, console: Console) -> None:
    """Prints a table of the kills and the verdict; raises `TrainingError` for a difference."""
    data = _lay_out(plan, console)
    seconds, steps = _undisturbed(plan, data)
    console.print(f"undisturbed: {steps} steps in about {seconds:.1f} s; now {plan.kills} kills")
    kills: list[Kill] = []
    differing: dict[int, list[str]] = {}
    moments = random.Random(plan.config.train.seed)
    victim = 0
    while len(kills) < plan.kills:
        victim += 1
        for kill in _disturbed(plan, data, victim, moments, seconds):
            kills.append(kill)
            console.print(f"kill {len(kills)} of {plan.kills}: {kill.doing}")
            if len(kills) == plan.kills:
                break
        _finish(plan, data, victim)
        differing[victim] = differences(plan.out / "undisturbed", plan.out / f"victim-{victim}")
    Console().print(kill_table(kills))
    _conclude(plan, differing, console)


def _lay_out(plan: Plan, console: Console) -> Path:
    """Makes the folder with the settings; returns the data, made up when none is given."""
    if plan.kills < 1:
        raise ConfigError(f"kills is {plan.kills}; it must be at least 1")
    settings = json.dumps({"kills": plan.kills, "config": plan.config.to_json()}, indent=2)
    with building(plan.out, "chaos", cure="choose another --out") as new:
        (new / "settings.json").write_text(settings + "\n", encoding="utf-8")
        if plan.data is None:
            data = synthetic(SyntheticConfig(rows=SYNTHETIC_ROWS, smallest_share=0.05))
            write(data, new / "data")
    console.print(f"everything goes to {plan.out}")
    return plan.out / "data" if plan.data is None else plan.data


@contextmanager
def _training(plan: Plan, data: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that starts the run `name`, or goes on with it; it doesn't outlive the block.

    The processes share compiled programs, for most of their time would go to compiling.
    """
    run = plan.out / name
    fresh = [str(data), "--out", str(run), "--config", str(plan.out / "settings.json")]
    arguments = ["--resume", str(run)] if _began_at(run) else fresh
    programs = str((plan.out / "compiled").resolve())
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": programs}
    command = [sys.executable, "-c", _CHILD, str(plan.out / "stacks.txt"), "train", *arguments]
    with (plan.out / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _undisturbed(plan: Plan, data: Path) -> tuple[float, int]:
    """Trains to the end; the seconds that all its steps take once compiled, and their number."""
    run = plan.out / "undisturbed"
    first: tuple[float, int] | None = None
    with _training(plan, data, run.name) as process:
        while process.poll() is None:
            if first is None and _newest(run):
                first = time.monotonic(), _newest(run)
            time.sleep(0.01)
        _check_ended(plan, process, run.name)
    if first is None or first[1] == _newest(run):
        raise ConfigError("the run has one checkpoint only; use a smaller --checkpoint-every")
    elapsed, taken = time.monotonic() - first[0], _newest(run) - first[1]
    return elapsed * _newest(run) / taken, _newest(run)


def _disturbed(
    plan: Plan, data: Path, victim: int, moments: random.Random, seconds: float
) -> Iterator[Kill]:
    """Kills a run and starts it again until it ends before its moment has come."""
    run = plan.out / f"victim-{victim}"
    while True:
        before = _began_at(run)
        with _training(plan, data, run.name) as process:
            while process.poll() is None and _began_at(run) == before:
                time.sleep(0.01)
            after = moments.uniform(0.0, seconds)
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                doing = _doing(process, plan.out / "stacks.txt", run)
            else:
                return _check_ended(plan, process, run.name)
        if process.returncode == -SIGKILL:
            yield Kill(victim, after, doing, _newest(run))


def _finish(plan: Plan, data: Path, victim: int) -> None:
    name = f"victim-{victim}"
    if not (plan.out / name / "evaluation.json").exists():
        with _training(plan, data, name) as process:
            process.wait()
            _check_ended(plan, process, name)


def _check_ended(plan: Plan, process: subprocess.Popen[bytes], name: str) -> None:
    if process.returncode:
        raise TrainingError(
            f"{name} ended by itself with exit code {process.returncode}; see {plan.out}/{name}.log"
        )


def _doing(process: subprocess.Popen[bytes], stacks: Path, run: Path) -> str:
    """Kills a process; what it was doing, by its own stack and the checkpoint under way."""
    process.send_signal(SIGUSR1)
    deadline = time.monotonic() + 1
    while stacks.stat().st_size == 0 and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(_GLANCE)
    process.kill()
    process.wait()
    # The main thread's stack comes last.
    stack = stacks.read_text(encoding="utf-8").rpartition("hread 0x")[2]
    doing = next((name for mark, name in _MARKS.items() if mark in stack), "starting or ending")
    if not (step := _unfinished(run)):
        return doing
    return f"saving {step}" if doing == "saving" else f"{doing}, saving {step}"


def _unfinished(run: Path) -> str | None:
    """The step whose checkpoint the process that began last was writing, if any."""
    began = (run / "metrics.jsonl").stat().st_mtime_ns
    paths = run.glob("checkpoints/*.orbax-checkpoint-tmp")
    steps = [path.name.partition(".")[0] for path in paths if path.stat().st_mtime_ns > began]
    return f"step {steps[0]}" if steps else None


_MARKS = {
    " in evaluate_split\n": "evaluating the test rows",
    " in conclude\n": "reporting",
    " in evaluate\n": "evaluating",
    " in restore\n": "restoring",
    " in save\n": "saving",
    " in fit\n": "training",
}
"""Functions on a stack, the telling ones first."""


def _newest(run: Path) -> int:
    """The newest checkpoint on disk; 0 when there is none."""
    return max((int(p.name) for p in run.glob("checkpoints/*") if p.name.isdecimal()), default=0)


def _began_at(run: Path) -> int | None:
    """Changes when the loop of a process begins, which rewrites the journal; None before any."""
    path = run / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def differences(ours: Path, theirs: Path) -> list[str]:
    """Return the differences of two finished runs: files by bytes, checkpoints by arrays."""
    names = [name for name in FILES if (ours / name).read_bytes() != (theirs / name).read_bytes()]
    expected, found = _final_arrays(ours), _final_arrays(theirs)
    return names + [
        name
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def _final_arrays(directory: Path) -> dict[str, bytes]:
    """The arrays of every checkpoint that a run kept: parameters, moments, adapter state, key."""
    with open_run(directory).checkpoints(writer=False) as checkpoints:
        arrays = {
            f"checkpoint {step}, {name}": array.tobytes()
            for step in checkpoints.steps()
            for name, array in checkpoints.arrays(step).items()
        }
    if not arrays:
        raise CheckpointError(f"{directory} has no checkpoint; see its log beside it")
    return arrays


def kill_table(kills: list[Kill]) -> Table:
    """One line a kill."""
    table = Table(title="kills")
    for column in ("kill", "run", "after s", "while", "resumed from"):
        table.add_column(column, justify="left" if column == "while" else "right")
    for number, kill in enumerate(kills, start=1):
        start = f"step {kill.resumes_from}" if kill.resumes_from else "the start"
        table.add_row(f"{number}", f"{kill.victim}", f"{kill.seconds:.2f}", kill.doing, start)
    return table


def _conclude(plan: Plan, differing: dict[int, list[str]], console: Console) -> None:
    told = [f"victim-{n}: {', '.join(names[:5])}" for n, names in differing.items() if names]
    if told:
        raise TrainingError(
            f"killed runs differ from the undisturbed one ({'; '.join(told)}); "
            f"all are kept in {plan.out}"
        )
    count = len(_final_arrays(plan.out / "undisturbed"))
    console.print(
        styled("the same to the last bit:", "bold green"),
        f"{len(differing)} runs killed {plan.kills} times "
        f"and the undisturbed one, in {count} arrays of their checkpoints, {' and '.join(FILES)}",
    )

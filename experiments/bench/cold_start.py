"""The time that a user waits: for the help, and for the first step of a training run.

python -m experiments.bench.cold_start

Each command runs in a process of its own, from an empty cache of compiled programs, and then
again with what the time before left in it. The file cache of the system is warm.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

from d3jax.console.terminal import Console, Table

HELP = [sys.executable, "-m", "d3jax", "--help"]
FIRST_STEP = [sys.executable, "-m", "experiments.bench.first_step", "train"]


@dataclass(frozen=True)
class ColdStart:
    """The number of runs of each command, and their data."""

    repeats: int = 5
    prepared: Path | None = None
    """A prepared directory to train on too, beside the embedded data."""
    preset: str = "movielens"
    """With these settings."""


def seconds(command: Sequence[str], cache: Path) -> float:
    """Wall time of a command that keeps its compiled programs in `cache`; raises
    `subprocess.CalledProcessError` when it fails."""
    start = time.perf_counter()
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def first_steps(arguments: Sequence[str], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds to the first step without compiled programs, and with those of the run before."""
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            for found, name in ((cold, "first"), (warm, "second")):
                command = [*FIRST_STEP, *arguments, "--out", str(place / name)]
                found.append(seconds(command, place / "cache"))
    return cold, warm


def main(bench: ColdStart) -> None:
    """Measures and prints the table."""
    measured = {"d3jax --help": [seconds(HELP, Path()) for _ in range(bench.repeats)]}
    runs: dict[str, list[str]] = {"d3jax train": []}
    if bench.prepared:
        title = f"d3jax train {bench.prepared.name} --preset {bench.preset}"
        runs[title] = [str(bench.prepared.resolve()), "--preset", bench.preset]
    for name, arguments in runs.items():
        cold, warm = first_steps(arguments, bench.repeats)
        measured |= {f"{name}: first step": cold, f"{name}: first step, compiled before": warm}
    table = Table(title=f"seconds, {bench.repeats} runs each")
    for heading in ("", "median", "least", "most"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in measured.items():
        table.add_row(
            name, *(f"{value:.2f}" for value in (median(values), min(values), max(values)))
        )
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(ColdStart))

"""How many rows a second the loader shuffles out of memory-mapped columns.

python -m experiments.bench.loader --rows 5000000 --fields 24
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from data_pipelines.columns import Rows
from data_pipelines.loader import training_batches


@dataclass(frozen=True)
class LoaderBench:
    """The size of the made-up file and of its batches, and how many batches are timed."""

    rows: int = 5_000_000
    fields: int = 24
    batch_size: int = 2048
    steps: int = 2000


def write_columns(bench: LoaderBench, directory: Path) -> Rows:
    """Columns of random values under `directory`, memory-mapped; their pages are in the cache."""
    rng = np.random.default_rng(0)
    columns = {
        "ids": rng.integers(0, 1000, (bench.rows, bench.fields), np.int32),
        "scenario": rng.integers(0, 3, bench.rows, np.int32),
        "label": rng.integers(0, 2, bench.rows).astype(np.float32),
    }
    for name, column in columns.items():
        np.save(directory / f"{name}.npy", column)
    return Rows(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in columns))


def private_memory() -> float:
    """MB of this process that are its own, without the pages of mapped files (Linux only)."""
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if "RssAnon" in line)
    return int(kilobytes) / 1024


def measure(rows: Rows, bench: LoaderBench, workers: int) -> tuple[float, float]:
    """(rows a second after the first batch, growth of private memory in MB)."""
    before = private_memory()
    batches = training_batches(
        rows,
        batch_size=bench.batch_size,
        seed=0,
        start_step=0,
        stop_step=bench.steps + 1,
        workers=workers,
    )
    next(batches)
    start = time.perf_counter()
    count = sum(int(batch.mask.sum()) for batch in batches)
    return count / (time.perf_counter() - start), private_memory() - before


def main(bench: LoaderBench) -> None:
    """Prints a line for each number of reader processes."""
    table = Table("workers", "rows/s", "memory growth, MB")
    with tempfile.TemporaryDirectory() as directory:
        rows = write_columns(bench, Path(directory))
        for workers in (0, 2):
            speed, growth = measure(rows, bench, workers)
            table.add_row(str(workers), f"{speed:,.0f}", f"{growth:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(LoaderBench))

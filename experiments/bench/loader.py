"""The rows a second that the loader shuffles out of memory-mapped columns.

python -m experiments.bench.loader --rows 5000000 --fields 24
python -m experiments.bench.loader --rows 20000000 --window-rows 262144 --cold --steps 300

With `--cold` no page of the files is in memory at the start, as when they don't fit.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from d3jax.console.terminal import Console, Table
from d3jax.data.columns import Rows
from d3jax.data.loader import training_batches


@dataclass(frozen=True)
class LoaderBench:
    """The size of the made-up file and of its batches, and how many batches are timed."""

    rows: int = 5_000_000
    fields: int = 24
    batch_size: int = 2048
    steps: int = 2000
    window_rows: int | None = None
    """Also time a shuffle inside windows of so many rows."""
    cold: bool = False
    """Drop the files from the page cache before each measurement (Linux only)."""
    directory: Path | None = None
    """The folder of the file; a temporary one when None."""


def write_columns(bench: LoaderBench, directory: Path) -> None:
    """Columns of random values under `directory`, on the disk and in the page cache."""
    rng = np.random.default_rng(0)
    columns = {
        "ids": rng.integers(0, 1000, (bench.rows, bench.fields), np.int32),
        "scenario": rng.integers(0, 3, bench.rows, np.int32),
        "label": rng.integers(0, 2, bench.rows).astype(np.float32),
    }
    for name, column in columns.items():
        with (directory / f"{name}.npy").open("wb") as file:
            np.save(file, column)
            os.fsync(file.fileno())


def drop_from_cache(directory: Path) -> None:
    """Makes the kernel forget the pages of the columns, which must not be mapped."""
    for name in Rows._fields:
        with (directory / f"{name}.npy").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_from_disk() -> float:
    """MB that this process, without its reader processes, has had read from disk (Linux only)."""
    counters = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in counters if line.startswith("read_bytes"))) / 1e6


def private_memory() -> float:
    """MB of this process that are its own, without the pages of mapped files (Linux only)."""
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if "RssAnon" in line)
    return int(kilobytes) / 1024


def measure(
    directory: Path, bench: LoaderBench, workers: int, window_rows: int | None
) -> tuple[float, float, float]:
    """(rows a second after the first batch, growth of private memory in MB, MB read from disk)."""
    if bench.cold:
        drop_from_cache(directory)
    rows = Rows(*(np.load(directory / f"{name}.npy", mmap_mode="r") for name in Rows._fields))
    memory, disk = private_memory(), read_from_disk()
    batches = training_batches(
        rows,
        batch_size=bench.batch_size,
        seed=0,
        start_step=0,
        stop_step=bench.steps + 1,
        workers=workers,
        window_rows=window_rows,
    )
    next(batches)
    start = time.perf_counter()
    count = sum(int(batch.mask.sum()) for batch in batches)
    speed = count / (time.perf_counter() - start)
    return speed, private_memory() - memory, read_from_disk() - disk


def main(bench: LoaderBench) -> None:
    """Prints a line for each shuffle and number of reader processes."""
    table = Table("shuffle", "workers", "rows/s", "memory growth, MB", "read, MB")
    windows = dict.fromkeys((None, bench.window_rows))
    with tempfile.TemporaryDirectory(dir=bench.directory) as folder:
        directory = Path(folder)
        write_columns(bench, directory)
        for window in windows:
            for workers in (0, 2):
                speed, growth, disk = measure(directory, bench, workers, window)
                name = "all rows" if window is None else f"{window:,} rows"
                # What reader processes read is not counted in this one.
                read = "" if workers else f"{disk:,.0f}"
                table.add_row(name, str(workers), f"{speed:,.0f}", f"{growth:.1f}", read)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(LoaderBench))

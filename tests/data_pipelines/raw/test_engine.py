"""The embedded engine spills where it is told to, and what it prepares doesn't depend on it."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import ibis
import pyarrow as pa
import pytest

from data_pipelines.prepare import prepare
from data_pipelines.raw.engine import duckdb_engine
from data_pipelines.source import FieldSource, PrepareConfig, Source

NUM_ROWS = 800_000


def to_source(connection: ibis.BaseBackend) -> Source:
    """Rows with two long texts, so that the sort exceeds a small memory."""
    numbers = range(NUM_ROWS)
    table = {
        "user": [f"user {n % 90_001}".ljust(40, ".") for n in numbers],
        "item": [f"item {n * n % 70_001}".ljust(40, ".") for n in numbers],
        "time": list(numbers),
        "label": [n % 2 for n in numbers],
        "scenario": [n % 3 % 2 for n in numbers],
    }
    connection.con.register("raw", pa.table(table))
    return Source(
        rows=connection.table("raw"),
        fields=(FieldSource("user"), FieldSource("item")),
        scenarios=("a", "b"),
        scenario_field="place",
        scenario_values={},
        key=("user", "time"),
        label_rule="label",
    )


def hashes(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_settings(tmp_path: Path) -> None:
    connection = duckdb_engine(tmp_path, "256MiB", threads=3)
    names = ("memory_limit", "temp_directory", "threads", "preserve_insertion_order")
    found = connection.con.execute(
        f"select {', '.join(f'current_setting({name!r})' for name in names)}"
    ).fetchone()
    assert found == ("256.0 MiB", str(tmp_path / "spilled"), 3, False)


@pytest.mark.slow
def test_little_memory_gives_the_same_bytes(tmp_path: Path) -> None:
    """The memory holds a fraction of the rows: they pass through the disk.

    With one thread these rows need 40 to 60 MB at least, and spill below 110.
    """
    small = duckdb_engine(tmp_path, "80MB", threads=1)
    spilled, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not (done.wait(0.001) or spilled.is_set()):
            if any((tmp_path / "spilled").glob("*")):
                spilled.set()

    watching = threading.Thread(target=watch)
    watching.start()
    prepare(to_source(small), tmp_path / "small", PrepareConfig())
    done.set()
    watching.join()
    assert spilled.is_set()
    prepare(to_source(ibis.duckdb.connect(threads=1)), tmp_path / "large", PrepareConfig())
    assert hashes(tmp_path / "small") == hashes(tmp_path / "large")

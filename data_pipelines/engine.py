"""The embedded engine, told how much memory it may take and where it may spill."""

from __future__ import annotations

from pathlib import Path

import ibis

MEMORY = "2GB"
"""What DuckDB may hold at once. The process takes up to twice as much: the operators that can't
spill, Arrow and Python are not counted."""


def duckdb_engine(
    scratch: Path, memory: str = MEMORY, threads: int | None = None
) -> ibis.BaseBackend:
    """DuckDB in this process, which spills to the folder `scratch` what exceeds `memory`.

    `scratch` needs room for about twice the raw rows, best on the disk of the prepared directory.
    `threads` is the number of cores when None.
    """
    settings: dict[str, str | int | bool] = {
        "memory_limit": memory,
        "temp_directory": str(scratch / "spilled"),
        # Rows without an order of their own may leave in any; to keep them in line costs memory.
        "preserve_insertion_order": False,
    }
    if threads is not None:
        settings["threads"] = threads
    return ibis.duckdb.connect(**settings)

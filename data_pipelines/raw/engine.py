"""The engines: DuckDB in this process, told how much memory it may take, and Spark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ibis

from d3jax.errors import ConfigError

MEMORY = "2GB"
"""The memory that DuckDB may hold at once. The process takes up to twice as much: the
operators that can't spill, Arrow and Python are not counted."""


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


def read_parquet(connection: ibis.BaseBackend, path: Path) -> ibis.Table:
    """Return the rows of just this file, or folder of files that an engine wrote.

    To an engine a path is a pattern, and `click=1` in one a column; here it is neither.
    """
    if connection.name == "duckdb":
        return connection.read_parquet(_literal(path), hive_partitioning=False)
    return connection.read_parquet(re.sub(r"([\\*?\[\]{}])", r"\\\1", str(path)))


def read_csv(connection: ibis.BaseBackend, path: Path, **options: Any) -> ibis.Table:
    """Return the rows of just this file, as DuckDB reads them with the given options."""
    return connection.read_csv(_literal(path), hive_partitioning=False, **options)


def _literal(path: Path) -> str:
    """A pattern of DuckDB's that only this path matches."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))


def write_parquet(table: ibis.Table, path: Path) -> None:
    """Write what an expression gives to a file, or to a folder of files where the engine does."""
    connection = table.get_backend()
    if connection.name != "duckdb":
        connection.to_parquet(table, path)
        return
    # Ibis quotes a path as Python does, which isn't how SQL does.
    quoted = "'" + str(path).replace("'", "''") + "'"
    connection.raw_sql(f"COPY ({connection.compile(table)}) TO {quoted} (FORMAT parquet)")


def text_parser(connection: ibis.BaseBackend, scratch: Path | None) -> ibis.BaseBackend:
    """DuckDB, which splits lines into columns for other engines too: `connection` if it is one."""
    if connection.name == "duckdb":
        return connection
    if scratch is None:
        raise ConfigError(f"the engine {connection.name} needs a folder for the parsed rows")
    return duckdb_engine(scratch)


def hand_over(
    table: ibis.Table, connection: ibis.BaseBackend, scratch: Path | None, name: str
) -> ibis.Table:
    """A parsed table as `connection` sees it: through a file `name` in `scratch` where it must."""
    parser = table.get_backend()
    if parser is connection or scratch is None:
        return table
    write_parquet(table, scratch / name)
    return read_parquet(connection, scratch / name)


def spark_engine(scratch: Path) -> ibis.BaseBackend:
    """Spark as its usual configuration says: local, or the cluster of SPARK_CONF_DIR or a master.

    Where it runs on many machines, all of them must see `scratch` and the raw files. Raises
    `ConfigError` when pyspark or Java is missing.
    """
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ConfigError(
            f"the engine spark is not installed ({error}); run pip install 'd3jax[spark]'"
        ) from error
    try:
        session = (
            SparkSession.builder.appName("d3jax")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.local.dir", str(scratch))
            .getOrCreate()
        )
    except (PySparkException, RuntimeError) as error:
        raise ConfigError(f"Spark does not start ({error}); it needs Java 17 or newer") from error
    return ibis.pyspark.connect(session)

"""Intermediate tables on disk, where the rows of any number fit and any engine reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.raw.engine import read_parquet, write_parquet

_ROWS = 1 << 18


class Stage(NamedTuple):
    """Writes tables to Parquet files of `folder` and reads them back through `connection`.

    Where the engine runs on many machines, all of them must see `folder`.
    """

    connection: ibis.BaseBackend
    folder: Path

    def __call__(self, name: str, table: ibis.Table) -> ibis.Table:
        """Computes an expression once."""
        self.save(name, table)
        return read_parquet(self.connection, self.folder / name)

    def save(self, name: str, table: ibis.Table) -> None:
        """Computes an expression for `batches` to read."""
        write_parquet(table, self.folder / name)

    def write(self, name: str, layout: pa.Schema, batches: Iterable[pa.RecordBatch]) -> ibis.Table:
        """Hands rows that Python computed to the engine, batch by batch."""
        path = self.folder / name
        with path.open("wb") as file, pq.ParquetWriter(file, layout) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return read_parquet(self.connection, path)

    def batches(self, name: str, size: int = _ROWS) -> Iterator[pa.RecordBatch]:
        """Streams the rows of a stage, in the order of its files where there are several."""
        path = self.folder / name
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        for each in files:
            with each.open("rb") as file, pq.ParquetFile(file) as content:
                yield from content.iter_batches(batch_size=size)


def narrow(table: ibis.Table, *columns: str) -> ibis.Table:
    """A staged table as if it had these columns only.

    To compile an expression takes Ibis as long as its tables are wide: for each field of hundreds
    that would be seconds.
    """
    whole = table.op()
    return whole.copy(schema=ibis.schema({name: whole.schema[name] for name in columns})).to_expr()

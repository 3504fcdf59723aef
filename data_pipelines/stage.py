"""Intermediate tables on disk, where the rows of any number fit and any engine reads them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import ibis
import pyarrow as pa
import pyarrow.parquet as pq


class Stage(NamedTuple):
    """Writes tables to Parquet files of `folder` and reads them back through `connection`.

    Where the engine runs on many machines, all of them must see `folder`.
    """

    connection: ibis.BaseBackend
    folder: Path

    def __call__(self, name: str, table: ibis.Table) -> ibis.Table:
        """Computes an expression once."""
        self.connection.to_parquet(table, self.folder / name)
        return self.connection.read_parquet(self.folder / name)

    def put(self, name: str, table: pa.Table) -> ibis.Table:
        """Hands rows that Python computed to the engine."""
        pq.write_table(table, self.folder / name)
        return self.connection.read_parquet(self.folder / name)

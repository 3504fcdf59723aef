"""Raw rows in any form, a table, a data frame or files, as padded batches of ids."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from d3jax.batch import UNKNOWN, Batch
from d3jax.data.encoder import Encoder
from d3jax.data.format import Format
from d3jax.data.reading import find_files, open_files, raw_batches
from d3jax.data.tables import to_table

SIZES = (16, 128, 1024)
"""Rows of a batch: few sizes, because a program is compiled for each; a small one is quick."""

PLAIN = Format()
"""Text files as they mostly are."""

_PART = 1 << 17

Encoded = tuple[np.ndarray, np.ndarray]
"""Ids [R K] int32 and scenario [R] int32 of R rows."""


def encoded_rows(
    encoder: Encoder, rows: Any, form: Format = PLAIN
) -> Generator[Encoded, None, None]:
    """Yield the rows' ids and scenarios, part by part, in order.

    `rows` is a data frame, Arrow table or dict of columns, or the path of a file or of a folder of
    files, which may be larger than memory. Raises `DataError` for what can't be read, a column
    that is missing and a row of an unknown scenario.
    """
    first = 0
    for where, part in _parts(rows, encoder.columns, form):
        yield encoder.encode(part, first, where)
        first += part.num_rows


def _parts(
    rows: Any, columns: tuple[str, ...], form: Format
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the columns, and what messages call the place they come from."""
    if not isinstance(rows, str | Path):
        table = to_table(rows, columns).combine_chunks()
        yield from (("the table", part) for part in table.to_batches(max_chunksize=_PART))
        return
    with tempfile.TemporaryDirectory() as scratch:
        files = open_files(find_files(Path(rows)), form, Path(scratch))
        yield from ((f"file {files.name}", part) for part in raw_batches(files, columns))


def padded_batches(parts: Iterable[Encoded], devices: int = 1) -> Iterator[Batch]:
    """Yield batches of `SIZES`, rounded up to be shared by the devices, the last one padded.

    Labels are 0, for there are none.
    """
    sizes = [-(-size // devices) * devices for size in SIZES]
    for ids, scenario in parts:
        for start in range(0, len(scenario), sizes[-1]):
            rows = slice(start, start + sizes[-1])
            least = len(scenario[rows])
            yield _padded(ids[rows], scenario[rows], next(n for n in sizes if n >= least))


def _padded(ids: np.ndarray, scenario: np.ndarray, size: int) -> Batch:
    missing = size - len(scenario)
    return Batch(
        ids=np.pad(ids, ((0, missing), (0, 0)), constant_values=UNKNOWN),
        scenario=np.pad(scenario, (0, missing)),
        label=np.zeros(size, np.float32),
        mask=np.arange(size) < len(scenario),
    )

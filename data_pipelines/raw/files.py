"""Raw tables, text or Parquet, as strings in the engine, with the place of any row in its file.

Every table is staged as one Parquet file of strings, so engines can't differ in how they read it.
What a check finds wrong is looked up in the files again, by plain Python, to say where it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from d3jax.data.encoding import kind_of, spell
from d3jax.data.format import Format
from d3jax.data.reading import Files, find_files, open_files, require, text_batches
from d3jax.data.text import read_rows
from d3jax.errors import DataError
from data_pipelines.raw.engine import read_parquet
from data_pipelines.splits import plain

Row = Mapping[str, str | None]
"""A raw row by column; None where it has no value."""


class Raw(NamedTuple):
    """Files of one header as one table with a string column for each of their columns."""

    opened: Files
    table: ibis.Table

    @property
    def name(self) -> str:
        """The name of the table in messages."""
        return self.opened.name

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were read."""
        return self.opened.paths

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return self.opened.columns


def read_raw(
    connection: ibis.BaseBackend,
    source: Path | Sequence[Path],
    scratch: Path,
    form: Format | None = None,
) -> Raw:
    """Reads .parquet or delimited text, a file, a directory or a list, into `connection`.

    An empty value is NULL. The staged rows stay in the folder `scratch`, which all workers of the
    engine must see. Raises `DataError` naming file, line and column for whatever makes the rows
    unreadable or ambiguous, or when the files differ in their headers.
    """
    paths = find_files(source) if isinstance(source, Path) else tuple(source)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    opened = open_files(paths, form or Format(), folder)
    staged = folder / "rows.parquet"
    layout = pa.schema([(name, pa.string()) for name in opened.columns])
    with staged.open("wb") as file, pq.ParquetWriter(file, layout) as writer:
        for batch in text_batches(opened):
            writer.write_batch(batch)
    return Raw(opened, read_parquet(connection, staged))


def require_columns(raw: Raw, names: Sequence[str]) -> None:
    """Raises `DataError` naming the first column that the table lacks, or can't give."""
    require(raw.opened, names)


def check_values(raw: Raw, rules: Mapping[str, tuple[str, str]]) -> None:
    """Checks columns, in one pass, against a regular expression for the whole of each value.

    A rule is the expression and how to say it; a missing value is checked as the empty text.
    Raises `DataError` naming file, line, column, the smallest wrong value and what it should be.
    """
    require_columns(raw, list(rules))
    wrong = []
    for column, (pattern, _) in rules.items():
        text = raw.table[column].fill_null("")
        wrong.append(text.min(where=~text.re_search(f"^(?:{pattern})$")).name(column))
    for column, value in raw.table.agg(wrong).to_pyarrow().to_pylist()[0].items():
        if value is not None:
            place = next(places(raw, lambda row: (row[column] or "") == value))  # noqa: B023
            raise DataError(f"{place}: {column} is {value!r}, not {rules[column][1]}")


def check_unique(raw: Raw, column: str) -> None:
    """Raises `DataError` naming value and lines when a key appears twice: a join would copy rows.

    A missing key joins nothing, so it may repeat.
    """
    require_columns(raw, [column])
    key = plain(raw.table[column])
    repeated = raw.table.group_by(key=key).having(raw.table.count() > 1).agg()
    value = repeated.key.min().to_pyarrow().as_py()
    if value is not None:
        found = ", ".join(islice(places(raw, lambda row: _spelt(row[column]) == value), 3))
        raise DataError(
            f"{column} {value!r} appears more than once: {found}; keep one row for each {column}"
        )


def _spelt(text: str | None) -> str | None:
    """Return what `plain` makes of a text, in the engine."""
    return spell(pa.array([text], pa.string()), kind_of([text]))[0].as_py()


def places(raw: Raw, wanted: Callable[[Row], bool]) -> Iterator[str]:
    """Yield the places of `wanted` rows, such as "file log.csv, line 7", in file order."""
    for place, row in _located(raw):
        if wanted(row):
            yield place


def _located(raw: Raw) -> Iterator[tuple[str, Row]]:
    for text in raw.opened.texts:
        rows = read_rows(text)
        next(rows)
        for number, cells in rows:
            row = dict(zip(raw.columns, (cell or None for cell in cells), strict=True))
            yield f"file {text.path.name}, line {number}", row
    if not raw.opened.texts:
        for path in raw.files:
            number = 0
            for batch in text_batches(raw.opened._replace(paths=(path,))):
                for row in batch.to_pylist():
                    number += 1
                    yield f"file {path.name}, row {number}", row

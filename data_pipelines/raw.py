"""Raw tables, text or Parquet, as strings in the engine, with the place of any row in its file.

Every table is staged as one Parquet file of strings, so engines can't differ in how they read it.
What a check finds wrong is looked up in the files again, by plain Python, to say where it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from d3jax.errors import DataError
from data_pipelines.text import Format, Text, open_text, read_header, read_rows, write_parquet

Row = Mapping[str, str | None]
"""A raw row by column; None where it has no value."""


class Raw(NamedTuple):
    """Files of one header as one table: `table` has a string column for each of `columns`.

    `texts` are the text files in order, none when the files are Parquet.
    """

    files: tuple[Path, ...]
    columns: tuple[str, ...]
    table: ibis.Table
    texts: tuple[Text, ...]

    @property
    def name(self) -> str:
        """What messages call the table."""
        first = self.files[0].name
        return first if len(self.files) == 1 else f"{first} to {self.files[-1].name}"


def read_raw(
    connection: ibis.BaseBackend,
    source: Path | Sequence[Path],
    scratch: Path,
    form: Format | None = None,
) -> Raw:
    """Reads .parquet or delimited text, a file or a directory, glob or list, into `connection`.

    An empty value is NULL. The staged rows stay in the folder `scratch`, which all workers of the
    engine must see. Raises `DataError` naming file, line and column for whatever makes the rows
    unreadable or ambiguous, or when the files differ in their headers.
    """
    files = find_files(source) if isinstance(source, Path) else tuple(source)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    staged = folder / "rows.parquet"
    if all(_is_parquet(file) for file in files):
        texts: tuple[Text, ...] = ()
        columns = _stage_parquet(files, staged)
    else:
        texts = tuple(open_text(file, form or Format(), folder) for file in files)
        columns = _common([(text.path, read_header(text)) for text in texts])
        write_parquet(texts, columns, staged)
    return Raw(files, columns, connection.read_parquet(staged), texts)


def find_files(source: Path) -> tuple[Path, ...]:
    """The file itself, the visible files of a directory, or what a glob matches, by name.

    Raises `DataError` when there is none.
    """
    if source.is_file():
        return (source,)
    if source.is_dir():
        found = [path for path in source.iterdir() if path.is_file() and path.name[0] not in "._"]
    else:
        found = [Path(path) for path in glob(str(source)) if Path(path).is_file()]
    if not found:
        kind = "holds no files" if source.is_dir() else "is missing"
        raise DataError(f"{source} {kind}; give a file, a directory of files or a pattern")
    return tuple(sorted(found))


def require_columns(raw: Raw, names: Sequence[str]) -> None:
    """Raises `DataError` naming the first column that the table lacks."""
    for name in names:
        if name not in raw.columns:
            raise DataError(
                f"file {raw.name} has no column {name!r}; it has {', '.join(raw.columns)}"
            )


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
    repeated = raw.table.group_by(column).having(raw.table.count() > 1).agg()
    value = repeated[column].min().to_pyarrow().as_py()
    if value is not None:
        found = ", ".join(islice(places(raw, lambda row: row[column] == value), 3))
        raise DataError(
            f"{column} {value!r} appears more than once: {found}; keep one row for each {column}"
        )


def places(raw: Raw, wanted: Callable[[Row], bool]) -> Iterator[str]:
    """Where the rows that are `wanted` stand, such as "file log.csv, line 7", in file order."""
    for place, row in _located(raw):
        if wanted(row):
            yield place


def _located(raw: Raw) -> Iterator[tuple[str, Row]]:
    for text in raw.texts:
        rows = read_rows(text)
        next(rows)
        for number, cells in rows:
            row = dict(zip(raw.columns, (cell or None for cell in cells), strict=True))
            yield f"file {text.path.name}, line {number}", row
    if not raw.texts:
        for file in raw.files:
            number = 0
            for batch in _string_batches(file):
                for row in batch.to_pylist():
                    number += 1
                    yield f"file {file.name}, row {number}", row


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() in (".parquet", ".pq")


def _common(headers: Sequence[tuple[Path, tuple[str, ...]]]) -> tuple[str, ...]:
    first, columns = headers[0]
    for file, other in headers[1:]:
        if other != columns:
            raise DataError(
                f"file {file.name} has the columns {', '.join(other)}, but {first.name} has "
                f"{', '.join(columns)}; give files of one header"
            )
    return columns


def _stage_parquet(files: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Copies Parquet files as strings, cast as the rows of a prediction are."""
    columns = _common([(file, _parquet_columns(file)) for file in files])
    layout = pa.schema([(name, pa.string()) for name in columns])
    with pq.ParquetWriter(out, layout) as writer:
        for file in files:
            for batch in _string_batches(file):
                writer.write_batch(batch)
    return columns


def _parquet_columns(file: Path) -> tuple[str, ...]:
    try:
        names = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"file {file.name} can't be read as Parquet ({error})") from error
    if not names:
        raise DataError(f"file {file.name} has no columns")
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise DataError(
                f"file {file.name} has the column {name!r} twice; rename one (capital letters "
                "make no difference)"
            )
        seen.add(name.lower())
    return tuple(names)


def _string_batches(file: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file) as content:
            for batch in content.iter_batches():
                yield _to_strings(batch, file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"file {file.name} can't be read as Parquet ({error})") from error


def _to_strings(batch: pa.RecordBatch, file: Path) -> pa.RecordBatch:
    columns = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            text = column.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"file {file.name}: column {name!r} is {column.type}, which has no text; "
                "give strings or numbers"
            ) from error
        missing = pc.is_in(text, pa.array(["", "nan"] if _is_float(column) else [""]))
        columns.append(pc.if_else(missing, None, text))
    return pa.record_batch(columns, names=batch.schema.names)


def _is_float(column: pa.Array) -> bool:
    return pa.types.is_floating(column.type)

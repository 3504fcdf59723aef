"""The prepared directory: encoded columns, vocabularies and the schema that explains them.

.d3jax                             the marker of what d3jax made
schema.json                        format version, fields, scenarios, how it was prepared
vocabularies/<field>.parquet       value (string), id (int32), count (int64) in train
<split>/ids.npy                    [R K] int32
<split>/scenario.npy, label.npy    [R] int32, [R] float32
checksums.json                     SHA-256 of the other files
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d3jax import owned
from d3jax.batch import Schema
from d3jax.errors import DataError
from d3jax.owned import check_free

FORMAT_VERSION = 1

SPLITS = ("train", "validation", "test")

_AGAIN = "prepare the data again"


class Rows(NamedTuple):
    """R encoded rows: memory maps when read, so only the rows that are touched are loaded."""

    ids: np.ndarray
    scenario: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """A prepared directory: what its columns mean and where they came from."""

    directory: Path
    schema: Schema
    provenance: dict[str, Any]

    def rows(self, split: str) -> Rows:
        """The rows of `split` as memory maps; raises `DataError` when a file can't be mapped."""
        return Rows(*(_map(_column(self.directory, split, name)) for name in Rows._fields))

    def vocabulary(self, field: str) -> pa.Table:
        """Columns `value`, `id`, `count` of `field`, by id from 1; unknown (id 0) has no row."""
        self.schema.index(field)
        return pq.read_table(_existing(vocabulary_path(self.directory, field)))


def vocabulary_path(directory: Path, field: str) -> Path:
    """Where the vocabulary of `field` is; raises `DataError` when its name can't be a file name."""
    if not field or Path(field).name != field:
        raise DataError(f"field {field!r} can't name a file; rename it, without slashes")
    return directory / "vocabularies" / f"{field}.parquet"


def read_schema(directory: Path) -> Prepared:
    """Reads `schema.json` alone, for a directory with vocabularies but no rows, such as a run.

    Raises `DataError` when the file is missing, unreadable or of another format version.
    """
    path = _existing(directory / "schema.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version == FORMAT_VERSION:
            schema = Schema.from_json(content["schema"])
            return Prepared(directory, schema, dict(content["provenance"]))
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {_AGAIN}") from error
    raise DataError(
        f"{path} has format_version {version}; this d3jax reads {FORMAT_VERSION}; {_AGAIN}"
    )


def open_prepared(directory: Path) -> Prepared:
    """Opens a prepared directory and checks that its files agree, without reading the rows.

    Raises `DataError` naming the file that is missing, cut short or of another shape than
    `schema.json` says. `check_rows` looks at the values.
    """
    prepared = read_schema(directory)
    for field in prepared.schema.fields:
        path = _existing(vocabulary_path(directory, field.name))
        _check_vocabulary_size(path, field.size)
    for split in SPLITS:
        count = prepared.provenance.get("rows", {}).get(split, 0)
        if count < 1:
            raise DataError(f"{directory}: split {split!r} has no rows; {_AGAIN}")
        _check_split(prepared, split, count)
    return prepared


def check_rows(prepared: Prepared, chunk: int = 1 << 20) -> None:
    """Streams over every row, `chunk` at a time, and checks ids, scenarios and labels.

    Raises `DataError` naming file, field, row and value; for example ids that exceed the
    vocabulary, which a device would clamp in silence.
    """
    for split in SPLITS:
        rows = prepared.rows(split)
        for start in range(0, len(rows.label), chunk):
            _check_chunk(prepared, split, rows, start, start + chunk)


def check_replaceable(directory: Path, overwrite: bool) -> None:
    """Raises `OutputError` when `directory` exists and can't be replaced by a prepared one."""
    check_free(directory, ("prepared", "synthetic"), overwrite)


def building(
    directory: Path,
    overwrite: bool = False,
    kind: str = "prepared",
    inputs: Sequence[Path] = (),
    need: str = "some",
) -> AbstractContextManager[Path]:
    """`owned.building` of a prepared directory; `prepare` may replace made-up data, but what is
    made up replaces only its like."""
    replaces = ("synthetic",) if kind == "prepared" else ()
    return owned.building(directory, kind, overwrite, replaces, inputs=inputs, need=need)


def write_rows(
    directory: Path, split: str, count: int, num_slots: int, chunks: Iterable[Rows]
) -> None:
    """Streams `chunks` into the columns of `split`, which hold exactly `count` rows.

    Raises `DataError` when there are no rows, or more or fewer than `count`.
    """
    if count < 1:
        raise DataError(f"split {split!r} has no rows to write")
    (directory / split).mkdir(parents=True, exist_ok=True)
    layout = _layout(count, num_slots)
    filled = 0
    with ExitStack() as stack:
        # Written, not mapped: a full disk is then an error, and no page stays in memory.
        files = [
            stack.enter_context(_column(directory, split, name).open("wb")) for name, *_ in layout
        ]
        for file, (_, dtype, shape) in zip(files, layout, strict=True):
            _write_header(file, dtype, shape)
        for chunk in chunks:
            filled += len(chunk.label)
            if filled > count:
                raise DataError(f"split {split!r} got more than the {count} rows that were counted")
            for file, values, (_, dtype, shape) in zip(files, chunk, layout, strict=True):
                block = np.empty((len(chunk.label), *shape[1:]), dtype)
                block[:] = values
                file.write(block.data)
    if filled != count:
        raise DataError(f"split {split!r} got {filled} rows; {count} were counted")


def _write_header(file: BinaryIO, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def write_vocabulary(directory: Path, field: str, table: pa.Table) -> None:
    """Writes columns `value`, `id`, `count` of `field`; equal tables give equal bytes.

    Raises `DataError` when the field's name can't be a file name.
    """
    path = vocabulary_path(directory, field)
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = pa.schema({"value": pa.string(), "id": pa.int32(), "count": pa.int64()})
    # One chunk: the pages of a Parquet file follow the chunks of the table.
    plain = table.select(layout.names).cast(layout).combine_chunks()
    pq.write_table(plain, path, compression="zstd")


def write_schema(directory: Path, schema: Schema, provenance: dict[str, Any]) -> None:
    """Writes `schema.json`, the same bytes for the same content."""
    content = {
        "format_version": FORMAT_VERSION,
        "schema": schema.to_json(),
        "provenance": provenance,
    }
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    (directory / "schema.json").write_text(text + "\n", encoding="utf-8")


def _layout(count: int, num_slots: int) -> list[tuple[str, type[np.generic], tuple[int, ...]]]:
    return [
        ("ids", np.int32, (count, num_slots)),
        ("scenario", np.int32, (count,)),
        ("label", np.float32, (count,)),
    ]


def _column(directory: Path, split: str, name: str) -> Path:
    return directory / split / f"{name}.npy"


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path} is missing; {_AGAIN}, or check that the path is right")
    return path


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(_existing(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); {_AGAIN}") from error


def _check_vocabulary_size(path: Path, size: int) -> None:
    try:
        values = pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); {_AGAIN}") from error
    if values + 1 != size:
        raise DataError(f"{path} has {values} values; schema.json says {size - 1}; {_AGAIN}")


def _check_split(prepared: Prepared, split: str, count: int) -> None:
    layout = _layout(count, prepared.schema.num_slots)
    for column, (name, dtype, shape) in zip(prepared.rows(split), layout, strict=True):
        if column.dtype != dtype or column.shape != shape:
            raise DataError(
                f"{_column(prepared.directory, split, name)} holds {column.dtype} of shape "
                f"{column.shape}; schema.json says {np.dtype(dtype)} of shape {shape}; {_AGAIN}"
            )


def _check_chunk(prepared: Prepared, split: str, rows: Rows, start: int, stop: int) -> None:
    where = f"{prepared.directory / split} (ids.npy, scenario.npy)"
    prepared.schema.check(rows.ids[start:stop], rows.scenario[start:stop], where, start)
    label = rows.label[start:stop]
    bad = ~np.isin(label, (0, 1))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"label {label[row]} in row {start + row} of "
            f"{_column(prepared.directory, split, 'label')} is neither 0 nor 1; {_AGAIN}"
        )

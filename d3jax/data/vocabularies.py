"""The vocabularies of a prepared directory: each field's values, their ids and counts."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d3jax.batch import Field, Schema
from d3jax.data.encoder import FieldCode
from d3jax.data.files import AGAIN, existing
from d3jax.errors import DataError


def vocabulary_path(directory: Path, field: str) -> Path:
    """Return where the vocabulary of `field` is: a name may hold what no file's name can."""
    readable = re.sub("[^A-Za-z0-9_-]+", "-", field).strip("-")[:40]
    digest = hashlib.sha256(field.encode()).hexdigest()[:8]
    return directory / "vocabularies" / f"{readable or 'field'}-{digest}.parquet"


def field_codes(
    directory: Path, schema: Schema, provenance: dict[str, Any]
) -> tuple[FieldCode, ...]:
    """Return the codes of the fields, by the vocabularies of `directory` and the rules beside."""
    separators, edges, hashed = (
        provenance.get(rule, {}) for rule in ("separators", "buckets", "hashed")
    )
    return tuple(
        FieldCode(
            name=each.name,
            kind=each.kind,
            values=_numbered_values(directory, each),
            separator=separators.get(each.name),
            edges=tuple(edges[each.name]) if each.name in edges else None,
            buckets=hashed.get(each.name),
        )
        for each in schema.fields
    )


def _numbered_values(directory: Path, known: Field) -> pa.StringArray:
    table = read_vocabulary(directory, known.name)
    if not np.array_equal(table["id"], np.arange(1, known.size)):
        raise DataError(
            f"the vocabulary of field {known.name!r} in {directory} does not number its values "
            f"from 1 to {known.size - 1}; {AGAIN}"
        )
    return table["value"].combine_chunks()


def read_vocabulary(directory: Path, field: str) -> pa.Table:
    """Return columns `value`, `id`, `count` of `field`. Raises `DataError` when it is damaged."""
    path = vocabulary_path(directory, field)
    try:
        # A path that Arrow is given as such may be a pattern, or say how rows are partitioned.
        with existing(path).open("rb") as file:
            return pq.read_table(file, columns=["value", "id", "count"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); {AGAIN}") from error


def write_vocabulary(directory: Path, field: str, table: pa.Table) -> None:
    """Writes columns `value`, `id`, `count` of `field`; equal tables give equal bytes."""
    path = vocabulary_path(directory, field)
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = pa.schema({"value": pa.string(), "id": pa.int32(), "count": pa.int64()})
    # One chunk: the pages of a Parquet file follow the chunks of the table.
    plain = table.select(layout.names).cast(layout).combine_chunks()
    with path.open("wb") as file:
        pq.write_table(plain, file, compression="zstd")


def check_vocabulary_size(directory: Path, known: Field) -> None:
    """Raises `DataError` unless the vocabulary is as large as the schema says."""
    path = existing(vocabulary_path(directory, known.name))
    try:
        values = _rows_of(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); {AGAIN}") from error
    if values != known.size - 1:
        raise DataError(f"{path} has {values} values; schema.json says {known.size - 1}; {AGAIN}")


def _rows_of(path: Path) -> int:
    with path.open("rb") as file:
        return pq.read_metadata(file).num_rows

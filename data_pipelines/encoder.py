"""Raw values of new rows -> ids, with the vocabularies of a prepared directory.

What `prepare` does to a whole table, done to one batch at a time in the rows' own order: the
same raw values give the same ids.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from d3jax.batch import EMPTY, UNKNOWN, Field, Schema
from d3jax.errors import DataError
from data_pipelines.buckets import assign, hash_ids, number_ids, parse_numbers
from data_pipelines.columns import Prepared

_CSV_BLOCK = 1 << 24
_PARQUET_BATCH = 1 << 17
_INTEGER_AS_FLOAT = r"^(-?[0-9]+)\.0+$"


@dataclass(frozen=True)
class Encoder:
    """Maps strings to ids: `vocabularies[i][id - 1]` is the value of `id` in field i.

    Fields of numbers have the edges of their buckets in `edges`, hashed fields their number of
    buckets in `hashed`. `scenario_edges` divide the numbers of a scenario without named values.
    """

    schema: Schema
    vocabularies: tuple[pa.Array, ...]
    separators: Mapping[str, str]
    scenario_field: str
    scenario_values: Mapping[str, str]
    edges: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    hashed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    scenario_edges: Sequence[float] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that `encode` needs: every field, and what decides the scenario."""
        names = [field.name for field in self.schema.fields]
        return tuple(dict.fromkeys([*names, self.scenario_field]))

    def encode(
        self, batch: pa.RecordBatch, first_row: int = 0, where: str = "the batch"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids [R K] int32 and scenario [R] int32 of the R rows of `batch`, in order.

        A value that the vocabulary lacks gets id 0. Raises `DataError` for an unknown scenario,
        naming the row, counted from 1 after the `first_row` rows before this batch.
        """
        texts = {name: _to_strings(batch.column(name), name, where) for name in self.columns}
        ids = np.empty((batch.num_rows, self.schema.num_slots), np.int32)
        start = 0
        for field, vocabulary in zip(self.schema.fields, self.vocabularies, strict=True):
            slots = ids[:, start : start + field.slots]
            slots[:] = self._encode_field(texts[field.name], vocabulary, field)
            start += field.slots
        return ids, self._scenario(texts[self.scenario_field], first_row, where)

    def _encode_field(self, texts: pa.Array, vocabulary: pa.Array, field: Field) -> np.ndarray:
        """The ids [R slots] of a field, ascending in a row, the smallest kept if there are more."""

        def look_up(values: pa.Array) -> np.ndarray:
            if field.name in self.hashed:
                return hash_ids(_plain(values), self.hashed[field.name])
            if field.name in self.edges:
                return number_ids(values, self.edges[field.name])
            return pc.fill_null(_lookup(values, vocabulary), UNKNOWN - 1).to_numpy() + 1

        separator = self.separators.get(field.name)
        if separator is None:
            return look_up(texts)[:, None]
        lists = pc.split_pattern(texts, separator)
        rows = pc.list_parent_indices(lists).to_numpy()
        ids = look_up(pc.list_flatten(lists))
        known = ids != UNKNOWN
        pairs = np.stack([rows[known], ids[known]], axis=1)
        return _fill_slots(np.unique(pairs, axis=0), len(texts), field.slots)

    def _scenario(self, texts: pa.Array, first_row: int, where: str) -> np.ndarray:
        if self.scenario_edges:
            return self._scenario_by_number(texts, first_row, where)
        values = pa.array(self.scenario_values, pa.string())
        numbers = [self.schema.scenarios.index(name) for name in self.scenario_values.values()]
        found = _lookup(texts, values)
        if found.null_count:
            row = int(np.argmax(found.is_null()))
            raise DataError(
                f"{where}, row {first_row + row + 1}: {self.scenario_field} "
                f"{texts[row].as_py()!r} belongs to no scenario; known are "
                f"{', '.join(self.scenario_values)}"
            )
        return np.asarray(numbers, np.int32)[found.to_numpy()]

    def _scenario_by_number(self, texts: pa.Array, first_row: int, where: str) -> np.ndarray:
        numbers = parse_numbers(texts)
        if np.isnan(numbers).any():
            row = int(np.argmax(np.isnan(numbers)))
            raise DataError(
                f"{where}, row {first_row + row + 1}: {self.scenario_field} "
                f"{texts[row].as_py()!r} is not a number, so it belongs to no scenario"
            )
        return assign(numbers, self.scenario_edges)


def load_encoder(prepared: Prepared) -> Encoder:
    """The encoder of a prepared directory, or of a run that kept its schema and vocabularies.

    Raises `DataError` when a vocabulary is missing, its ids are not 1 to its length, or
    `schema.json` has no rule for scenarios.
    """
    try:
        scenario = prepared.provenance["scenario"]
        return Encoder(
            schema=prepared.schema,
            vocabularies=tuple(_values(prepared, field) for field in prepared.schema.fields),
            separators=prepared.provenance["separators"],
            scenario_field=scenario["field"],
            scenario_values=scenario["values"],
            edges=prepared.provenance.get("buckets", {}),
            hashed=prepared.provenance.get("hashed", {}),
            scenario_edges=scenario.get("edges", ()),
        )
    except KeyError as error:
        raise DataError(
            f"{prepared.directory / 'schema.json'} does not say {error} of its raw values; "
            "prepare the data again"
        ) from error


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Streams the named columns of a `.csv` (all strings) or `.parquet` file; ignores the others.

    Raises `DataError` naming the file for another kind of file, one that can't be read, or a
    column that is missing or appears twice.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{path} is neither .csv nor .parquet; convert it to one of them")
    try:
        yield from read(path, list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} can't be read: {error}") from error


def _values(prepared: Prepared, field: Field) -> pa.Array:
    table = prepared.vocabulary(field.name)
    if not np.array_equal(table["id"], np.arange(1, field.size)):
        raise DataError(
            f"the vocabulary of field {field.name!r} in {prepared.directory} does not number "
            f"its values from 1 to {field.size - 1}; prepare the data again"
        )
    return table["value"].combine_chunks()


def _read_csv(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parsing) as reader:
        present = reader.schema.names
    _check_columns(path, columns, present)
    options = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()),
        include_columns=columns,
        strings_can_be_null=False,
    )
    with pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=_CSV_BLOCK),
        parse_options=parsing,
        convert_options=options,
    ) as reader:
        yield from reader


def _read_parquet(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        _check_columns(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=_PARQUET_BATCH, columns=columns):
            yield batch.select(columns)


def _check_columns(path: Path, columns: list[str], present: list[str]) -> None:
    counts = Counter(present)
    for name in columns:
        if counts[name] == 0:
            raise DataError(f"{path} has no column {name!r}; it has {', '.join(present)}")
        if counts[name] > 1:
            raise DataError(f"{path} has {counts[name]} columns {name!r}; rename all but one")


def _to_strings(column: pa.Array, name: str, where: str) -> pa.Array:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{where}: column {name!r} is {column.type}, which has no text; give strings or numbers"
        ) from error


def _lookup(texts: pa.Array, values: pa.Array) -> pa.Int32Array:
    """The position of each text in `values`, null where there is none.

    A column of integers with gaps is often stored as floats, so "12.0" stands for "12" unless
    it is a value itself.
    """
    found = pc.index_in(texts, value_set=values, skip_nulls=True)
    if not found.null_count:
        return found
    return pc.coalesce(found, pc.index_in(_plain(texts), value_set=values, skip_nulls=True))


def _plain(texts: pa.Array) -> pa.Array:
    """A column of integers with gaps is often stored as floats: "12.0" is hashed as "12"."""
    return pc.replace_substring_regex(texts, _INTEGER_AS_FLOAT, r"\1")


def _fill_slots(pairs: np.ndarray, num_rows: int, num_slots: int) -> np.ndarray:
    """Lays sorted (row, id) pairs out in rows; a row without any is [UNKNOWN, EMPTY, ...]."""
    ids = np.full((num_rows, num_slots), EMPTY, np.int32)
    ids[:, 0] = UNKNOWN
    rows, values = pairs.T
    slots = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = slots < num_slots
    ids[rows[kept], slots[kept]] = values[kept]
    return ids

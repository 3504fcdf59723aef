"""Raw rows -> ids and scenarios, by the codes of fields that `prepare` fitted.

`prepare` encodes the rows of a whole data set with this, and prediction those of a file, a table
or a data frame: the same raw values give the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d3jax.batch import EMPTY, UNKNOWN, Kind, Schema
from d3jax.data.encoding import (
    bucket_of,
    hash_ids,
    kind_of,
    number_ids,
    parse_numbers,
    spell,
    text_of,
)
from d3jax.errors import DataError

_NO_NUMBER = "is not a number, so it belongs to no scenario"

LIST = "\x1f"
"""The separator of a field that came as a list column: between items where one text holds them."""


class FieldCode(NamedTuple):
    """The ids of one field: of the vocabulary `values` from 1 on, of `buckets` of a hash, or of
    the numbers between `edges`. A field with a `separator` has several values a row."""

    name: str
    kind: Kind
    values: pa.StringArray
    separator: str | None = None
    edges: tuple[float, ...] | None = None
    buckets: int | None = None

    @property
    def fingerprint(self) -> str:
        """64 bits of a hash of all that decides an id, in hexadecimal."""
        rules = [self.kind, self.separator, self.edges, self.buckets]
        digest = hashlib.sha256(json.dumps(rules).encode())
        for value in self.values.to_pylist():
            digest.update(value.encode() + b"\0")
        return digest.hexdigest()[:16]

    def look_up(self, texts: pa.StringArray) -> np.ndarray:
        """Return the id [R] int32 of each single value; unknown where it is missing or new."""
        coded = texts.dictionary_encode()
        ids = np.append(self._ids(coded.dictionary), UNKNOWN).astype(np.int32)
        return ids[pc.fill_null(coded.indices, len(ids) - 1).to_numpy()]

    def _ids(self, values: pa.StringArray) -> np.ndarray:
        if self.edges is not None:
            return number_ids(values, self.edges)
        if self.buckets is not None:
            return hash_ids(spell(values, self.kind), self.buckets)
        # What is in the vocabulary is spelt as it should be, so most values need no spelling.
        found = pc.index_in(values, value_set=self.values, skip_nulls=True)
        if found.null_count and self.kind != "text":
            spelt = spell(values.filter(found.is_null()), self.kind)
            again = pc.index_in(spelt, value_set=self.values, skip_nulls=True)
            found = pc.replace_with_mask(found, found.is_null(), again)
        return pc.fill_null(found, UNKNOWN - 1).to_numpy() + 1

    def items(self, column: pa.Array, where: str) -> tuple[np.ndarray, pa.StringArray]:
        """Return the row of each value of a multi-valued column, and the values' texts.

        Raises `DataError` for text without a separator to split it by.
        """
        if not is_list(column.type):
            if self.separator == LIST:
                raise DataError(
                    f"{where}: column {self.name!r} is {column.type}, and was a list column when "
                    "the data were prepared; give lists, as Parquet or a data frame has them"
                )
            column = pc.split_pattern(text_of(column, self.name, where), self.separator)
        sizes, items = _flat(column)
        return np.repeat(np.arange(len(column)), sizes), text_of(items, self.name, where)

    def pairs(self, column: pa.Array, where: str) -> np.ndarray:
        """Return (row, id) of each known value of a multi-valued column, sorted, each once."""
        rows, texts = self.items(column, where)
        ids = self.look_up(texts)
        known = ids != UNKNOWN
        return np.unique(np.stack([rows[known], ids[known]], axis=1), axis=0)

    def encode(self, column: pa.Array, slots: int, where: str) -> np.ndarray:
        """Return ids [R slots] int32: ascending in a row, the smallest kept if there are more."""
        if self.separator is not None:
            return _fill_slots(self.pairs(column, where), len(column), slots)
        if is_list(column.type):
            raise DataError(
                f"{where}: column {self.name!r} is {column.type}, but the field has one value a "
                "row; give one, or prepare the field as --multi"
            )
        return self.look_up(text_of(column, self.name, where))[:, None]


@dataclass(frozen=True)
class ScenarioRule:
    """The scenario of a row: by the value of column `field`, which `values` names, or by where
    its number lies between `edges`."""

    field: str
    values: dict[str, str]
    edges: tuple[float, ...] = ()

    def indices(
        self, column: pa.Array, scenarios: Sequence[str], first_row: int, where: str
    ) -> np.ndarray:
        """Return the index [R] int32 into `scenarios` of each row's.

        Raises `DataError` for a value of no scenario, naming the row, counted from 1 after
        `first_row` rows.
        """
        texts = text_of(column, self.field, where)
        if self.edges:
            numbers = parse_numbers(texts)
            _refuse(np.isnan(numbers), texts, self.field, first_row, where, _NO_NUMBER)
            return bucket_of(numbers, self.edges)
        kind = kind_of(list(self.values))
        known = spell(pa.array(self.values, pa.string()), kind)
        coded = texts.dictionary_encode()
        found = pc.index_in(spell(coded.dictionary, kind), value_set=known, skip_nulls=True)
        found = found.take(coded.indices)
        _refuse(
            np.asarray(found.is_null()),
            texts,
            self.field,
            first_row,
            where,
            f"belongs to no scenario; known are {', '.join(self.values)}",
        )
        indices = [list(scenarios).index(name) for name in self.values.values()]
        return np.asarray(indices, np.int32)[found.to_numpy()]


@dataclass(frozen=True)
class Encoder:
    """Encode raw rows of `schema` by a code for each of its fields."""

    schema: Schema
    codes: tuple[FieldCode, ...]
    scenario: ScenarioRule

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that `encode` needs: every field, and what decides the scenario."""
        names = [field.name for field in self.schema.fields]
        return tuple(dict.fromkeys([*names, self.scenario.field]))

    def encode(
        self, batch: pa.RecordBatch, first_row: int = 0, where: str = "the batch"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids [R K] int32 and scenario [R] int32 of the R rows of `batch`, in order.

        A value that training did not see gets id 0. Raises `DataError` for a missing column, one
        without text, and an unknown scenario, naming the row, counted from 1 after the
        `first_row` rows before this batch.
        """
        check_columns(batch.schema.names, self.columns, where)
        return encode_ids(self.schema, self.codes, batch, where), self.scenario.indices(
            batch.column(self.scenario.field), self.schema.scenarios, first_row, where
        )


def encode_ids(
    schema: Schema, codes: Sequence[FieldCode], batch: pa.RecordBatch, where: str
) -> np.ndarray:
    """Return the ids [R K] int32 of the fields of each row."""
    ids = np.empty((batch.num_rows, schema.num_slots), np.int32)
    start = 0
    for field, code in zip(schema.fields, codes, strict=True):
        encoded = code.encode(batch.column(field.name), field.slots, where)
        ids[:, start : start + field.slots] = encoded
        start += field.slots
    return ids


def unknown_rows(schema: Schema, ids: np.ndarray) -> np.ndarray:
    """Return the number of rows [N] that have no known value in a field: none, a rare or a new."""
    return (ids[:, schema.first_slot] == UNKNOWN).sum(axis=0)


def check_columns(present: Sequence[str], needed: Sequence[str], where: str) -> None:
    """Raise `DataError` for a column of `needed` that is missing or there twice."""
    for name in needed:
        if name not in present:
            raise DataError(
                f"{where} has no column {name!r}; it has {', '.join(map(str, present))}"
            )
        if list(present).count(name) > 1:
            raise DataError(f"{where} has the column {name!r} twice; rename all but one")


def is_list(kind: pa.DataType) -> bool:
    """Tell whether a column of this type has several values a row."""
    return (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def joined_lists(column: pa.Array, name: str, where: str) -> pa.StringArray:
    """Return the items of each row of a list column as one text, with `LIST` between them.

    Raises `DataError` for items without a text, and for one that holds `LIST` itself.
    """
    sizes, items = _flat(column)
    texts = pc.fill_null(text_of(items, name, where), "")
    if pc.any(pc.match_substring(texts, LIST)).as_py():
        raise DataError(
            f"{where}: an item of the list column {name!r} holds the control character U+001F, "
            "which separates items; remove it"
        )
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int64())
    return _present(pc.binary_join(pa.LargeListArray.from_arrays(offsets, texts), LIST))


def _present(texts: pa.StringArray) -> pa.StringArray:
    return pc.if_else(pc.equal(texts, ""), None, texts)


def _flat(lists: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Return the number of values of each row, 0 where it is null, and all values in a row."""
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return sizes, pc.list_flatten(lists)


def _fill_slots(pairs: np.ndarray, num_rows: int, num_slots: int) -> np.ndarray:
    """Lay sorted (row, id) pairs out in rows; a row without any is [UNKNOWN, EMPTY, ...]."""
    ids = np.full((num_rows, num_slots), EMPTY, np.int32)
    ids[:, 0] = UNKNOWN
    rows, values = pairs.T
    slots = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = slots < num_slots
    ids[rows[kept], slots[kept]] = values[kept]
    return ids


def _refuse(
    wrong: np.ndarray, texts: pa.Array, name: str, first_row: int, where: str, why: Any
) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{where}, row {first_row + row + 1}: {name} {texts[row].as_py()!r} {why}")

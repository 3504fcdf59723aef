"""Rows as a user has them - a data frame, a dict of columns, an Arrow table - as Arrow's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import pyarrow as pa

from d3jax.data.encoder import check_columns
from d3jax.data.encoding import text_of
from d3jax.errors import DataError


def to_table(rows: Any, columns: Sequence[str], where: str = "the table") -> pa.Table:
    """Return the named columns of Arrow tables and batches, data frames and dicts of columns.

    Data frames of any library are taken that gives Arrow's C stream, and pandas'. Raises
    `DataError` for something else, a column that is missing or there twice, and columns of
    unequal length.
    """
    names, column_of = _columns(rows)
    if names is None:
        raise DataError(
            f"{where} is a {type(rows).__name__}; give a data frame, an Arrow table, or a dict of "
            "columns"
        )
    check_columns(names, columns, where)
    arrays = [_array(column_of(name), name, where) for name in columns]
    lengths = {name: len(array) for name, array in zip(columns, arrays, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where} has columns of unequal length: {lengths}")
    return pa.table(dict(zip(columns, arrays, strict=True)))


def _columns(rows: Any) -> tuple[list[Any] | None, Any]:
    """The names of the columns, None where there are none, and a function from name to column."""
    if isinstance(rows, pa.RecordBatch | pa.Table):
        return list(rows.schema.names), rows.column
    if isinstance(rows, Mapping):
        return list(rows), rows.__getitem__
    # pandas first: its own C stream refuses columns of mixed objects.
    if hasattr(rows, "columns") and hasattr(rows, "iloc"):
        return list(rows.columns), rows.__getitem__
    if hasattr(rows, "iloc"):  # A row or column of a data frame.
        return None, None
    if hasattr(rows, "__arrow_c_stream__"):
        table = pa.table(rows)
        return list(table.schema.names), table.column
    return None, None


def _array(column: Any, name: str, where: str) -> pa.Array | pa.ChunkedArray:
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return column
    odd = isinstance(column, str | bytes | Mapping | Set) or not hasattr(column, "__len__")
    if odd or getattr(column, "ndim", 1) == 0:
        raise DataError(f"{where}: column {name!r} is {column!r}; give a value for each row")
    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowException, OverflowError, UnicodeError):
        # Objects of several types, such as numbers among words, as a CSV file would have them.
        values = [_text(value, name, where) for value in column]
        several = any(isinstance(value, list) for value in values)
        if not several:
            return pa.array(values, pa.string())
        lists = [[value] if isinstance(value, str) else value for value in values]
        return pa.array(lists, pa.list_(pa.string()))


def _text(value: Any, name: str, where: str) -> Any:
    """The text of a value, None where it is missing; a list of them for a list."""
    if isinstance(value, list | tuple | np.ndarray):
        return [_text(item, name, where) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    try:
        array = pa.array([value], from_pandas=True)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(
            f"{where}: column {name!r} holds {value!r}, which has no text; give strings or numbers"
        ) from error
    return text_of(array, name, where)[0].as_py()

"""Rows of every kind that a user has them in, as Arrow tables."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from d3jax.data.encoding import text_of
from d3jax.data.tables import to_table
from d3jax.errors import DataError


def texts(column: Any) -> list[str | None]:
    table = to_table({"x": column, "unused": [object()] * len(column)}, ["x"])
    return text_of(table["x"].combine_chunks(), "x", "the table").to_pylist()


def test_columns_of_one_type_are_what_arrow_makes_of_them() -> None:
    assert texts([1, None, 3]) == ["1", None, "3"]
    assert texts(np.array([1.0, np.nan])) == ["1", None]
    assert texts(pa.chunked_array([["a"], ["b"]])) == ["a", "b"]


def test_columns_of_many_types_have_the_texts_of_a_csv_file() -> None:
    values = [True, 12.0, 12, "A1", None, float("nan"), Decimal("1.50"), datetime.date(2024, 1, 2)]
    assert texts(values) == ["True", "12.0", "12", "A1", None, None, "1.50", "2024-01-02"]
    assert texts([2**70, -1]) == [str(2**70), "-1"]
    assert texts(["\ud800", "x"]) == ["\\ud800", "x"]
    lists = to_table({"x": [["1", 3, None], None, []]}, ["x"])["x"]
    assert lists.to_pylist() == [["1", "3", None], None, []]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("rows.csv", "the table is a str; give a data frame, an Arrow table, or a dict of columns"),
        ({"y": [1]}, "the table has no column 'x'; it has y"),
        ({"x": 3}, "the table: column 'x' is 3; give a value for each row"),
        ({"x": "abc"}, "the table: column 'x' is 'abc'; give a value for each row"),
        ({"x": [1, object()]}, r"column 'x' holds <object .*>, which has no text; give strings or"),
        (
            pa.table([[1], [2]], ["x", "x"]),
            "the table has the column 'x' twice; rename",
        ),
    ],
)
def test_what_is_no_table_is_refused(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_table(rows, ["x"])

"""Rows of every kind that a user has them in, as Arrow tables."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3jax.data.encoding import text_of
from d3jax.data.tables import to_table
from d3jax.errors import DataError


def texts(column: Any) -> list[str | None]:
    table = to_table({"x": column, "unused": [object()] * len(column)}, ["x"])
    return text_of(table["x"].combine_chunks(), "x", "the table").to_pylist()


def test_columns_of_one_type_are_what_arrow_makes_of_them() -> None:
    assert texts([1, None, 3]) == ["1", None, "3"]
    assert texts(np.array([1.0, np.nan])) == ["1.0", None]
    assert texts(pa.chunked_array([["a"], ["b"]])) == ["a", "b"]


def test_columns_of_many_types_have_the_texts_of_a_csv_file() -> None:
    values = [True, 12.0, 12, "A1", None, float("nan"), Decimal("1.50"), datetime.date(2024, 1, 2)]
    assert texts(values) == ["True", "12.0", "12", "A1", None, None, "1.5", "2024-01-02"]
    assert texts([2**70, -1]) == [str(2**70), "-1"]
    assert texts(["\ud800", "x"]) == ["\\ud800", "x"]
    lists = to_table({"x": [["1", 3, None], None, []]}, ["x"])["x"]
    assert lists.to_pylist() == [["1", "3", None], None, []]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.booleans().map(np.bool_),
    st.integers(-(2**70), 2**70),
    st.integers(-128, 127).map(np.int8),
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, max_value=10**9),
    st.text(),
    st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
    st.dates(),
    st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)).map(np.datetime64),
    st.binary(),
)


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_a_value_has_one_text_whatever_other_values_its_column_has(values: list[Any]) -> None:
    alone = [texts([value])[0] for value in values]
    among_others = texts([*values, "A1", True, 1.5])
    assert among_others[: len(values)] == alone


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("rows.csv", "the table is a str; give a data frame, an Arrow table, or a dict of columns"),
        ({"y": [1]}, "the table has no column 'x'; it has y"),
        ({"x": 3}, "the table: column 'x' is 3; give a value for each row"),
        ({"x": "abc"}, "the table: column 'x' is 'abc'; give a value for each row"),
        ({"x": {"a": 1}}, r"the table: column 'x' is \{'a': 1\}; give a value for each row"),
        ({"x": {1}}, r"the table: column 'x' is \{1\}; give a value for each row"),
        ({"x": np.array(3)}, r"the table: column 'x' is array\(3\); give a value for each row"),
        (pd.Series({"x": 1}), "the table is a Series; give a data frame"),
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

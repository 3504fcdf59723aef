from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3jax.batch import EMPTY, UNKNOWN, Field, Schema
from d3jax.errors import DataError

SCHEMA = Schema(
    fields=(Field("user", 5), Field("genres", 4, slots=3), Field("tab", 3)),
    scenarios=("home", "search"),
    scenario_field="tab",
    user_field="user",
)
IDS = np.array([[4, 0, EMPTY, EMPTY, 2], [1, 3, 2, EMPTY, 0]], np.int32)
SCENARIO = np.array([0, 1], np.int32)


def changed(row: int, slot: int, value: int) -> np.ndarray:
    ids = IDS.copy()
    ids[row, slot] = value
    return ids


def test_sizes_and_offsets() -> None:
    assert (SCHEMA.num_fields, SCHEMA.num_slots, SCHEMA.num_rows, SCHEMA.num_scenarios) == (
        3,
        5,
        12,
        2,
    )
    np.testing.assert_array_equal(SCHEMA.slot_field, [0, 1, 1, 1, 2])
    np.testing.assert_array_equal(SCHEMA.slot_offset, [0, 5, 5, 5, 9])
    assert SCHEMA.slot_offset.dtype == np.int32
    assert SCHEMA.index("tab") == 2


def test_index_names_the_fields_there_are() -> None:
    with pytest.raises(
        DataError, match=r"no field 'item' in the schema; it has \['user', 'genres', 'tab'\]"
    ):
        SCHEMA.index("item")


def test_json_round_trip() -> None:
    assert Schema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": ()}, "at least one field and one scenario"),
        ({"scenarios": ()}, "at least one field and one scenario"),
        (
            {"fields": (Field("tab", 5), Field("user", 5), Field("tab", 2))},
            "field 'tab' appears twice in the schema; rename one",
        ),
        (
            {"fields": (Field("user", 0), Field("tab", 1))},
            "field 'user' has size 0 and 1 slots; both must be at least 1",
        ),
        (
            {"fields": (Field("user", 1), Field("tab", 2, slots=0))},
            "field 'tab' has size 2 and 0 slots; both must be at least 1",
        ),
        (
            {"scenario_field": "city"},
            r"field 'city' has a role in the schema but is not among \['user', 'genres', 'tab'\]",
        ),
        ({"user_field": "uid"}, "field 'uid' has a role in the schema"),
        ({"item_field": "iid"}, "field 'iid' has a role in the schema"),
    ],
)
def test_schema_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(SCHEMA, **change)


def test_check_accepts_every_id_in_range() -> None:
    SCHEMA.check(IDS, SCENARIO)
    SCHEMA.check(np.full((1, 5), UNKNOWN, np.int32), SCENARIO[:1])
    SCHEMA.check(IDS[:0], SCENARIO[:0])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (changed(0, 0, 5), r"field 'user': id 5 in row 0 of rows.bin is outside \[0, 5\)"),
        (changed(1, 0, -1), r"field 'user': id -1 in row 1 of rows.bin is outside \[0, 5\)"),
        (changed(1, 1, EMPTY), r"field 'genres': id -1 in row 1 of rows.bin is outside \[0, 4\)"),
        (changed(1, 3, 4), r"field 'genres': id 4 in row 1 of rows.bin is outside \[-1, 4\)"),
        (changed(0, 2, -2), r"field 'genres': id -2 in row 0 of rows.bin is outside \[-1, 4\)"),
        (changed(1, 4, 3), r"field 'tab': id 3 in row 1 .* prepare the data again with this"),
        (IDS[:, :4], r"rows.bin has ids of shape \(2, 4\); the schema needs \[rows, 5\]"),
        (IDS[0], r"rows.bin has ids of shape \(5,\); the schema needs \[rows, 5\]"),
    ],
)
def test_check_names_field_row_and_value(ids: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SCHEMA.check(ids, SCENARIO, where="rows.bin")


@pytest.mark.parametrize("unknown", [-1, 2])
def test_check_refuses_an_unknown_scenario(unknown: int) -> None:
    with pytest.raises(
        DataError,
        match=f"scenario {unknown} in row 1 of the batch is unknown; "
        "the schema has 2: home, search",
    ):
        SCHEMA.check(IDS, np.array([0, unknown], np.int32))


@given(row=st.integers(0, 6), slot=st.integers(0, 4), value=st.integers(-3, 8))
def test_check_agrees_with_a_row_by_row_reading(row: int, slot: int, value: int) -> None:
    ids = np.tile(IDS[1], (7, 1))
    ids[row, slot] = value
    owner = SCHEMA.fields[SCHEMA.slot_field[slot]]
    allowed = range(EMPTY if slot in (2, 3) else 0, owner.size)
    if value in allowed:
        SCHEMA.check(ids, np.zeros(7, np.int32))
    else:
        with pytest.raises(DataError, match=f"{owner.name}.*id {value} in row {row} "):
            SCHEMA.check(ids, np.zeros(7, np.int32))


@pytest.mark.parametrize("name", ["overall", "Overall", " OVERALL\t", "over\u200ball"])
def test_no_scenario_is_called_as_all_rows_are(name: str) -> None:
    with pytest.raises(DataError, match=r"can't be told from all rows together; rename it"):
        dataclasses.replace(SCHEMA, scenarios=("home", name))
    assert dataclasses.replace(SCHEMA, scenarios=("home", "over all", "overall 2"))


def test_no_scenario_appears_twice() -> None:
    with pytest.raises(DataError, match=r"scenario 'home' appears twice; leave one out"):
        dataclasses.replace(SCHEMA, scenarios=("home", "home"))

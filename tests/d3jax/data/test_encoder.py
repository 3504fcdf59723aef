"""New rows get the ids that `prepare` gave to the same raw values, whatever file they come from."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest

from d3jax.batch import Field, Schema
from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared, load_encoder, open_prepared, read_schema, write_schema
from d3jax.data.vocabularies import write_vocabulary
from d3jax.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.source import FieldSource, PrepareConfig, Source

COLUMNS = ["user", "tags", "group"]


def raw_rows() -> list[dict[str, Any]]:
    draw = random.Random(0)
    rows = []
    for event in range(600):
        tags = [draw.choice(["", "x", "y", "z", "rare", "é"]) for _ in range(draw.randrange(6))]
        rows.append(
            {
                "user": draw.choice([None, "", *(str(n) for n in range(60))]),
                "tags": None if draw.random() < 0.1 else "|".join(tags),
                "group": draw.choice(["1", "18", "25"]),
                "event": event,
                "label": draw.randrange(2),
            }
        )
    for row in rows:
        row["scenario"] = int(row["group"] == "25")
    return rows


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    connection = ibis.duckdb.connect()
    connection.con.register("raw", pa.Table.from_pylist(raw_rows()))
    source = Source(
        rows=connection.table("raw"),
        fields=(FieldSource("user"), FieldSource("tags", "|", max_slots=3), FieldSource("group")),
        scenarios=("young", "old"),
        scenario_field="group",
        scenario_values={"1": "young", "18": "young", "25": "old"},
        key=("event",),
        label_rule="label = 1",
    )
    out = tmp_path_factory.mktemp("encoder") / "out"
    return prepare(source, out, PrepareConfig(min_count=6))


@pytest.fixture
def by_hand(tmp_path: Path) -> Prepared:
    """Vocabularies user {12, 7, 1}, tags {x, y, z} in two slots, group {1, 25}."""
    (tmp_path / "hand").mkdir()
    return write_by_hand(tmp_path / "hand")


def write_by_hand(directory: Path, first_id: int = 1, **provenance: Any) -> Prepared:
    values = {"user": ["12", "7", "1"], "tags": ["x", "y", "z"], "group": ["1", "25"]}
    for name, texts in values.items():
        ids = list(range(first_id, first_id + len(texts)))
        table = pa.table({"value": texts, "id": ids, "count": [1] * len(texts)})
        write_vocabulary(directory, name, table)
    fields = (
        Field("user", 4, kind="integer"),
        Field("tags", 4, slots=2),
        Field("group", 3, kind="integer"),
    )
    rules = {
        "scenario": {"field": "group", "values": {"1": "young", "25": "old"}},
        "separators": {"tags": "|"},
    }
    write_schema(directory, Schema(fields, ("young", "old")), rules | provenance)
    return read_schema(directory)


def to_batch(user: Any, tags: Any = None, group: Any = None) -> pa.RecordBatch:
    count = len(user)
    columns = [user, tags or [""] * count, group or ["1"] * count]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], names=COLUMNS)


def test_same_ids_as_prepare(prepared: Prepared) -> None:
    def place(row: dict[str, Any]) -> str:
        return hashlib.md5(f"0|{row['event']}".encode()).hexdigest()

    ordered = sorted(raw_rows(), key=place)
    encoder = load_encoder(prepared)
    ids, scenario = encoder.encode(pa.RecordBatch.from_pylist(ordered))
    assert encoder.columns == ("user", "tags", "group")
    # The lowest digests are test rows, then come validation and train.
    parts = [prepared.rows(split) for split in reversed(SPLITS)]
    np.testing.assert_array_equal(ids, np.concatenate([rows.ids for rows in parts]))
    np.testing.assert_array_equal(scenario, np.concatenate([rows.scenario for rows in parts]))
    assert (ids.dtype, scenario.dtype) == (np.int32, np.int32)
    assert (ids[:, 0] == 0).any(), "the test data must hold unknown users"
    assert prepared.schema.fields[1].slots == 3


def test_every_vocabulary_value_gets_its_own_id(prepared: Prepared) -> None:
    users = prepared.vocabulary("user")["value"].to_pylist()
    ids, _ = load_encoder(prepared).encode(to_batch(users))
    assert ids[:, 0].tolist() == list(range(1, len(users) + 1))


def test_lists_by_hand(by_hand: Prepared) -> None:
    tags = ["z|x", "y", "", None, "w", "w|z", "z|y|x", "x|x||x", "|"]
    ids, _ = load_encoder(by_hand).encode(to_batch(["7"] * 9, tags))
    expected = [[1, 3], [2, -1], [0, -1], [0, -1], [0, -1], [3, -1], [1, 2], [1, -1], [0, -1]]
    assert ids[:, 1:3].tolist() == expected


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (["12", "7", "nobody", "", None], [1, 2, 0, 0, 0]),
        (["12.0", "7.00", "12.5", "012", " 12"], [1, 2, 0, 0, 1]),
        ([12, 7, 1, None, 99], [1, 2, 3, 0, 0]),
        ([12.0, 7.0, 1.5, None, float("nan")], [1, 2, 0, 0, 0]),
        (["1.0", "1e0", "+1.00", "x", "NaN"], [3, 3, 3, 0, 0]),
        ([True, False, None, True, True], [3, 0, 0, 3, 3]),
        (pa.array(["12", "7", "12", "x", None]).dictionary_encode(), [1, 2, 1, 0, 0]),
    ],
    ids=["text", "float text", "int", "float", "exponents", "bool", "dictionary"],
)
def test_numbers_are_found_by_their_text(by_hand: Prepared, user: Any, expected: list[int]) -> None:
    ids, _ = load_encoder(by_hand).encode(to_batch(user))
    assert ids[:, 0].tolist() == expected


def test_scenario_follows_the_rule(by_hand: Prepared) -> None:
    batch = to_batch(["12"] * 4, group=[25, 1, 1, 25])
    ids, scenario = load_encoder(by_hand).encode(batch)
    assert scenario.tolist() == [1, 0, 0, 1]
    assert ids[:, 3].tolist() == [2, 1, 1, 2]
    floats = to_batch(["12"] * 2, group=[25.0, 1.0])
    assert load_encoder(by_hand).encode(floats)[1].tolist() == [1, 0]


@pytest.mark.parametrize(("value", "shown"), [("26", "'26'"), ("", "None"), (None, "None")])
def test_unknown_scenario(by_hand: Prepared, value: str | None, shown: str) -> None:
    batch = to_batch(["12"] * 3, group=["1", "25", value])
    message = rf"^rows.csv, row 103: group {shown} belongs to no scenario; known are 1, 25$"
    with pytest.raises(DataError, match=message):
        load_encoder(by_hand).encode(batch, first_row=100, where="rows.csv")


def test_no_rows(by_hand: Prepared) -> None:
    ids, scenario = load_encoder(by_hand).encode(to_batch(["12"]).slice(0, 0))
    assert (ids.shape, scenario.shape) == ((0, 4), (0,))


def test_sliced_batch(by_hand: Prepared) -> None:
    batch = to_batch(["12", "7", "1"], ["x", "z|y", "z"], ["1", "25", "1"])
    ids, scenario = load_encoder(by_hand).encode(batch.slice(1, 2))
    assert ids.tolist() == [[2, 2, 3, 2], [3, 3, -1, 1]]
    assert scenario.tolist() == [1, 0]


def test_column_without_text(by_hand: Prepared) -> None:
    message = r"rows.parquet: column 'user' is list<.*>, but the field has one value a row; give"
    with pytest.raises(DataError, match=message):
        load_encoder(by_hand).encode(to_batch([["12"], ["7"]]), where="rows.parquet")
    message = r"rows.parquet: column 'user' is struct<.*>, which has no text; give strings or numb"
    with pytest.raises(DataError, match=message):
        load_encoder(by_hand).encode(to_batch([{"a": 1}, {"a": 2}]), where="rows.parquet")


def test_lists_and_separated_texts_are_alike(by_hand: Prepared) -> None:
    tags = [["z", "x"], ["y", None], [], None, ["w", ""]]
    ids, _ = load_encoder(by_hand).encode(to_batch(["7"] * 5, pa.array(tags)))
    assert ids[:, 1:3].tolist() == [[1, 3], [2, -1], [0, -1], [0, -1], [0, -1]]


def test_vocabulary_must_be_numbered(tmp_path: Path) -> None:
    message = r"vocabulary of field 'user' in .* does not number its values from 1 to 3; prepare"
    with pytest.raises(DataError, match=message):
        load_encoder(write_by_hand(tmp_path, first_id=2))


def test_schema_without_a_rule(by_hand: Prepared) -> None:
    by_hand.provenance.pop("scenario")
    with pytest.raises(DataError, match=r"schema.json does not say 'scenario' of its raw values"):
        load_encoder(by_hand)


def test_encoder_of_a_reopened_directory(prepared: Prepared) -> None:
    again = load_encoder(open_prepared(prepared.directory))
    values = json.loads((prepared.directory / "schema.json").read_text())["provenance"]["scenario"]
    assert again.scenario.values == values["values"]

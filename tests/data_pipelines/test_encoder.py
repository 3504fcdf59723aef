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
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from d3jax.batch import Field, Schema
from d3jax.errors import DataError
from data_pipelines.columns import (
    SPLITS,
    Prepared,
    open_prepared,
    read_schema,
    write_schema,
    write_vocabulary,
)
from data_pipelines.encoder import load_encoder, read_batches
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
    """Vocabularies user {12, 7, 1.0, 1}, tags {x, y, z} in two slots, group {1, 25}."""
    (tmp_path / "hand").mkdir()
    return write_by_hand(tmp_path / "hand")


def write_by_hand(directory: Path, first_id: int = 1, **provenance: Any) -> Prepared:
    values = {"user": ["12", "7", "1.0", "1"], "tags": ["x", "y", "z"], "group": ["1", "25"]}
    for name, texts in values.items():
        ids = list(range(first_id, first_id + len(texts)))
        table = pa.table({"value": texts, "id": ids, "count": [1] * len(texts)})
        write_vocabulary(directory, name, table)
    fields = (Field("user", 5), Field("tags", 4, slots=2), Field("group", 3))
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
        (["12.0", "7.00", "12.5", "012", " 12"], [1, 2, 0, 0, 0]),
        ([12, 7, 1, None, 99], [1, 2, 4, 0, 0]),
        ([12.0, 7.0, 1.5, None, float("nan")], [1, 2, 0, 0, 0]),
        (["1.0", "1", "1.00", "x", "y"], [3, 4, 4, 0, 0]),
        (pa.array(["12", "7", "12", "x", None]).dictionary_encode(), [1, 2, 1, 0, 0]),
    ],
    ids=["text", "float text", "int", "float", "exact first", "dictionary"],
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


@pytest.mark.parametrize(("value", "shown"), [("26", "'26'"), ("", "''"), (None, "None")])
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
    assert ids.tolist() == [[2, 2, 3, 2], [4, 3, -1, 1]]
    assert scenario.tolist() == [1, 0]


def test_column_without_text(by_hand: Prepared) -> None:
    batch = to_batch([["12"], ["7"]])
    with pytest.raises(DataError, match=r"rows.parquet: column 'user' is list<.*>, which has no"):
        load_encoder(by_hand).encode(batch, where="rows.parquet")


def test_vocabulary_must_be_numbered(tmp_path: Path) -> None:
    message = r"vocabulary of field 'user' in .* does not number its values from 1 to 4; prepare"
    with pytest.raises(DataError, match=message):
        load_encoder(write_by_hand(tmp_path, first_id=2))


@pytest.mark.parametrize("rule", ["scenario", "separators"])
def test_schema_without_the_rules(by_hand: Prepared, rule: str) -> None:
    by_hand.provenance.pop(rule)
    with pytest.raises(DataError, match=rf"schema.json does not say '{rule}' of its raw values"):
        load_encoder(by_hand)


def write(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path, row_group_size=1000)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_files_stream_in_order(tmp_path: Path, suffix: str) -> None:
    count = 400_000
    user = pa.array(np.arange(count))
    table = pa.table(
        {"extra": pa.array(["some, \n text" * 5] * count), "tags": ["NULL"] * count, "user": user}
    )
    path = write(tmp_path / f"rows{suffix}", table)
    batches = list(read_batches(path, ["user", "tags"]))
    assert len(batches) > 1
    assert all(batch.schema.names == ["user", "tags"] for batch in batches)
    assert pa.Table.from_batches(batches)["user"].cast(pa.int64()).to_numpy().tolist() == list(
        range(count)
    )
    assert batches[-1]["tags"][-1].as_py() == "NULL"


def test_csv_values_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "ROWS.CSV"
    path.write_text("zip,user\n02139,\n 1,1e3\nNA,true\n")
    (batch,) = read_batches(path, ["zip", "user"])
    assert batch.to_pydict() == {"zip": ["02139", " 1", "NA"], "user": ["", "1e3", "true"]}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_csv_and_parquet_encode_alike(prepared: Prepared, tmp_path: Path, suffix: str) -> None:
    encoder = load_encoder(prepared)
    assert encoder.columns == ("user", "tags", "group")
    table = pa.Table.from_pylist(raw_rows())
    path = write(tmp_path / f"rows{suffix}", table)
    encoded = [encoder.encode(batch) for batch in read_batches(path, encoder.columns)]
    expected, scenario = encoder.encode(table.to_batches()[0])
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in encoded]), expected)
    np.testing.assert_array_equal(np.concatenate([part for _, part in encoded]), scenario)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_missing_column(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", pa.table({"user": ["1"], "tag": ["x"]}))
    with pytest.raises(DataError, match=rf"rows{suffix} has no column 'tags'; it has user, tag$"):
        list(read_batches(path, ["user", "tags"]))


def test_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user,tags,user\n1,x,2\n")
    with pytest.raises(DataError, match=r"rows.csv has 2 columns 'user'; rename all but one"):
        list(read_batches(path, ["user", "tags"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b"{}", "rows.json is neither .csv nor .parquet; convert it"),
        ("rows.csv", b"", "rows.csv can't be read: Empty CSV file"),
        ("rows.csv", b"user\n1\n1,2\n", "rows.csv can't be read: CSV parse error: .*Expected 1"),
        ("rows.csv", b"user\n\xff\n", "rows.csv can't be read: .*invalid UTF8"),
        ("rows.parquet", b"PAR1", "rows.parquet can't be read: "),
        ("rows.csv", None, "rows.csv can't be read: .*No such file"),
    ],
)
def test_unreadable_file(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_batches(tmp_path / name, ["user"]))


def test_encoder_of_a_reopened_directory(prepared: Prepared) -> None:
    again = load_encoder(open_prepared(prepared.directory))
    values = json.loads((prepared.directory / "schema.json").read_text())["provenance"]["scenario"]
    assert again.scenario_values == values["values"]

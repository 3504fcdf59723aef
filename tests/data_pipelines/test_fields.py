"""Buckets, hashes, leaks and splits through `prepare`, and the same ids for a prediction."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pytest

from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared, load_encoder
from d3jax.errors import ConfigError, DataError
from data_pipelines.prepare import prepare
from data_pipelines.source import FieldSource, PrepareConfig, Source

Row = dict[str, Any]

FIELDS = (
    FieldSource("user", hash_buckets=50),
    FieldSource("tags", separator="|", hash_buckets=7),
    FieldSource("price", quantiles=5),
    FieldSource("group"),
)


def some_rows(count: int = 400, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    return [
        {
            "user": draw.choice([None, *(f"u{n}" for n in range(60))]),
            "tags": "|".join(draw.choice("vwxyz") for _ in range(draw.randrange(4))),
            "price": draw.choice(["", "0", f"{draw.lognormvariate(2, 2):.2f}"]),
            "group": draw.choice("ab"),
            "event": str(event),
            "time": draw.randrange(100),
            "label": draw.randrange(2),
        }
        for event in range(count)
    ]


def to_source(rows: list[Row], **changes: Any) -> Source:
    connection = ibis.duckdb.connect(threads=2)
    connection.con.register("raw", pa.Table.from_pylist(rows))
    table = connection.table("raw")
    source = Source(
        rows=table.mutate(scenario=(table["group"] == "b").cast("int64")),
        fields=FIELDS,
        scenarios=("a", "b"),
        scenario_field="group",
        scenario_values={"a": "a", "b": "b"},
        user_field="user",
        key=("event",),
        label_rule="label = 1",
        time="time",
    )
    return replace(source, **changes)


def digest_of(*parts: Any) -> float:
    return int(hashlib.md5("|".join(map(str, parts)).encode()).hexdigest(), 16) / 2**128


def split_of(row: Row) -> str:
    place = digest_of(0, row["event"])
    return "test" if place < 0.2 else "validation" if place < 0.28 else "train"


def rows_of(rows: list[Row], split: str) -> list[Row]:
    """The rows of a random split in the order of their digests."""
    mine = [row for row in rows if split_of(row) == split]
    return sorted(mine, key=lambda row: digest_of(0, row["event"]))


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def hashed(text: str, buckets: int) -> int:
    return 1 + int(hashlib.md5(text.encode()).hexdigest()[:12], 16) % buckets


def test_ids_of_hashes_and_buckets(tmp_path: Path) -> None:
    rows = some_rows()
    prepared = prepare(to_source(rows), tmp_path / "out", PrepareConfig(min_count=3))
    prices = sorted(float(row["price"]) for row in rows_of(rows, "train") if row["price"])
    edges = prepared.provenance["buckets"]["price"]
    assert set(edges) <= set(prices)
    assert prepared.provenance["hashed"] == {"user": 50, "tags": 7}
    width = prepared.schema.fields[1].slots
    for split in SPLITS:
        for row, ids in zip(rows_of(rows, split), prepared.rows(split).ids.tolist(), strict=True):
            assert ids[0] == (hashed(row["user"], 50) if row["user"] else 0)
            tags = sorted({hashed(tag, 7) for tag in row["tags"].split("|") if tag}) or [0]
            assert ids[1 : 1 + width] == (tags + [-1] * width)[:width]
            price = row["price"]
            assert ids[1 + width] == (1 + sum(e <= float(price) for e in edges) if price else 0)


def test_vocabularies_say_what_buckets_hold(tmp_path: Path) -> None:
    rows = some_rows()
    prepared = prepare(to_source(rows), tmp_path / "out", PrepareConfig())
    edges = prepared.provenance["buckets"]["price"]
    price = prepared.vocabulary("price").to_pydict()
    assert price["value"][0] == f"x < {edges[0]:.17g}"
    assert price["value"][-1] == f"x >= {edges[-1]:.17g}"
    train = [float(row["price"]) for row in rows_of(rows, "train") if row["price"]]
    assert price["count"][0] == sum(value < edges[0] for value in train)
    assert sum(price["count"]) == len(train)
    user = prepared.vocabulary("user").to_pydict()
    counts = [0] * 50
    for row in rows_of(rows, "train"):
        if row["user"]:
            counts[hashed(row["user"], 50) - 1] += 1
    assert user == {"value": [str(n) for n in range(1, 51)], "id": [*range(1, 51)], "count": counts}


def encoded(prepared: Prepared, rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    names = [field.name for field in prepared.schema.fields]
    table = pa.Table.from_pylist([{name: row[name] for name in names} for row in rows])
    return load_encoder(prepared).encode(table.combine_chunks().to_batches()[0])


def test_a_prediction_gets_the_same_ids(tmp_path: Path) -> None:
    rows = some_rows()
    prepared = prepare(to_source(rows), tmp_path / "out", PrepareConfig(min_count=3))
    for split in SPLITS:
        ids, scenario = encoded(prepared, rows_of(rows, split))
        assert (ids == prepared.rows(split).ids).all()
        assert (scenario == prepared.rows(split).scenario).all()
    row = rows[0] | {"user": "new", "price": "cheap", "tags": "?"}
    ids, _ = encoded(prepared, [row, row | {"user": "12.0", "price": "1e9"}])
    assert ids[:, 0].tolist() == [hashed("new", 50), hashed("12.0", 50)]
    assert ids[:, -2].tolist() == [0, prepared.schema.fields[2].size - 1]


def test_scenarios_by_number(tmp_path: Path) -> None:
    rows = some_rows()
    source = to_source(rows)
    table = source.rows
    source = replace(
        source,
        rows=table.mutate(
            scenario=(table.time >= 30).cast("int64"), time=table.time.cast("string")
        ),
        scenario_field="time",
        scenario_values={},
        scenario_edges=(30.0,),
    )
    prepared = prepare(source, tmp_path / "out", PrepareConfig())
    assert prepared.provenance["scenario"] == {"field": "time", "values": {}, "edges": [30.0]}
    encoder = load_encoder(prepared)
    columns = {name: ["a", "b", "a"] for name in ("user", "tags", "price", "group")}
    batch = pa.RecordBatch.from_pydict(columns | {"time": ["29.9", "30", "1000"]})
    assert encoder.encode(batch)[1].tolist() == [0, 1, 1]
    batch = pa.RecordBatch.from_pydict(columns | {"time": ["29.9", "late", "1000"]})
    with pytest.raises(DataError, match="row 9: time 'late' is not a number, so it belongs to no"):
        encoder.encode(batch, 7)


def test_a_text_that_is_no_number(tmp_path: Path) -> None:
    rows = some_rows()
    rows[7]["price"] = "12 EUR"
    with pytest.raises(DataError, match="field 'price': '12 EUR' is not a number; correct it, or"):
        prepare(to_source(rows), tmp_path / "out", PrepareConfig())


def test_an_id_beyond_int32(tmp_path: Path) -> None:
    rows = [row | {"user": "3000000000"} for row in some_rows()]
    fields = (FieldSource("user", encoded=True), *FIELDS[1:])
    message = "field 'user': id 3000000000 is beyond the largest, 2147483646; number the values"
    with pytest.raises(DataError, match=message):
        prepare(to_source(rows, fields=fields), tmp_path / "out", PrepareConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoded": True, "quantiles": 5}, "field 'f' is prepared in two ways; choose one of"),
        ({"hash_buckets": 5, "quantiles": 5}, "field 'f' is prepared in two ways"),
        ({"separator": "|", "quantiles": 5}, "field 'f' is prepared in two ways"),
        ({"quantiles": 1}, "field 'f': quantiles is 1; it must be from 2 to 2147483646"),
        ({"hash_buckets": 2**31}, "field 'f': hash_buckets is 2147483648; it must be from 2"),
    ],
)
def test_field_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FieldSource("f", **settings)


Spoil = Callable[[Row], None]


def prepare_with(tmp_path: Path, value: Callable[[Row], Any], **settings: Any) -> Prepared:
    """Rows with a field `extra` that `value` makes of each."""
    rows = some_rows(1000)
    for row in rows:
        row["extra"] = value(row)
    fields = (FieldSource("group"), FieldSource("extra", **settings))
    return prepare(
        to_source(rows, fields=fields, user_field=None), tmp_path / "out", PrepareConfig()
    )


@pytest.mark.parametrize(
    ("value", "settings"),
    [
        (lambda row: str(row["label"]), {}),
        (lambda row: str(1 - row["label"]), {}),
        (lambda row: "no" if row["label"] else None, {}),
        (lambda row: f"{row['label']}{row['group']}", {}),
        (lambda row: str(row["label"]), {"hash_buckets": 1000}),
        (lambda row: "x|y" if row["label"] else "z|x2", {"separator": "|"}),
        # Rare values decide nothing, and the others are enough.
        (lambda row: f"e{row['event']}" if int(row["event"]) < 400 else f"{row['label']}", {}),
    ],
)
def test_a_field_that_gives_the_label_away(
    tmp_path: Path, value: Callable[[Row], Any], settings: dict[str, Any]
) -> None:
    message = (
        r"field 'extra' gives the label away: each of its \d values with at least 10 training "
        r"rows goes with one label only, such as '.*' with 1 and '.*' with 0; .* so leave it out"
    )
    with pytest.raises(DataError, match=message):
        prepare_with(tmp_path, value, **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_that_give_the_label_away(tmp_path: Path, sign: int) -> None:
    message = (
        "field 'extra' gives the label away: in the training rows, the numbers of rows with label "
        f"1 all lie {'above' if sign > 0 else 'below'} those with 0; .* so leave it out"
    )
    with pytest.raises(DataError, match=message):
        prepare_with(
            tmp_path,
            lambda row: str(sign * (row["label"] + int(row["event"]) / 1001)),
            quantiles=8,
        )


@pytest.mark.parametrize(
    "value",
    [
        lambda row: row["event"],
        lambda row: "same",
        lambda row: str(row["label"] if int(row["event"]) % 50 else 1 - row["label"]),
        # Seventy per cent of the rows are rare values: too little is known of this field.
        lambda row: f"e{row['event']}" if int(row["event"]) < 700 else str(row["label"]),
        lambda row: str(row["label"]) if split_of(row) != "train" else row["group"],
    ],
)
def test_a_field_that_does_not(tmp_path: Path, value: Callable[[Row], Any]) -> None:
    assert prepare_with(tmp_path, value).schema.fields[-1].name == "extra"


def test_only_train_decides(tmp_path: Path) -> None:
    """Other values in test and validation change nothing that is fitted, nor the train rows."""
    rows = some_rows()
    others = [
        row
        if split_of(row) == "train"
        else row | {"user": "stranger", "tags": "p|q|r|s|t", "price": "1e9", "group": "b"}
        for row in rows
    ]
    for name, each in (("a", rows), ("b", others)):
        prepare(to_source(each), tmp_path / name, PrepareConfig(min_count=2))
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert {name for name in first if first[name] != second[name]} <= {
        f"{split}/{column}.npy"
        for split in ("test", "validation")
        for column in ("ids", "scenario", "label")
    } | {"checksums.json"}
    assert first["test/ids.npy"] != second["test/ids.npy"]
    assert json.loads(first["schema.json"]) == json.loads(second["schema.json"])


def events(rows: list[Row], out: Path, config: PrepareConfig, **changes: Any) -> dict[str, Any]:
    """The rows of each split, told by a field that numbers them."""
    fields = (FieldSource("user"), FieldSource("event"))
    prepared = prepare(to_source(rows, fields=fields, **changes), out, config)
    known = prepared.vocabulary("event")["value"].to_pylist()
    train = {known[i - 1] for i in prepared.rows("train").ids[:, -1] if i}
    by_event = {row["event"]: row for row in rows}
    return {"prepared": prepared, "train": [by_event[event] for event in train]}


def test_split_by_time(tmp_path: Path) -> None:
    """The last fifth of the rows and the rows as late as the first of them, whatever the seed."""
    rows = some_rows()
    times = sorted(row["time"] for row in rows)
    starts = times[int(0.8 * 400)], times[int(0.8 * 0.9 * 400)]
    found = events(rows, tmp_path / "out", PrepareConfig(split="time", seed=5))
    assert {row["event"] for row in found["train"]} == {
        row["event"] for row in rows if row["time"] < starts[1]
    }
    assert found["prepared"].provenance["rows"] == {
        "train": sum(time < starts[1] for time in times),
        "validation": sum(starts[1] <= time < starts[0] for time in times),
        "test": sum(time >= starts[0] for time in times),
    }
    assert found["prepared"].provenance["split"]["method"] == "the latest rows by time"


def test_split_by_user(tmp_path: Path) -> None:
    rows = [row | {"user": row["user"] or "nobody"} for row in some_rows()]
    found = events(rows, tmp_path / "out", PrepareConfig(split="user", seed=3))
    expected = {row["event"] for row in rows if digest_of(3, row["user"]) >= 0.2 + 0.8 * 0.1}
    assert {row["event"] for row in found["train"]} == expected
    rule = found["prepared"].provenance["split"]
    assert (rule["method"], rule["key"]) == ("md5 of seed and user", ["user"])


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"time": None}, "time", "a split by time needs to know the column of the time; name it"),
        ({"user_field": None}, "user", "a split by user needs to know the column of the user"),
        ({"split": "group", "split_rule": "as published"}, "time", r"own \(as published\); it can"),
    ],
)
def test_split_that_is_not_possible(
    tmp_path: Path, changes: dict[str, Any], split: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(to_source(some_rows(), **changes), tmp_path / "out", PrepareConfig(split=split))


def test_split_by_time_without_rows(tmp_path: Path) -> None:
    source = to_source(some_rows())
    source = replace(source, rows=source.rows.filter(source.rows.time < 0))
    with pytest.raises(DataError, match="split 'train' has no rows: there are 0 in all"):
        prepare(source, tmp_path / "out", PrepareConfig(split="time"))


@pytest.mark.parametrize("other", ["+{}", " {}", "{}.0", "{}.00", "{}e0"])
def test_a_user_is_on_one_side_however_it_is_written(other: str, tmp_path: Path) -> None:
    """The two files of a log may write the same user in two ways."""
    rows = [
        row | {"user": (other if n % 2 else "{}").format(n % 60 + 1)}
        for n, row in enumerate(some_rows(600))
    ]
    fields = (FieldSource("user"), FieldSource("group"))
    source = to_source(rows, fields=fields)
    prepared = prepare(source, tmp_path / "out", PrepareConfig(split="user"))
    assert (prepared.rows("train").ids[:, 0] > 0).all()
    for split in ("validation", "test"):
        assert (prepared.rows(split).ids[:, 0] == 0).all()

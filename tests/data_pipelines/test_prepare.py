"""Splits, vocabularies and ids against a row-by-row computation in plain Python."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import ibis
import numpy as np
import pyarrow as pa
import pytest

from d3jax.batch import Field
from d3jax.data import columns as stored
from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared, check_rows, open_prepared
from d3jax.errors import ConfigError, DataError, OutputError
from data_pipelines.prepare import prepare
from data_pipelines.source import FieldSource, PrepareConfig, Source

Row = dict[str, Any]

FIELDS = (FieldSource("user"), FieldSource("tags", separator="|"), FieldSource("group"))
SCENARIOS = ("young", "old")
GROUPS = {"a": "young", "b": "old", "c": "old"}


def some_rows(count: int, seed: int = 0) -> list[Row]:
    """Rows with repeated events, repeated tags, NULL, empty and rare values."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        group = draw.choice("abc")
        tags = [draw.choice(["", "x", "y", "z", "é", "rare"]) for _ in range(draw.randrange(5))]
        rows.append(
            {
                "user": draw.choice([None, "", *(str(n) for n in range(40))]),
                "tags": None if draw.random() < 0.1 else "|".join(tags),
                "group": group,
                "time": draw.randrange(count // 2),
                "label": draw.randrange(2),
                "scenario": SCENARIOS.index(GROUPS[group]),
            }
        )
    return rows


def to_source(rows: list[Row], threads: int = 2, **changes: Any) -> Source:
    layout = pa.schema(
        {
            "user": pa.string(),
            "tags": pa.string(),
            "group": pa.string(),
            "time": pa.int64(),
            "label": pa.int64(),
            "scenario": pa.int64(),
        }
    )
    connection = ibis.duckdb.connect(threads=threads)
    connection.con.register("raw", pa.Table.from_pylist(rows, layout))
    source = Source(
        rows=connection.table("raw"),
        fields=FIELDS,
        scenarios=SCENARIOS,
        scenario_field="group",
        scenario_values=GROUPS,
        user_field="user",
        key=("user", "time"),
        label_rule="label = 1",
    )
    return replace(source, **changes)


def digest_of(row: Row, seed: int) -> str:
    return hashlib.md5(f"{seed}|{row['user'] or ''}|{row['time']}".encode()).hexdigest()


def split_of(row: Row, config: PrepareConfig) -> str:
    place = int(digest_of(row, config.seed), 16) / 2**128
    test = config.test_fraction
    if place < test:
        return "test"
    return "validation" if place < test + (1 - test) * config.validation_fraction else "train"


def values_of(row: Row, field: FieldSource) -> list[str]:
    text = row[field.name] or ""
    values = text.split(field.separator) if field.separator else [text]
    return sorted(set(values) - {""})


def reference_ids(values: list[str], ids: dict[str, int], slots: int) -> list[int]:
    known = sorted(ids[value] for value in values if value in ids)[:slots] or [0]
    return known + [-1] * (slots - len(known))


def reference(rows: list[Row], config: PrepareConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Vocabularies {field: {value: (id, count)}} and rows {split: [[ids, scenario, label]]}."""
    train = [row for row in rows if split_of(row, config) == "train"]
    vocabularies = {}
    encoders = []
    for field in FIELDS:
        counts = Counter(value for row in train for value in values_of(row, field))
        kept = sorted((-n, value.encode()) for value, n in counts.items() if n >= config.min_count)
        ids = {value.decode(): index for index, (_, value) in enumerate(kept, 1)}
        vocabularies[field.name] = {value: (ids[value], counts[value]) for value in ids}
        lengths = [sum(value in ids for value in values_of(row, field)) for row in train]
        encoders.append((field, ids, max(1, *lengths)))
    columns: dict[str, Any] = {split: [] for split in SPLITS}
    for row in rows:
        line = [
            part
            for field, ids, slots in encoders
            for part in reference_ids(values_of(row, field), ids, slots)
        ]
        held = [row["label"], row["scenario"], *(row[field.name] or "" for field in FIELDS)]
        order = digest_of(row, config.seed), hashlib.md5("|".join(map(str, held)).encode()).digest()
        columns[split_of(row, config)].append((order, *line, row["scenario"], row["label"]))
    return vocabularies, {
        split: [line[1:] for line in sorted(lines)] for split, lines in columns.items()
    }


def to_lists(prepared: Prepared, split: str) -> list[tuple[int, ...]]:
    ids, scenario, label = prepared.rows(split)
    return [tuple(row) for row in np.column_stack([ids, scenario, label]).astype(int).tolist()]


def bare(field: Field) -> Field:
    """A field without the fingerprint of its values."""
    return replace(field, fingerprint="")


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "config",
    [
        PrepareConfig(),
        PrepareConfig(min_count=25, seed=7),
        PrepareConfig(min_count=500, test_fraction=0.5, validation_fraction=0.5),
    ],
)
def test_agrees_with_plain_python(tmp_path: Path, config: PrepareConfig) -> None:
    rows = some_rows(800)
    prepared = prepare(to_source(rows), tmp_path / "out", config)
    vocabularies, columns = reference(rows, config)
    for name, expected in vocabularies.items():
        table = prepared.vocabulary(name).to_pylist()
        assert {line["value"]: (line["id"], line["count"]) for line in table} == expected
        assert [line["id"] for line in table] == list(range(1, len(expected) + 1))
    for split in SPLITS:
        assert to_lists(prepared, split) == columns[split]
    check_rows(prepared)


def test_max_slots_keeps_the_most_frequent(tmp_path: Path) -> None:
    rows = [
        {
            "user": str(n),
            "tags": tags,
            "group": "ab"[n % 2],
            "time": n,
            "label": 0,
            "scenario": n % 2,
        }
        for n, tags in enumerate(["x|y|z", "z|w", "z|w", "z|x", "z"] * 40)
    ]
    fields = (FIELDS[0], FieldSource("tags", "|", max_slots=2), FIELDS[2])
    prepared = prepare(to_source(rows, fields=fields), tmp_path / "out", PrepareConfig())
    order = prepared.vocabulary("tags")["value"].to_pylist()
    assert order[0] == "z"
    assert order[-1] == "y"
    assert bare(prepared.schema.fields[1]) == Field("tags", size=5, slots=2)
    for split in SPLITS:
        for _, first, second, *_ in to_lists(prepared, split):
            assert first == 1
            assert second in (-1, 2, 3)


def test_only_train_decides_values_and_slots(tmp_path: Path) -> None:
    """Tags seen four times in train, three times, and in the longest lists of the other splits."""
    rows = some_rows(300)
    train = [row for row in rows if split_of(row, PrepareConfig()) == "train"]
    for row in rows:
        row["tags"] = "x|y|z" if row not in train else "x"
    for row in train[:4]:
        row["tags"] = "x|y"
    for row in train[4:7]:
        row["tags"] = "x|z"
    prepared = prepare(to_source(rows), tmp_path / "out", PrepareConfig(min_count=4))
    vocabulary = prepared.vocabulary("tags").to_pylist()
    assert [(line["value"], line["count"]) for line in vocabulary] == [("x", len(train)), ("y", 4)]
    assert bare(prepared.schema.fields[1]) == Field("tags", size=3, slots=2)
    for row in train[:4]:
        row["tags"] = "y"
    prepared = prepare(to_source(rows), tmp_path / "single", PrepareConfig(min_count=4))
    assert bare(prepared.schema.fields[1]) == Field("tags", size=3, slots=1)
    assert {ids[1] for ids in to_lists(prepared, "test")} == {1}


def test_schema_and_provenance(tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    raw.write_bytes(b"evidence")
    source = to_source(some_rows(300), files=(raw,))
    out = tmp_path / "out"
    prepared = prepare(source, out, PrepareConfig(min_count=2, seed=3))
    content = json.loads((out / "schema.json").read_text())
    rows = content["provenance"].pop("rows")
    assert sum(rows.values()) == 300
    unknown = content["provenance"].pop("unknown")
    user, tags, *_ = prepared.rows("train").ids.T
    assert unknown == {"user": (user == 0).sum(), "tags": (tags == 0).sum(), "group": 0}
    assert content["provenance"] == {
        "label_rule": "label = 1",
        "min_count": 2,
        "scenario": {"field": "group", "values": GROUPS},
        "separators": {"tags": "|"},
        "sources": {"raw.csv": hashlib.sha256(b"evidence").hexdigest()},
        "split": {
            "key": ["user", "time"],
            "method": "md5 of seed and key",
            "seed": 3,
            "test_fraction": 0.2,
            "validation_fraction": 0.1,
        },
    }
    schema = open_prepared(out).schema
    assert (schema.scenario_field, schema.user_field, schema.item_field) == ("group", "user", None)
    assert schema.scenarios == SCENARIOS
    assert {path.name for path in out.iterdir()} == {
        *(".d3jax", "checksums.json", "schema.json", "vocabularies"),
        *SPLITS,
    }


def test_scenario_column_that_is_no_field(tmp_path: Path) -> None:
    source = to_source(some_rows(300), fields=FIELDS[:2])
    prepared = prepare(source, tmp_path / "out", PrepareConfig())
    assert prepared.schema.scenario_field is None
    assert prepared.provenance["scenario"]["field"] == "group"


def test_order_and_threads_do_not_show_in_the_bytes(tmp_path: Path) -> None:
    rows = some_rows(5000)
    shuffled = random.Random(1).sample(rows, len(rows))
    for name, order, threads in [("a", rows, 1), ("b", shuffled, 1), ("c", shuffled, 3)]:
        prepare(to_source(order, threads), tmp_path / name, PrepareConfig())
    first = contents(tmp_path / "a")
    assert contents(tmp_path / "b") == first
    assert contents(tmp_path / "c") == first


def published(rows: list[Row], names: list[str | None]) -> Source:
    """Rows whose `published` column says their split."""
    connection = ibis.duckdb.connect(threads=2)
    table = pa.Table.from_pylist(rows).append_column("published", pa.array(names, pa.string()))
    connection.con.register("raw", table)
    return replace(to_source([]), rows=connection.table("raw"), split="published")


def test_the_publisher_decides_the_split(tmp_path: Path) -> None:
    rows = [{**row, "user": str(n)} for n, row in enumerate(some_rows(300))]
    names = ["test" if n % 3 else None for n in range(300)]
    config = PrepareConfig(validation_fraction=0.25, seed=2)
    prepared = prepare(published(rows, names), tmp_path / "out", config)
    held_out = {
        row["user"]: "validation" if int(digest_of(row, 2), 16) < 0.25 * 2**128 else "train"
        for row, name in zip(rows, names, strict=True)
        if name is None
    }
    counts = Counter(held_out.values())
    assert counts["validation"] > 10
    assert prepared.provenance["rows"] == {**counts, "test": 200}
    users = prepared.vocabulary("user")["value"].to_pylist()
    assert set(users) == {user for user, split in held_out.items() if split == "train"}
    assert prepared.provenance["split"] == {
        "key": ["user", "time"],
        "method": "as published; what is not, by md5 of seed and key",
        "seed": 2,
        "validation_fraction": 0.25,
    }


def test_published_splits_of_all_rows(tmp_path: Path) -> None:
    names = [SPLITS[n % 3] for n in range(300)]
    prepared = prepare(published(some_rows(300), names), tmp_path / "out", PrepareConfig())
    assert prepared.provenance["rows"] == dict.fromkeys(SPLITS, 100)


def test_published_split_with_another_name(tmp_path: Path) -> None:
    names = ["valid" if n == 7 else None for n in range(300)]
    message = (
        "column 'published' says 'valid'; it must name one of the splits train, validation, test, "
        "or be NULL"
    )
    with pytest.raises(DataError, match=message):
        prepare(published(some_rows(300), names), tmp_path / "out", PrepareConfig())


def test_published_split_without_rows(tmp_path: Path) -> None:
    message = "split 'test' has no rows: there are 300 in all, and column 'published' gives it none"
    with pytest.raises(DataError, match=message):
        prepare(published(some_rows(300), [None] * 300), tmp_path / "out", PrepareConfig())


def test_given_ids_stay(tmp_path: Path) -> None:
    """Ids that only test has, and those that no row has, are in the vocabulary too."""
    rows = [{**row, "user": str(1 + n % 5)} for n, row in enumerate(some_rows(300))]
    names: list[str | None] = ["test" if n % 2 else None for n in range(300)]
    rows[1]["user"] = "9"
    rows[3]["user"] = None
    fields = (FieldSource("user", encoded=True), *FIELDS[1:])
    source = replace(published(rows, names), fields=fields, key=("user", "time", "tags"))
    prepared = prepare(source, tmp_path / "out", PrepareConfig(min_count=50))
    vocabulary = prepared.vocabulary("user").to_pylist()
    assert [(line["value"], line["id"]) for line in vocabulary] == [
        (str(value), value) for value in range(1, 10)
    ]
    assert [line["count"] for line in vocabulary[5:]] == [0, 0, 0, 0]
    assert bare(prepared.schema.fields[0]) == Field("user", size=10, kind="integer")
    users = Counter(row["user"] for row in rows[1::2])
    assert Counter(prepared.rows("test").ids[:, 0].tolist()) == {
        int(user or 0): count for user, count in users.items()
    }


def test_dropped_rows_are_kept_in_mind(tmp_path: Path) -> None:
    source = to_source(some_rows(300), dropped={"bots": 12})
    prepared = prepare(source, tmp_path / "out", PrepareConfig())
    assert prepared.provenance["dropped"] == {"bots": 12}


def test_another_seed_is_another_split(tmp_path: Path) -> None:
    source = to_source(some_rows(4000))
    sizes = [
        len(prepare(source, tmp_path / str(seed), PrepareConfig(seed=seed)).rows("test").label)
        for seed in range(3)
    ]
    assert len(set(sizes)) == 3
    # Rows repeat an event about twice: four standard deviations of the number of events.
    assert all(abs(size / 4000 - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5 for size in sizes)


def test_duplicates_of_an_event_stay_together(tmp_path: Path) -> None:
    rows = [{**row, "user": str(n)} for n, row in enumerate(some_rows(200))]
    prepared = prepare(to_source(rows * 3), tmp_path / "out", PrepareConfig())
    for split in SPLITS:
        lines = to_lists(prepared, split)
        assert lines == [line for line in lines[::3] for _ in range(3)]


def test_awkward_output_path(tmp_path: Path) -> None:
    out = tmp_path / "it's [1] *"
    assert prepare(to_source(some_rows(300)), out, PrepareConfig()).directory == out


def test_progress_counts_the_steps(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = lambda *step: seen.append(step)  # noqa: E731
    prepare(to_source(some_rows(300)), tmp_path / "out", PrepareConfig(), progress=report)
    names = ["rows", "field user", "field tags", "field group", "train", "validation", "test"]
    assert seen == [(name, index, 7) for index, name in enumerate(names)]


@pytest.mark.parametrize("label", [2, -1, None])
def test_label_must_be_0_or_1(tmp_path: Path, label: int | None) -> None:
    rows = [*some_rows(300), {**some_rows(2)[0], "user": "u7", "tags": "q", "label": label}]
    message = (
        rf"label {label} is neither 0 nor 1 in the row user='u7', tags='q', group='\w'; "
        "the rule is 'label = 1'"
    )
    with pytest.raises(DataError, match=message):
        prepare(to_source(rows), tmp_path / "out", PrepareConfig())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        ([], PrepareConfig(), "split 'train' has no rows: there are 0 in all"),
        (
            some_rows(60),
            PrepareConfig(test_fraction=1e-6),
            "split 'test' has no rows: there are 60 in all, test_fraction is 1e-06 and "
            "validation_fraction 0.1; give more rows, other fractions or another seed",
        ),
        (some_rows(60), PrepareConfig(validation_fraction=1e-6), "split 'validation' has no rows"),
    ],
)
def test_empty_split(tmp_path: Path, rows: list[Row], config: PrepareConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(to_source(rows), tmp_path / "out", config)


def test_scenario_without_rows_in_train(tmp_path: Path) -> None:
    rows = [row for row in some_rows(300) if row["scenario"] == 0]
    message = "scenario 'old' has no rows in train; leave it out, or give rows whose 'group'"
    with pytest.raises(DataError, match=message):
        prepare(to_source(rows), tmp_path / "out", PrepareConfig())


@pytest.mark.parametrize("scenario", [2, -1, None])
@pytest.mark.parametrize("split", SPLITS)
def test_scenario_that_does_not_exist(tmp_path: Path, scenario: int | None, split: str) -> None:
    rows = some_rows(300)
    wrong = next(row for row in rows if split_of(row, PrepareConfig()) == split)
    wrong["scenario"] = scenario
    message = (
        f"scenario {scenario} is not one of 2: young, old; correct the rule for column 'group'"
    )
    with pytest.raises(DataError, match=message):
        prepare(to_source(rows), tmp_path / "out", PrepareConfig())


def test_existing_directory_needs_overwrite(tmp_path: Path) -> None:
    source = to_source(some_rows(300))
    prepare(source, tmp_path / "out", PrepareConfig())
    before = contents(tmp_path / "out")
    with pytest.raises(OutputError, match=r"exists; choose another directory or pass --overwrite"):
        prepare(source, tmp_path / "out", PrepareConfig(seed=1))
    assert contents(tmp_path / "out") == before
    prepare(source, tmp_path / "out", PrepareConfig(seed=1), overwrite=True)
    assert contents(tmp_path / "out") != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_count": 0}, "min_count is 0; it must be at least 1"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0; it must be above 0 and below 1"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0; it must be above 0 and below 1"),
        ({"validation_fraction": -0.1}, "validation_fraction is -0.1; it must be above 0"),
        ({"validation_fraction": float("nan")}, "validation_fraction is nan; it must be above 0"),
    ],
)
def test_config_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(**settings)


def test_nothing_stays_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the first array gets its header."""

    def fail(file: BinaryIO, dtype: type[np.generic], shape: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stored, "_write_header", fail)
    connection = ibis.duckdb.connect()
    numbers = range(100)
    rows = {
        "user": [str(n) for n in numbers],
        "label": [n % 2 for n in numbers],
        "scenario": [0 for _ in numbers],
    }
    connection.con.register("raw", pa.table(rows))
    source = Source(
        rows=connection.table("raw"),
        fields=(FieldSource("user"),),
        scenarios=("a",),
        scenario_field="user",
        scenario_values={},
        key=("user",),
        label_rule="label",
    )
    with pytest.raises(OutputError, match=r"no space is left on .*out; free about three times the"):
        prepare(source, tmp_path / "out", PrepareConfig())
    assert list(tmp_path.iterdir()) == []

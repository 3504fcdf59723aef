"""The prepared directory: what is written is read back, and what is damaged is refused by name."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3jax.batch import Field, Schema
from d3jax.data import prepared as columns
from d3jax.data.prepared import (
    SPLITS,
    Rows,
    check_rows,
    open_prepared,
    read_schema,
    write_rows,
    write_schema,
    write_vocabulary,
)
from d3jax.errors import DataError

SCHEMA = Schema(
    fields=(Field("user", 4), Field("tags", 3, slots=2)),
    scenarios=("young", "old"),
    scenario_field="user",
    user_field="user",
)
COUNTS = {"train": 5, "validation": 2, "test": 3}


def some_rows(count: int) -> Rows:
    row = np.arange(count)
    return Rows(
        ids=np.stack([row % 4, row % 3, np.where(row % 2, 2, -1)], axis=1).astype(np.int32),
        scenario=(row % 2).astype(np.int32),
        label=(row % 2).astype(np.float32),
    )


def vocabulary(*values: str) -> pa.Table:
    ids = np.arange(1, len(values) + 1)
    return pa.table({"value": list(values), "id": ids, "count": ids[::-1] * 10})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A prepared directory of ten rows in two fields."""
    path = tmp_path / "prepared"
    path.mkdir()
    for split, count in COUNTS.items():
        write_rows(path, split, count, 3, [some_rows(count)])
    write_vocabulary(path, "user", vocabulary("a", "b", "c"))
    write_vocabulary(path, "tags", vocabulary("x", "ÿ"))
    write_schema(path, SCHEMA, {"rows": COUNTS, "label_rule": "rating > 3"})
    return path


def bare(schema: Schema) -> Schema:
    """A schema without its fingerprints."""
    fields = tuple(replace(field, fingerprint="") for field in schema.fields)
    return replace(schema, fields=fields, fingerprint="")


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def edit_schema(directory: Path, change: Callable[[dict], object]) -> None:
    path = directory / "schema.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def poke(path: Path, index: object, value: float) -> None:
    """Overwrites one entry of a column in place."""
    column = np.load(path, mmap_mode="r+")
    column[index] = value
    column.flush()


def test_reads_back_what_was_written(directory: Path) -> None:
    prepared = open_prepared(directory)
    assert bare(prepared.schema) == SCHEMA
    assert prepared.provenance == {"rows": COUNTS, "label_rule": "rating > 3"}
    for split in SPLITS:
        rows = prepared.rows(split)
        for read, written in zip(rows, some_rows(COUNTS[split]), strict=True):
            assert isinstance(read, np.memmap)
            assert read.dtype == written.dtype
            np.testing.assert_array_equal(read, written)
    assert prepared.vocabulary("tags").to_pydict() == {
        "value": ["x", "ÿ"],
        "id": [1, 2],
        "count": [20, 10],
    }
    check_rows(prepared)


def test_schema_json_is_sorted_and_ends_with_a_newline(directory: Path) -> None:
    text = (directory / "schema.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "format_version": 2,\n  "provenance": {\n    "label_rule"')
    assert text.endswith("}\n")
    assert str(directory.parent) not in text


def test_chunks_do_not_show_in_the_bytes(tmp_path: Path) -> None:
    rows = some_rows(7)
    values = vocabulary(*(str(value * 7919 % 10**9) for value in range(200_000)))
    pieces = pa.concat_tables([values.slice(start, 777) for start in range(0, 200_000, 777)])
    for name, bounds, table in [("whole", [0, 7], values), ("pieces", [0, 1, 1, 5, 7], pieces)]:
        chunks = [
            Rows(*(column[start:stop] for column in rows))
            for start, stop in itertools.pairwise(bounds)
        ]
        write_rows(tmp_path / name, "train", 7, 3, chunks)
        write_vocabulary(tmp_path / name, "user", table)
    assert contents(tmp_path / "whole") == contents(tmp_path / "pieces")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("schema.json", "schema.json is missing; prepare the data again"),
        ("vocabularies/tags-978c2f89.parquet", "tags-978c2f89.parquet is missing"),
        ("validation/scenario.npy", "validation/scenario.npy is missing"),
    ],
)
def test_missing_file(directory: Path, file: str, message: str) -> None:
    (directory / file).unlink()
    with pytest.raises(DataError, match=message):
        open_prepared(directory)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("schema.json", r"schema.json is damaged \(JSONDecodeError"),
        ("vocabularies/tags-978c2f89.parquet", r"tags-978c2f89.parquet is damaged"),
        ("train/ids.npy", r"train/ids.npy is damaged or cut short"),
        ("test/label.npy", r"test/label.npy is damaged or cut short"),
    ],
)
@pytest.mark.parametrize("kept", [0, 4, -4], ids=["empty", "head", "tail cut"])
def test_cut_file(directory: Path, file: str, message: str, kept: int) -> None:
    path = directory / file
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=message):
        open_prepared(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=1), "format_version 1; this d3jax reads 2; prepare"),
        (lambda c: c.pop("format_version"), r"schema.json is damaged \(KeyError\('format_version'"),
        (lambda c: c["schema"].pop("fields"), r"damaged \(schema.fields is missing"),
        (lambda c: c["schema"].update(extra=1), r"damaged \(schema.extra is unk"),
        (lambda c: c["schema"].update(user_field="nobody"), r"damaged \(field 'nobody' has"),
        (lambda c: c["provenance"]["rows"].update(test=0), "split 'test' has no rows"),
        (lambda c: c["provenance"].pop("rows"), "split 'train' has no rows"),
        (
            lambda c: c["provenance"].update(rows=[5]),
            r"damaged \(provenance.rows is \[5\]; it m",
        ),
        (lambda c: c["provenance"]["rows"].update(train="5"), r"damaged \(provenance.rows is {"),
        (lambda c: c.update(provenance=3), r"damaged \(provenance is 3; it must be an object"),
        (
            lambda c: c["provenance"]["rows"].update(test=4),
            r"test/ids.npy holds int32 of shape \(3, 3\); schema.json says int32 of shape \(4, 3\)",
        ),
        (
            lambda c: c["schema"]["fields"][1].update(slots=1),
            r"train/ids.npy holds int32 of shape \(5, 3\); .* int32 of shape \(5, 2\)",
        ),
        (
            lambda c: c["schema"]["fields"][0].update(size=5),
            "user-.*.parquet has 3 values; schema.json says 4; prepare the data again",
        ),
    ],
)
def test_schema_that_disagrees(
    directory: Path, change: Callable[[dict], object], message: str
) -> None:
    edit_schema(directory, change)
    with pytest.raises(DataError, match=message):
        open_prepared(directory)


def test_columns_of_different_length_or_type(directory: Path) -> None:
    np.save(directory / "train" / "label.npy", np.zeros(4, np.float32))
    with pytest.raises(DataError, match=r"label.npy holds float32 of shape \(4,\)"):
        open_prepared(directory)
    np.save(directory / "train" / "label.npy", np.zeros(5, np.float64))
    with pytest.raises(DataError, match=r"label.npy holds float64 .* says float32 of shape \(5,\)"):
        open_prepared(directory)


def test_pickled_column_is_refused(directory: Path) -> None:
    np.save(directory / "train" / "label.npy", np.array([{}] * 5))
    with pytest.raises(DataError, match=r"train/label.npy is damaged"):
        open_prepared(directory)


def test_read_schema_needs_no_rows(directory: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (directory / "schema.json").rename(run / "schema.json")
    (directory / "vocabularies").rename(run / "vocabularies")
    assert read_schema(run).vocabulary("user")["value"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"train/ids.npy is missing"):
        open_prepared(run)


def test_vocabulary_of_an_unknown_field(directory: Path) -> None:
    with pytest.raises(DataError, match=r"no field 'age' in the schema; it has \['user', 'tags'\]"):
        open_prepared(directory).vocabulary("age")


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize(
    ("file", "index", "value", "message"),
    [
        ("ids", (3, 0), 4, r"field 'user': id 4 in row 3 of .*/train \(ids.npy, .* \[0, 4\)"),
        ("ids", (4, 2), -2, r"field 'tags': id -2 in row 4 of .*/train \(ids.npy, .* \[-1, 3\)"),
        ("ids", (4, 0), -1, r"field 'user': id -1 in row 4 of .*/train"),
        ("scenario", 4, 2, r"scenario 2 in row 4 of .*/train \(ids.npy, scenario.npy\)"),
        ("label", 3, 0.5, r"label 0.5 in row 3 of .*/train/label.npy is neither 0 nor 1"),
        ("label", 4, np.nan, r"label nan in row 4 of .*/train/label.npy"),
    ],
)
def test_check_rows_names_the_row_of_the_file(
    directory: Path,
    file: str,
    index: object,
    value: float,
    message: str,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(columns, "_CHUNK", chunk)
    poke(directory / "train" / f"{file}.npy", index, value)
    prepared = open_prepared(directory)
    with pytest.raises(DataError, match=message):
        check_rows(prepared)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_check_rows_looks_at_every_split(directory: Path, split: str) -> None:
    poke(directory / split / "ids.npy", (1, 1), 9)
    with pytest.raises(DataError, match=rf"field 'tags': id 9 in row 1 of .*/{split} "):
        check_rows(open_prepared(directory))


@pytest.mark.parametrize(
    ("count", "chunks", "message"),
    [
        (0, [], "split 'train' has no rows to write"),
        (4, [some_rows(2), some_rows(1)], "split 'train' got 3 rows; 4 were counted"),
        (4, [some_rows(3), some_rows(2)], "split 'train' got more than the 4 rows"),
    ],
)
def test_rows_must_fill_the_count(
    tmp_path: Path, count: int, chunks: list[Rows], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_rows(tmp_path, "train", count, 3, chunks)


NAMES = st.text(min_size=1, max_size=150) | st.sampled_from(
    [
        "*",
        "age*",
        "a/b",
        "../x",
        "..",
        "[a]",
        "?",
        "click=1",
        "年" * 120,
        "\0",
        "CON",
        "a",
        "A",
        " a",
    ]
)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True))
def test_a_field_may_have_any_name(names: list[str]) -> None:
    """Each has a file of its own, and none is read in another's place."""
    with TemporaryDirectory() as folder:
        path = Path(folder)
        for index, name in enumerate(names):
            write_vocabulary(path, name, vocabulary(f"value {index}"))
        schema = Schema(tuple(Field(name, 2) for name in names), ("one",))
        write_schema(path, schema, {})
        assert len(list((path / "vocabularies").iterdir())) == len(names)
        codes = read_schema(path).codes()
        assert [code.values.to_pylist() for code in codes] == [
            [f"value {index}"] for index in range(len(names))
        ]


def test_a_vocabulary_that_is_not_the_schemas_is_refused(directory: Path) -> None:
    write_vocabulary(directory, "tags", vocabulary("x", "z"))
    message = "is damaged: it is not the vocabulary that schema.json knows of field 'tags'; prepare"
    with pytest.raises(DataError, match=message):
        open_prepared(directory).codes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p.update(label_rule="rating < 3"),
            "rule for the scenario or the label has",
        ),
        (
            lambda p: p.update(separators=None),
            r"provenance.separators is None; it must be",
        ),
        (lambda p: p.update(unknown={"user": "3"}), r"provenance.unknown is .*; it must be an obj"),
        (lambda p: p.update(buckets={"user": 3}), r"provenance.buckets.user is 3; it must be"),
        (lambda p: p.update(scenario={"field": 1}), r"provenance.scenario"),
        (lambda p: p["rows"].update(test=-1), r"provenance.rows.test is below 0"),
    ],
)
def test_rules_that_have_changed_are_refused(
    directory: Path, change: Callable[[dict], object], message: str
) -> None:
    edit_schema(directory, lambda content: change(content["provenance"]))
    with pytest.raises(DataError, match=message):
        read_schema(directory)

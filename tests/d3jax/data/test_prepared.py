"""The prepared directory: what is written is read back, and what is damaged is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d3jax.batch import Schema
from d3jax.data.columns import SPLITS
from d3jax.data.prepared import check_rows, open_prepared, read_schema
from d3jax.errors import DataError
from tests.d3jax.data.directory import COUNTS, SCHEMA, edit_schema, some_rows


def bare(schema: Schema) -> Schema:
    """A schema without its fingerprints."""
    fields = tuple(replace(field, fingerprint="") for field in schema.fields)
    return replace(schema, fields=fields, fingerprint="")


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
    assert text.startswith('{\n  "format_version": 3,\n  "provenance": {\n    "label_rule"')
    assert text.endswith("}\n")
    assert str(directory.parent) not in text


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
        (lambda c: c.update(format_version=1), "format_version 1; this d3jax reads 3; prepare"),
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


def test_read_schema_needs_no_rows(directory: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (directory / "schema.json").rename(run / "schema.json")
    (directory / "vocabularies").rename(run / "vocabularies")
    assert read_schema(run).vocabulary("user")["value"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"train/ids.npy is missing"):
        open_prepared(run)

"""A table prepared from one file and served from another, written in another way: the same ids."""

from __future__ import annotations

import gzip
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3jax.data.columns import SPLITS
from d3jax.data.encoding import kind_of, spell
from d3jax.data.format import Format
from d3jax.data.prepared import Prepared, load_encoder
from d3jax.data.reading import find_files, open_files, raw_batches
from data_pipelines.prepare import prepare
from data_pipelines.raw.engine import duckdb_engine
from data_pipelines.source import PrepareConfig
from data_pipelines.sources.table import TableConfig, read_table
from data_pipelines.splits import plain

Columns = dict[str, list[Any]]

SPELLINGS = st.one_of(
    st.from_regex(r"\A[ \t]?[-+]?[0-9]{0,3}(\.[0-9]{0,3})?([eE][-+]?[0-9]{1,2})?[ \t]?\Z"),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    st.sampled_from(["True", "false", " TRUE ", "", "007", "x", "-0", "0.0", "nan", "12.", "."]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
)

CONFIG = TableConfig(
    label="click",
    scenario="tab",
    fields=("item", "price", "bought", "zip", "day"),
    hash=("user=50",),
    numeric=("age=5",),
    multi=("tags=|",),
    time="row",
)


def some_columns(count: int = 400, seed: int = 0) -> Columns:
    """Rows of every kind of value, some missing; ids from 1e10 on are hashed."""
    draw = random.Random(seed)
    users = [10**10 + draw.randrange(10**6) for _ in range(40)]
    missing = lambda value: None if draw.random() < 0.1 else value  # noqa: E731
    return {
        "user": [missing(draw.choice(users)) for _ in range(count)],
        "item": [missing(draw.randrange(30)) for _ in range(count)],
        "price": [missing(draw.randrange(40) / 4) for _ in range(count)],
        "bought": [missing(draw.random() < 0.5) for _ in range(count)],
        "zip": [missing(f"{draw.randrange(20):05}") for _ in range(count)],
        "day": [missing(f"2024-02-{draw.randrange(1, 29):02}") for _ in range(count)],
        "age": [missing(draw.randrange(90)) for _ in range(count)],
        "tags": [[draw.randrange(9) for _ in range(draw.randrange(4))] for _ in range(count)],
        "tab": [draw.randrange(2) for _ in range(count)],
        "row": list(range(count)),
        "click": [draw.randrange(2) for _ in range(count)],
    }


def words(columns: Columns, point: str = "", missing: str = "") -> Columns:
    """Everything as text: `point` follows whole numbers, `missing` stands where nothing is."""

    def word(value: Any) -> str:
        if value is None:
            return missing
        return f"{value}{point}" if type(value) is int else str(value)

    return {
        name: ["|".join(map(word, v)) if isinstance(v, list) else word(v) for v in column]
        for name, column in columns.items()
    }


def floats(columns: Columns) -> pa.Table:
    """What pandas makes of integers with gaps."""
    made = {
        name: np.array([np.nan if value is None else value for value in column], np.float64)
        for name, column in columns.items()
        if name in ("user", "item", "price", "age", "tab", "row", "click")
    }
    return pa.table({**columns, **made})


def write_csv(path: Path, columns: Columns) -> Path:
    pa.csv.write_csv(pa.table(columns), path)
    return path


def write_gzip(path: Path, columns: Columns) -> Path:
    lines = ["\t".join(columns), *("\t".join(row) for row in zip(*columns.values(), strict=True))]
    path.write_bytes(gzip.compress("\n".join(lines).encode("utf-16")))
    return path


def write_parts(path: Path, columns: Columns) -> Path:
    path.mkdir()
    table = pa.table(columns)
    for number, start in enumerate(range(0, table.num_rows, 150)):
        pq.write_table(table.slice(start, 150), path / f"part-{number}.parquet")
    return path


def write_parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


WAYS: dict[str, Callable[[Path, Columns], Path]] = {
    "csv": lambda folder, c: write_csv(folder / "a.csv", words(c)),
    "csv with points": lambda folder, c: write_csv(folder / "b.csv", words(c, ".0")),
    "gzip": lambda folder, c: write_gzip(folder / "c.tsv.gz", words(c)),
    "typed parquet": lambda folder, c: write_parquet(folder / "d.parquet", pa.table(c)),
    "float parquet": lambda folder, c: write_parquet(folder / "e.parquet", floats(c)),
    "text parquet": lambda folder, c: write_parquet(folder / "f.parquet", pa.table(words(c))),
    "parts": lambda folder, c: write_parts(folder / "g", c),
}


def form_of(way: str) -> Format:
    return Format(encoding="utf-16") if way == "gzip" else Format()


def prepared_from(folder: Path, source: Path, way: str) -> Prepared:
    scratch = folder / "scratch"
    scratch.mkdir()
    config = TableConfig(**{**vars(CONFIG), "encoding": form_of(way).encoding})
    rows = read_table(duckdb_engine(scratch), source, scratch, config)
    return prepare(rows, folder / "out", PrepareConfig(min_count=2))


def served(prepared: Prepared, source: Path, way: str) -> tuple[np.ndarray, np.ndarray]:
    encoder = load_encoder(prepared)
    with tempfile.TemporaryDirectory() as scratch:
        files = open_files(find_files(source), form_of(way), Path(scratch))
        parts = [encoder.encode(batch) for batch in raw_batches(files, encoder.columns)]
    ids, scenario = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(scenario)


@pytest.mark.parametrize("way", WAYS)
def test_a_value_has_one_id_whatever_file_it_is_in(way: str, tmp_path: Path) -> None:
    columns = some_columns()
    source = WAYS[way](tmp_path, columns)
    prepared = prepared_from(tmp_path, source, way)
    kinds = {field.name: field.kind for field in prepared.schema.fields}
    assert kinds == {
        **dict.fromkeys(("user", "item", "age", "tags", "tab"), "integer"),
        "price": "decimal",
        "bought": "boolean",
        "zip": "text",
        "day": "text",
    }
    expected, scenario = served(prepared, source, way)
    rows = sorted(map(tuple, expected.tolist()))
    parts = [prepared.rows(split).ids.tolist() for split in SPLITS]
    assert sorted(tuple(row) for part in parts for row in part) == rows
    assert (expected[:, 0] == 0).mean() == pytest.approx(0.1, abs=0.05)
    for other, write in WAYS.items():
        folder = tmp_path / f"as {other}"
        folder.mkdir()
        ids, numbers = served(prepared, write(folder, columns), other)
        np.testing.assert_array_equal(ids, expected, err_msg=other)
        np.testing.assert_array_equal(numbers, scenario, err_msg=other)


INTEGERS = st.integers(-(2**53), 2**53)


@settings(max_examples=8, deadline=None)
@given(
    st.lists(INTEGERS, min_size=4, max_size=20, unique=True),
    st.sampled_from(sorted(WAYS)),
    st.sampled_from(sorted(WAYS)),
)
@pytest.mark.slow
def test_any_integers_keep_their_ids(numbers: list[int], way: str, other: str) -> None:
    columns = some_columns(120)
    columns["item"] = [numbers[row % len(numbers)] for row in range(120)]
    columns["user"] = columns["item"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = WAYS[way](folder, columns)
        prepared = prepared_from(folder, source, way)
        expected, _ = served(prepared, source, way)
        (folder / "other").mkdir()
        ids, _ = served(prepared, WAYS[other](folder / "other", columns), other)
        np.testing.assert_array_equal(ids, expected)
        assert (expected[:, 0] > 0).all()


def test_what_is_missing_is_missing_however_it_is_said(tmp_path: Path) -> None:
    columns = some_columns()
    prepared = prepared_from(tmp_path, write_csv(tmp_path / "a.csv", words(columns)), "csv")
    expected, _ = served(prepared, tmp_path / "a.csv", "csv")
    said = words(columns, missing="NaN")
    for name in ("zip", "day", "tags"):
        said[name] = words(columns)[name]
    ids, _ = served(prepared, write_csv(tmp_path / "b.csv", said), "csv")
    np.testing.assert_array_equal(ids, expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(SPELLINGS, min_size=1, max_size=30))
def test_the_engine_spells_keys_as_ids_are_spelt(texts: list[str]) -> None:
    """Events, users and keys of joins are told apart as their ids will be."""
    connection = duckdb_engine(Path(), threads=1)
    table = pa.table({"row": range(len(texts)), "text": texts})
    connection.con.register("keys", table)
    keys = connection.table("keys")
    found = keys.select("row", spelt=plain(keys.text)).order_by("row").to_pyarrow()["spelt"]
    for text, spelt in zip(texts, found.to_pylist(), strict=True):
        kind = kind_of([text])
        power = "e" in text.lower() and kind in ("integer", "decimal")
        if power and (kind == "decimal" or abs(float(text)) >= 2.0**63):
            continue  # left as it is: how a float64 is written that is no integer of 64 bits
        assert spelt == (spell(pa.array([text]), kind)[0].as_py() or text), text

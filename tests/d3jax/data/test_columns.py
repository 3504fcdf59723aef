"""Rows are read back as they were written, and a value that can't be is named by its place."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from d3jax.data import columns
from d3jax.data.columns import Rows, write_rows
from d3jax.data.prepared import check_rows, open_prepared
from d3jax.errors import DataError
from tests.d3jax.data.directory import some_rows


def poke(path: Path, index: object, value: float) -> None:
    """Overwrites one entry of a column in place."""
    column = np.load(path, mmap_mode="r+")
    column[index] = value
    column.flush()


def test_chunks_do_not_show_in_the_bytes(tmp_path: Path) -> None:
    rows = some_rows(7)
    for name, bounds in [("whole", [0, 7]), ("pieces", [0, 1, 1, 5, 7])]:
        chunks = [
            Rows(*(column[start:stop] for column in rows))
            for start, stop in itertools.pairwise(bounds)
        ]
        write_rows(tmp_path / name, "train", 7, 3, chunks)
    for file in ("ids.npy", "scenario.npy", "label.npy"):
        whole, pieces = (tmp_path / name / "train" / file for name in ("whole", "pieces"))
        assert whole.read_bytes() == pieces.read_bytes()


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

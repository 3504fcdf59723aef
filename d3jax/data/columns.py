"""The rows of a split, in ids.npy, scenario.npy and label.npy: written, mapped and checked."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from d3jax.batch import Schema
from d3jax.data.files import AGAIN, existing
from d3jax.errors import DataError

SPLITS = ("train", "validation", "test")

_CHUNK = 1 << 20


class Rows(NamedTuple):
    """R encoded rows: memory maps when read, so only the rows that are touched are loaded."""

    ids: np.ndarray
    scenario: np.ndarray
    label: np.ndarray


def map_rows(directory: Path, split: str) -> Rows:
    """Return the columns of `split` as memory maps. Raises `DataError` for a file that is none."""
    return Rows(*(_map(_column(directory, split, name)) for name in Rows._fields))


def check_layout(directory: Path, split: str, count: int, num_slots: int) -> None:
    """Raises `DataError` unless the columns have the types and shapes of `count` rows."""
    for name, dtype, shape in _layout(count, num_slots):
        path = _column(directory, split, name)
        column = _map(path)
        if column.dtype != dtype or column.shape != shape:
            raise DataError(
                f"{path} holds {column.dtype} of shape {column.shape}; schema.json says "
                f"{np.dtype(dtype)} of shape {shape}; {AGAIN}"
            )


def check_values(directory: Path, split: str, schema: Schema, rows: Rows) -> None:
    """Raises `DataError` naming file, field, row and value that the schema doesn't have."""
    for start in range(0, min(len(column) for column in rows), _CHUNK):
        chunk = Rows(*(column[start : start + _CHUNK] for column in rows))
        where = f"{directory / split} (ids.npy, scenario.npy)"
        schema.check(chunk.ids, chunk.scenario, where, start)
        bad = ~np.isin(chunk.label, (0, 1))
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"label {chunk.label[row]} in row {start + row} of "
                f"{_column(directory, split, 'label')} is neither 0 nor 1; {AGAIN}"
            )


def write_rows(
    directory: Path, split: str, count: int, num_slots: int, chunks: Iterable[Rows]
) -> None:
    """Streams `chunks` into the columns of `split`, which hold exactly `count` rows.

    Raises `DataError` when there are no rows, or more or fewer than `count`.
    """
    if count < 1:
        raise DataError(f"split {split!r} has no rows to write")
    (directory / split).mkdir(parents=True, exist_ok=True)
    layout = _layout(count, num_slots)
    filled = 0
    with ExitStack() as stack:
        # Written, not mapped: a full disk is then an error, and no page stays in memory.
        files = [
            stack.enter_context(_column(directory, split, name).open("wb")) for name, *_ in layout
        ]
        for file, (_, dtype, shape) in zip(files, layout, strict=True):
            _write_header(file, dtype, shape)
        for chunk in chunks:
            filled += len(chunk.label)
            if filled > count:
                raise DataError(f"split {split!r} got more than the {count} rows that were counted")
            for file, values, (_, dtype, shape) in zip(files, chunk, layout, strict=True):
                block = np.empty((len(chunk.label), *shape[1:]), dtype)
                block[:] = values
                file.write(block.data)
    if filled != count:
        raise DataError(f"split {split!r} got {filled} rows; {count} were counted")


def _write_header(file: BinaryIO, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _layout(count: int, num_slots: int) -> list[tuple[str, type[np.generic], tuple[int, ...]]]:
    return [
        ("ids", np.int32, (count, num_slots)),
        ("scenario", np.int32, (count,)),
        ("label", np.float32, (count,)),
    ]


def _column(directory: Path, split: str, name: str) -> Path:
    return directory / split / f"{name}.npy"


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(existing(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); {AGAIN}") from error

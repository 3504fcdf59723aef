"""Left joins that keep every row once, and say how many found no partner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ibis

from d3jax.errors import DataError
from data_pipelines.raw.files import Raw, check_unique
from data_pipelines.splits import plain

# A blank keeps it apart from the names of a header, which has none at its ends.
_MATCHED, _KEY = " matched", " key"


class Attached(NamedTuple):
    """The joined rows, and the number of those that the other table knows nothing about."""

    table: ibis.Table
    unmatched: int


def attach(
    table: ibis.Table,
    other: Raw,
    key: str,
    added: Sequence[str] | None = None,
    other_key: str | None = None,
) -> Attached:
    """The rows of `table` with the columns `added`, or all, that `other` has for their `key`.

    `other` calls the key `other_key`. A whole number is the same key with and without a point.
    Raises `DataError` naming value and lines when `other` has a key twice, for a join would then
    copy rows.
    """
    other_key = other_key or key
    check_unique(other, other_key)
    if added is None:
        added = [name for name in other.columns if name != other_key]
    right = other.table.select(
        *added, **{_KEY: plain(other.table[other_key]), _MATCHED: ibis.literal(True)}
    )
    left = table.mutate(**{_KEY: plain(table[key])})
    joined = left.left_join(right, _KEY)
    unmatched = joined.count(where=joined[_MATCHED].isnull()).to_pyarrow().as_py()
    return Attached(joined.select(*table.columns, *added), unmatched)


def file_of(directory: Path, name: str) -> Path:
    """A file of a directory, as it is or with .gz; raises `DataError` saying what there is."""
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    found = ", ".join(sorted(entry.name for entry in directory.glob("*"))[:10]) or "nothing"
    raise DataError(f"{directory} has no {name}, only {found}; unpack the data set into it")

"""The raw files of Ali-CCP (Ma et al., 2018): lines of features, checked and split into fields.

A line ends in a list of items `field \\x02 id \\x03 value` with \\x01 between them. A field may
appear several times; the values weigh the ids and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import duckdb
import ibis
from ibis.expr.types import ArrayValue, StringValue

from d3jax.errors import DataError
from data_pipelines.raw.engine import read_csv, read_parquet, text_parser, write_parquet

# fmt: off
FIELD_NAMES = (
    "101", "121", "122", "124", "125", "126", "127", "128", "129",
    "205", "206", "207", "210", "216", "508", "509", "702", "853",
    "301", "109_14", "110_14", "127_14", "150_14",
)
# fmt: on

MULTI_VALUED = ("210", "508", "509", "702", "853", "109_14", "110_14", "127_14", "150_14")
"""The item's intentions, the user's history of two weeks, and the crosses of the two."""

SEPARATOR = "|"

COMMON, SKELETON = "common_features", "sample_skeleton"

COLUMNS = {
    COMMON: ("common_feature_index", "feature_num", "feature_list"),
    SKELETON: (
        "sample_id",
        "click",
        "purchase",
        "common_feature_index",
        "feature_num",
        "feature_list",
    ),
}

AGAIN = "download the file again"

_TEXT = rf"[^\x01\x02\x03,{SEPARATOR}]+"
_ITEM = rf"{_TEXT}\x02{_TEXT}\x03{_TEXT}"
_FORMATS = {
    "sample_id": _TEXT,
    "click": "[01]",
    "purchase": "[01]",
    "common_feature_index": _TEXT,
    "feature_num": "[0-9]+",
    "feature_list": rf"(?:{_ITEM}(?:\x01{_ITEM})*)?",
}

_NO_DELIMITER = "\x1e\x1f\x1e\x1f"
"""Four control characters that no line holds, so that a line is read as one column."""


class File(NamedTuple):
    """One raw file: `table` has a string column per column before the list and per field."""

    path: Path
    table: ibis.Table


def parse(
    connection: ibis.BaseBackend, path: Path, kind: str, scratch: Path, max_slots: int
) -> File:
    """Checks the lines of a file of this `kind` and splits them, once, into Parquet in `scratch`.

    A multi-valued field has its last `max_slots` values, any other its last one, and is NULL
    where it has none. From the Parquet file the engine knows the number of rows when it chooses
    how to join them. Raises `DataError` when the file is missing or isn't UTF-8, or naming line
    and value for a malformed line.
    """
    parser = text_parser(connection, scratch)
    lines = _read_lines(parser, path)
    staged = scratch / f"{path.stem}.parquet"
    try:
        formats = ",".join(_FORMATS[name] for name in COLUMNS[kind])
        malformed = lines.filter(~lines.line.re_search(f"^{formats}$")).line.min()
        if (line := malformed.to_pyarrow().as_py()) is not None:
            raise DataError(_describe(path, kind, line))
        write_parquet(_split(lines, kind, max_slots), staged)
    except duckdb.InvalidInputException as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"file {path.name} can't be read as lines of UTF-8 ({reason}); {AGAIN}"
        ) from error
    return File(path, read_parquet(connection, staged))


def slots(name: str, max_slots: int) -> int:
    """The number of values of a field that are kept."""
    return max_slots if name in MULTI_VALUED else 1


def line_number(path: Path, wanted: Callable[[str], bool]) -> int:
    """Return the number of the first line that is `wanted`, from 1."""
    with path.open(encoding="utf-8") as file:
        return next(at for at, line in enumerate(file, 1) if wanted(line.rstrip("\n")))


def _read_lines(connection: ibis.BaseBackend, path: Path) -> ibis.Table:
    """A column `line`; blank lines hold no row."""
    if not path.is_file():
        found = ", ".join(sorted(entry.name for entry in path.parent.glob("*"))[:10]) or "nothing"
        raise DataError(
            f"{path.parent} has no {path.name}, only {found}; unpack sample_train and "
            "sample_test of Ali-CCP into one directory"
        )
    table = read_csv(
        connection,
        path,
        columns={"line": "VARCHAR"},
        header=False,
        delim=_NO_DELIMITER,
        quote="",
        escape="",
        auto_detect=False,
        strict_mode=False,  # a file may mix the line ends of two systems
    )
    return table.filter(table.line.fill_null("").strip() != "")


def _split(lines: ibis.Table, kind: str, max_slots: int) -> ibis.Table:
    names = COLUMNS[kind][:-1]
    cells = lines.line.split(",")
    items = cells[len(names)].split("\x01")
    return lines.select(
        *(cells[index].name(name) for index, name in enumerate(names)),
        *(_last(items, name, slots(name, max_slots)).name(name) for name in FIELD_NAMES),
    )


def _last(items: ArrayValue, name: str, count: int) -> StringValue:
    """The last `count` ids of a field, joined; NULL where it has none."""
    mine = items.filter(lambda item: item.startswith(f"{name}\x02"))
    ids = mine[-count:].map(lambda item: item[len(name) + 1 :].split("\x03")[0])
    return ids.join(SEPARATOR).nullif("")


def _describe(path: Path, kind: str, line: str) -> str:
    """Return what is wrong with a malformed line: its columns, a value or an item of its list."""
    names, cells = COLUMNS[kind], line.split(",")
    place = f"file {path.name}, line {line_number(path, lambda other: other == line)}"
    if len(cells) != len(names):
        return f"{place}: {len(cells)} columns, expected {len(names)} ({','.join(names)}); {AGAIN}"
    name, cell = next(
        (name, cell)
        for name, cell in zip(names, cells, strict=True)
        if not re.fullmatch(_FORMATS[name], cell)
    )
    if name == "feature_list":
        item = next(item for item in cell.split("\x01") if not re.fullmatch(_ITEM, item))
        return f"{place}: item {item!r} is not field\\x02id\\x03value; {AGAIN}"
    return f"{place}: {name} is {cell!r}; {AGAIN}"

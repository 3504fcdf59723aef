"""Ali-CCP as Scenario-Wise-Rec publishes it (Li et al., 2024): ids already encoded, in three files.

Rare values are id 0 and the others are numbered from 1 by their first appearance in train; the ids
are kept, so a model's table has the rows that others' have. The scaled columns D109_14 to D853
are not read: the D3 experiments (Jia et al., AAAI 2024) use none, and their scale was fitted on
the test rows too.
"""

from __future__ import annotations

import csv
from pathlib import Path

import duckdb
import ibis

from d3jax.errors import DataError
from data_pipelines.raw.engine import hand_over, read_csv, text_parser
from data_pipelines.source import FieldSource, Source
from data_pipelines.sources.ali_ccp.lines import FIELD_NAMES
from data_pipelines.sources.ali_ccp.published import DROPPED, ITEM, POSITION, USER

SCENARIOS = ("1", "2", "3")
"""The encoded values of field 301; the scenario is one less."""

_SPLITS = {"train": "train", "val": "validation", "test": "test"}

_FORMATS = {
    **dict.fromkeys(("click", "purchase"), ("^[01]$", "0 or 1")),
    **dict.fromkeys(FIELD_NAMES, ("^[0-9]{1,9}$", "a whole number below 1,000,000,000")),
    POSITION: ("^[1-3]$", "1, 2 or 3"),
}
"""The pattern that a value must match, and its name in words."""

_AGAIN = "download the file again"


def ali_ccp_encoded(
    connection: ibis.BaseBackend, directory: Path, scratch: Path | None = None
) -> Source:
    """The rows of `ali_ccp_{train,val,test}*.csv` in `directory`, with their own ids and split.

    An engine other than DuckDB needs a folder `scratch`, which its workers see.
    Raises `DataError` naming file, line, column and value for an id that is not a whole number,
    a label other than 0 and 1, or a position other than 1, 2 and 3.
    """
    paths = {split: _path(directory, name) for name, split in _SPLITS.items()}
    rows = ibis.union(*(_read(connection, path, split, scratch) for split, path in paths.items()))
    is_dropped = (rows.click == "0") & (rows.purchase == "1")
    dropped = rows.filter(is_dropped).count().to_pyarrow().as_py()
    return Source(
        rows=_labelled(rows.filter(~is_dropped)),
        fields=tuple(FieldSource(name, encoded=True) for name in FIELD_NAMES),
        scenarios=SCENARIOS,
        scenario_field=POSITION,
        scenario_values={position: position for position in SCENARIOS},
        user_field=USER,
        item_field=ITEM,
        key=FIELD_NAMES,
        label_rule="click",
        files=tuple(paths.values()),
        split="split",
        dropped={DROPPED: dropped},
    )


def _path(directory: Path, name: str) -> Path:
    pattern = f"ali_ccp_{name}*.csv"
    match sorted(directory.glob(pattern)):
        case [path]:
            return path
        case paths:
            found = ", ".join(path.name for path in paths) or "none"
            raise DataError(f"{directory} must have one file {pattern}; it has {found}")


def _read(connection: ibis.BaseBackend, path: Path, split: str, scratch: Path | None) -> ibis.Table:
    """The columns of `_FORMATS` as strings, checked in one pass, and the split."""
    try:
        parser = text_parser(connection, scratch)
        table = read_csv(parser, path, header=True, delim=",", all_varchar=True)
        if missing := [name for name in _FORMATS if name not in table.columns]:
            raise DataError(
                f"file {path.name} has no column {missing[0]!r}; it has {', '.join(table.columns)}"
            )
        table = table.select([table[name].fill_null("").name(name) for name in _FORMATS])
        wrong = [
            table[name].min(where=~table[name].re_search(form)).name(name)
            for name, (form, _) in _FORMATS.items()
        ]
        examples = table.agg(wrong).to_pyarrow().to_pylist()[0]
    except duckdb.InvalidInputException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"file {path.name} can't be read as CSV ({reason}); {_AGAIN}") from error
    for name, value in examples.items():
        if value is not None:
            raise DataError(
                f"file {path.name}, line {_line_number(path, name, value)}: column {name} is "
                f"{value!r}, not {_FORMATS[name][1]}; {_AGAIN}"
            )
    rows = hand_over(table, connection, scratch, f"{path.stem}.parquet")
    return rows.mutate(split=ibis.literal(split))


def _line_number(path: Path, name: str, value: str) -> int:
    """Return the line where the column first has this value, from 1."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        return next(reader.line_num for row in reader if (row[name] or "") == value)


def _labelled(rows: ibis.Table) -> ibis.Table:
    """Fields as plain numbers, for `prepare` to keep: 0 is unknown there too."""
    ids = [rows[name].cast("int64").cast("string").name(name) for name in FIELD_NAMES]
    return rows.select(
        "split",
        *ids,
        label=rows.click.cast("int64"),
        scenario=rows[POSITION].cast("int64") - 1,
    )

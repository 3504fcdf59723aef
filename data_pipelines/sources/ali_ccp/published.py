"""Ali-CCP (Ma et al., 2018): 85 million impressions in three domains, the positions of field 301.

Each half, train and test, is two files: the impressions (`sample_skeleton`) and the features that
many impressions share (`common_features`), found by an md5 key. Fields, their order and the click
as label follow the D3 experiments (Jia et al., AAAI 2024). A purchase is known only after the
click, so it never is a feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ibis
from ibis.expr.types import BooleanValue, StringValue

from d3jax.errors import ConfigError, DataError
from data_pipelines.source import FieldSource, Progress, Source
from data_pipelines.sources.ali_ccp.lines import (
    AGAIN,
    COLUMNS,
    FIELD_NAMES,
    SEPARATOR,
    File,
    line_number,
    parse,
    slots,
)

USER, ITEM, POSITION = "101", "205", "301"

DROPPED = "purchase without a click"

_SPLITS = ("train", "test")


class _Half(NamedTuple):
    """The impressions of a split with all their features, and what was counted in them."""

    skeleton: File
    common: File
    rows: ibis.Table
    positions: dict[str | None, dict[str, Any]]


def ali_ccp(
    connection: ibis.BaseBackend,
    directory: Path,
    scratch: Path,
    *,
    last_value: bool = True,
    max_slots: int = 8,
    positions: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Source:
    """The impressions in `directory` with their common features, as rows to prepare.

    With `last_value` a multi-valued field keeps the last of its values, as the published
    experiments do; otherwise its last `max_slots`. `positions` are the ids of field 301 in the
    order of the scenarios; when None, those of train in ascending order, whatever the order of
    its rows. The parsed lines stay in the folder `scratch` until the rows are prepared.
    Raises `DataError` naming file, line and value for a malformed line, a key that appears twice
    or is missing, or a position that is not among `positions` or those of train.
    """
    if max_slots < 1:
        raise ConfigError(f"max_slots is {max_slots}; it must be at least 1")
    most = 1 if last_value else max_slots
    steps = _steps(progress)
    train, test = (_half(connection, directory, scratch, split, most, steps) for split in _SPLITS)
    known = _in_order(train.positions) if positions is None else tuple(positions)
    for half in (train, test):
        _check_positions(half, known)
    # Where the split is NULL, training rows are divided into train and validation.
    rows = ibis.union(
        _labelled(train, known, ibis.null("string")), _labelled(test, known, ibis.literal("test"))
    )
    return Source(
        rows=rows,
        fields=tuple(_field(name, slots(name, most)) for name in FIELD_NAMES),
        scenarios=known,
        scenario_field=POSITION,
        scenario_values={position: position for position in known},
        user_field=USER,
        item_field=ITEM,
        key=("sample_id",),
        label_rule="click",
        files=tuple(file.path for half in (train, test) for file in (half.common, half.skeleton)),
        split="split",
        dropped={DROPPED: _num_dropped(train) + _num_dropped(test)},
    )


def _steps(progress: Progress | None) -> Iterator[None]:
    names = [f"reading {kind}_{split}.csv" for split in _SPLITS for kind in COLUMNS]
    for index, name in enumerate(names):
        if progress is not None:
            progress(name, index, len(names))
        yield


def _half(
    connection: ibis.BaseBackend,
    directory: Path,
    scratch: Path,
    split: str,
    most: int,
    steps: Iterator[None],
) -> _Half:
    files = []
    for kind in COLUMNS:
        next(steps)
        files.append(parse(connection, directory / f"{kind}_{split}.csv", kind, scratch, most))
    common, skeleton = files
    _check_unique(common)
    rows = _join(skeleton.table, common.table)
    return _Half(skeleton, common, rows, _tally(skeleton, common, rows))


def _field(name: str, num_slots: int) -> FieldSource:
    if num_slots == 1:
        return FieldSource(name)
    return FieldSource(name, separator=SEPARATOR, max_slots=num_slots)


def _join(skeleton: ibis.Table, common: ibis.Table) -> ibis.Table:
    """The columns of an impression, a field NULL where it has none; `matched` when key is known.

    Common features come first where an impression names the same field.
    """
    joined = skeleton.left_join(common, "common_feature_index", rname="common_{name}")
    fields = [
        ibis.coalesce(joined[f"common_{name}"], joined[name]).name(name) for name in FIELD_NAMES
    ]
    return joined.select(
        "sample_id",
        "click",
        "purchase",
        "common_feature_index",
        *fields,
        matched=joined.common_common_feature_index.notnull(),
    )


def _tally(skeleton: File, common: File, rows: ibis.Table) -> dict[str | None, dict[str, Any]]:
    """An example and the number of dropped rows of each position, after checking the keys."""
    tally = rows.group_by(position=rows[POSITION]).agg(
        unmatched=rows.common_feature_index.min(where=~rows.matched),
        example=rows.sample_id.min(),
        dropped=rows.count(where=_is_dropped(rows)),
    )
    groups = tally.to_pyarrow().to_pylist()
    if not groups:
        raise DataError(f"file {skeleton.path.name} is empty; {AGAIN}")
    if unmatched := [group["unmatched"] for group in groups if group["unmatched"]]:
        key = min(unmatched)
        number = line_number(skeleton.path, lambda line: line.split(",")[3:4] == [key])
        raise DataError(
            f"file {skeleton.path.name}, line {number}: common_feature_index {key!r} is not in "
            f"{common.path.name}; take both files from one download"
        )
    return {group["position"]: group for group in groups}


def _is_dropped(rows: ibis.Table) -> BooleanValue:
    return (rows.click == "0") & (rows.purchase == "1")


def _num_dropped(half: _Half) -> int:
    return sum(group["dropped"] for group in half.positions.values())


def _check_unique(common: File) -> None:
    table = common.table
    repeated = table.group_by("common_feature_index").having(table.count() > 1).agg()
    if (key := repeated.common_feature_index.min().to_pyarrow().as_py()) is None:
        return
    with common.path.open(encoding="utf-8") as lines:
        numbers = [str(at) for at, line in enumerate(lines, 1) if line.startswith(f"{key},")]
    raise DataError(
        f"file {common.path.name}: common_feature_index {key!r} appears more than once, in lines "
        f"{', '.join(numbers)}; {AGAIN}"
    )


def _in_order(positions: dict[str | None, dict[str, Any]]) -> tuple[str, ...]:
    """Ascending, "9" before "10"."""
    return tuple(sorted(filter(None, positions), key=lambda text: (len(text), text)))


def _check_positions(half: _Half, known: Sequence[str]) -> None:
    unknown = [position for position in half.positions if position not in known]
    if not unknown:
        return
    sample = half.positions[unknown[0]]["example"]
    number = line_number(half.skeleton.path, lambda line: line.startswith(f"{sample},"))
    raise DataError(
        f"file {half.skeleton.path.name}, line {number}: field {POSITION} is "
        f"{unknown[0] or 'missing'}; the known positions are {', '.join(known)}"
    )


def _labelled(half: _Half, positions: Sequence[str], split: StringValue) -> ibis.Table:
    rows = half.rows.filter(~_is_dropped(half.rows))
    scenario = ibis.cases(
        *((rows[POSITION] == position, index) for index, position in enumerate(positions))
    )
    return rows.select(
        "sample_id",
        *FIELD_NAMES,
        split=split,
        label=rows.click.cast("int64"),
        scenario=scenario.cast("int64"),
    )

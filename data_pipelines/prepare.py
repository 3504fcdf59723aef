"""Table expression -> split, vocabularies and encoded columns in a prepared directory.

Everything is an Ibis expression that DuckDB and Spark answer alike, written to Parquet between
the steps, so the rows may be larger than memory and the result is the same bytes whatever the
engine, the number of threads or the order of the raw rows. Only vocabularies, counts and the
evidence of an error are collected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d3jax.batch import EMPTY, UNKNOWN, Schema
from d3jax.errors import DataError
from data_pipelines.checksums import sha256, write_checksums
from data_pipelines.columns import (
    SPLITS,
    Prepared,
    Rows,
    building,
    open_prepared,
    write_rows,
    write_schema,
)
from data_pipelines.fields import Code, encode_field
from data_pipelines.source import LARGEST_ID, PrepareConfig, Source
from data_pipelines.splits import describe_split, event_digest, split_of, split_rule
from data_pipelines.stage import Stage

SPACE = "about three times the size of the raw files"
"""What a preparation takes on the disk at its height."""

Progress = Callable[[str, int, int], None]
"""Called before each step with its name, its index and the number of steps."""


def prepare(
    source: Source,
    out: Path,
    config: PrepareConfig,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Splits and encodes the rows of `source` into the prepared directory `out`.

    Where the source doesn't say a row's split, it follows from the seed and the row's key or user
    alone, or from its time; whatever is fitted sees train only. Raises `OutputError` when `out`
    can't be written, or exists and `overwrite` is false or it was not prepared, and `DataError`
    when a label is not 0 or 1, a field gives the label away, a split is unknown or empty or a
    scenario has no row in train.
    """
    with building(out, overwrite, inputs=source.files, need=SPACE) as directory:
        _prepare_into(directory, source, config, _steps(source, progress))
        write_checksums(directory)
    return open_prepared(out)


def _prepare_into(
    directory: Path, source: Source, config: PrepareConfig, steps: Iterator[None]
) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        stage = Stage(source.rows.get_backend(), Path(folder))
        next(steps)
        rows = stage("rows", _keyed_rows(source, config))
        counts = _count(rows, source, config)
        codes = []
        for index, field in enumerate(source.fields):
            next(steps)
            column = f"value_{index}"
            codes.append(encode_field(stage, directory, rows, field, column, config.min_count))
        schema = _schema(source, codes)
        for split, count in counts.items():
            next(steps)
            stage(split, _encode_rows(rows, split, codes))
            chunks = _stream(stage.folder / split, schema.num_slots)
            write_rows(directory, split, count, schema.num_slots, chunks)
        write_schema(directory, schema, _provenance(source, config, codes, counts))


def _steps(source: Source, progress: Progress | None) -> Iterator[None]:
    names = ["rows", *(f"field {field.name}" for field in source.fields), *SPLITS]
    for index, name in enumerate(names):
        if progress is not None:
            progress(name, index, len(names))
        yield


def _keyed_rows(source: Source, config: PrepareConfig) -> ibis.Table:
    """Columns `digest`, `split`, `scenario`, `label` and `value_<i>` of field i, no value NULL."""
    rows = source.rows
    digest = event_digest(rows, source.key, config.seed)
    values = [
        rows[field.name].fill_null("").name(f"value_{index}")
        for index, field in enumerate(source.fields)
    ]
    split = split_of(source, config).name("split")
    label, scenario = rows[source.label_column], rows[source.scenario_column]
    return rows.select(
        digest.name("digest"), split, scenario.name("scenario"), label.name("label"), *values
    )


def _count(rows: ibis.Table, source: Source, config: PrepareConfig) -> dict[str, int]:
    """The number of rows of each split, after checking labels, splits and scenarios."""
    wrong = rows.label.isnull() | ~rows.label.isin((0, 1))
    tally = rows.group_by("split", "scenario").agg(
        rows=rows.count(), wrong_labels=rows.count(where=wrong)
    )
    groups = tally.to_pyarrow().to_pylist()
    if any(group["wrong_labels"] for group in groups):
        raise DataError(_describe_label(rows.filter(wrong), source))
    counts = dict.fromkeys(SPLITS, 0)
    for group in groups:
        if group["split"] not in counts:
            raise DataError(
                f"column {source.split!r} says {group['split']!r}; it must name one of the splits "
                f"{', '.join(SPLITS)}, or be NULL"
            )
        counts[group["split"]] += group["rows"]
    if empty := [split for split, count in counts.items() if not count]:
        raise DataError(
            f"split {empty[0]!r} has no rows: there are {sum(counts.values())} in all, "
            f"{describe_split(source, config)}; give more rows, other fractions or another seed"
        )
    _check_scenarios(groups, source)
    return counts


def _describe_label(wrong: ibis.Table, source: Source) -> str:
    row = wrong.order_by("digest").limit(1).to_pyarrow().to_pylist()[0]
    values = ", ".join(
        f"{field.name}={row[f'value_{index}']!r}" for index, field in enumerate(source.fields)
    )
    return (
        f"label {row['label']} is neither 0 nor 1 in the row {values}; "
        f"the rule is {source.label_rule!r}"
    )


def _check_scenarios(groups: list[dict[str, Any]], source: Source) -> None:
    known = range(len(source.scenarios))
    for group in groups:
        if group["scenario"] not in known:
            raise DataError(
                f"scenario {group['scenario']} is not one of {len(known)}: "
                f"{', '.join(source.scenarios)}; correct the rule for column "
                f"{source.scenario_field!r}"
            )
    seen = {group["scenario"] for group in groups if group["split"] == "train"}
    for index, name in enumerate(source.scenarios):
        if index not in seen:
            raise DataError(
                f"scenario {name!r} has no rows in train; leave it out, or give rows whose "
                f"{source.scenario_field!r} belongs to it"
            )


def _encode_rows(rows: ibis.Table, split: str, codes: list[Code]) -> ibis.Table:
    """Columns `id_<k>`, `scenario` and `label` of the rows of `split`, in the order of digests.

    Rows of equal digest are ordered by what they hold, so no order of the source shows.
    """
    joined = rows.filter(rows.split == split)
    defaults: list[int] = []
    for index, code in enumerate(codes):
        ids = _spread(code, f"raw_{index}", len(defaults))
        joined = joined.left_join(ids, [(f"value_{index}", f"raw_{index}")])
        defaults += [UNKNOWN] + [EMPTY] * (code.field.slots - 1)
    ids = [
        joined[f"id_{slot}"].fill_null(default).cast("int32").name(f"id_{slot}")
        for slot, default in enumerate(defaults)
    ]
    encoded = joined.select("digest", *ids, "scenario", "label")
    return encoded.order_by(encoded.columns)


def _spread(code: Code, raw: str, first: int) -> ibis.Table:
    """One row for each raw string, its ids side by side in the columns of the field's slots."""
    ranked = code.ranked
    ids = [
        ranked.id.max(where=ranked.slot == slot).name(f"id_{first + slot}")
        for slot in range(code.field.slots)
    ]
    return ranked.group_by(ranked.raw.name(raw)).agg(ids)


def _stream(path: Path, num_slots: int, size: int = 1 << 18) -> Iterator[Rows]:
    """The rows of a Parquet file, or of a folder of them in the order of their names."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    for file in files:
        with pq.ParquetFile(file) as content:
            for batch in content.iter_batches(batch_size=size):
                yield _to_rows(batch, num_slots)


def _to_rows(batch: pa.RecordBatch, num_slots: int) -> Rows:
    ids = [batch.column(f"id_{slot}").to_numpy() for slot in range(num_slots)]
    return Rows(
        ids=np.stack(ids, axis=1),
        scenario=batch.column("scenario").to_numpy(),
        label=batch.column("label").to_numpy(),
    )


def _schema(source: Source, codes: list[Code]) -> Schema:
    names = [field.name for field in source.fields]
    total = sum(code.field.size for code in codes)
    if total > LARGEST_ID:
        raise DataError(
            f"the fields have {total:,} ids in all, more than the {LARGEST_ID:,} that a table can "
            "have; raise min_count, or hash the largest field into fewer"
        )
    return Schema(
        fields=tuple(code.field for code in codes),
        scenarios=source.scenarios,
        scenario_field=source.scenario_field if source.scenario_field in names else None,
        user_field=source.user_field,
        item_field=source.item_field,
    )


def _provenance(
    source: Source, config: PrepareConfig, codes: list[Code], counts: dict[str, int]
) -> dict[str, Any]:
    """What happened to the raw files; what doesn't apply to them is left out."""
    fields = source.fields
    optional = {
        "dropped": dict(source.dropped),
        "unmatched": dict(source.unmatched),
        "repeated_events": source.repeated,
        "unused_columns": list(source.unused),
        "buckets": {code.field.name: list(code.edges) for code in codes if code.edges is not None},
        "hashed": {field.name: field.hash_buckets for field in fields if field.hash_buckets},
    }
    scenario: dict[str, Any] = {
        "field": source.scenario_field,
        "values": dict(source.scenario_values),
    }
    if source.scenario_edges:
        scenario["edges"] = list(source.scenario_edges)
    return {
        "label_rule": source.label_rule,
        "split": split_rule(source, config),
        "rows": counts,
        "sources": {path.name: sha256(path) for path in source.files},
        "scenario": scenario,
        "separators": {
            field.name: field.separator for field in fields if field.separator is not None
        },
        "min_count": config.min_count,
        **{name: value for name, value in optional.items() if value},
    }

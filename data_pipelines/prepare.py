"""Table expression -> split, vocabularies and encoded columns in a prepared directory.

Everything is an Ibis expression that DuckDB and Spark answer alike, written to Parquet between
the steps, so the rows may be larger than memory and the result is the same bytes whatever the
engine, the number of threads or the order of the raw rows. Only vocabularies, counts and the
evidence of an error are collected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa

from d3jax.batch import Schema
from d3jax.data.checksums import sha256, write_checksums
from d3jax.data.columns import SPLITS, Rows, write_rows
from d3jax.data.encoder import encode_ids, unknown_rows
from d3jax.data.prepared import Prepared, building, open_prepared, write_schema
from d3jax.data.vocabularies import write_vocabulary
from d3jax.errors import DataError
from data_pipelines.fields import Fitted, as_column, fit_field
from data_pipelines.raw.stage import Stage
from data_pipelines.source import LARGEST_ID, PrepareConfig, Progress, Source
from data_pipelines.splits import describe_split, event_digest, joined, split_of, split_rule

SPACE = "about three times the size of the raw files"
"""The disk space that a preparation takes at its height."""


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
        fitted = []
        for index, field in enumerate(source.fields):
            next(steps)
            fitted.append(fit_field(stage, rows, field, f"value_{index}", config.min_count))
            write_vocabulary(directory, field.name, fitted[-1].vocabulary)
        schema = _schema(source, fitted)
        unknown = np.zeros(schema.num_fields, np.int64)
        for split, count in counts.items():
            next(steps)
            stage.save(split, _ordered(rows.filter(rows.split == split)))
            chunks = _encoded(stage, split, schema, fitted)
            if split == "train":
                chunks = _counting(chunks, schema, unknown)
            write_rows(directory, split, count, schema.num_slots, chunks)
        write_schema(directory, schema, _provenance(source, config, fitted, counts, unknown))


def _steps(source: Source, progress: Progress | None) -> Iterator[None]:
    names = ["rows", *(f"field {field.name}" for field in source.fields), *SPLITS]
    for index, name in enumerate(names):
        if progress is not None:
            progress(name, index, len(names))
        yield


def _keyed_rows(source: Source, config: PrepareConfig) -> ibis.Table:
    """Columns `place`, `split`, `scenario`, `label` and `value_<i>` of field i, no value NULL.

    Rows are ordered by `place`: the digest of their event, then a hash of all that they hold, so
    that no order of the source shows.
    """
    rows = source.rows
    digest = event_digest(rows, source.key, config.seed)
    values = [
        rows[field.name].fill_null("").name(f"value_{index}")
        for index, field in enumerate(source.fields)
    ]
    split = split_of(source, config).name("split")
    label, scenario = rows[source.label_column], rows[source.scenario_column]
    held = [value.cast("string").fill_null("") for value in (label, scenario)]
    return rows.select(
        (digest + joined([*held, *values]).hexdigest("md5").left(16)).name("place"),
        split,
        scenario.name("scenario"),
        label.name("label"),
        *values,
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
    row = wrong.order_by("place").limit(1).to_pyarrow().to_pylist()[0]
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


def _ordered(rows: ibis.Table) -> ibis.Table:
    return rows.order_by("place").drop("place", "split")


def _encoded(stage: Stage, split: str, schema: Schema, fitted: list[Fitted]) -> Iterator[Rows]:
    """The rows of a split by the encoder that also serves predictions."""
    for batch in stage.batches(split):
        texts = [
            as_column(batch.column(f"value_{index}"), each.as_lists)
            for index, each in enumerate(fitted)
        ]
        raw = pa.record_batch(texts, names=[each.field.name for each in fitted])
        yield Rows(
            ids=encode_ids(schema, [each.code for each in fitted], raw, "the rows"),
            scenario=batch.column("scenario").to_numpy(),
            label=batch.column("label").to_numpy(),
        )


def _counting(chunks: Iterator[Rows], schema: Schema, tally: np.ndarray) -> Iterator[Rows]:
    """Pass chunks on, and add the rows without a known value to the fields' `tally` [N]."""
    for chunk in chunks:
        tally += unknown_rows(schema, chunk.ids)
        yield chunk


def _schema(source: Source, fitted: list[Fitted]) -> Schema:
    names = [field.name for field in source.fields]
    total = sum(each.field.size for each in fitted)
    if total > LARGEST_ID:
        raise DataError(
            f"the fields have {total:,} ids in all, more than the {LARGEST_ID:,} that a table can "
            "have; raise min_count, or hash the largest field into fewer"
        )
    return Schema(
        fields=tuple(each.field for each in fitted),
        scenarios=source.scenarios,
        scenario_field=source.scenario_field if source.scenario_field in names else None,
        user_field=source.user_field,
        item_field=source.item_field,
    )


def _provenance(
    source: Source,
    config: PrepareConfig,
    fitted: list[Fitted],
    counts: dict[str, int],
    unknown: np.ndarray,
) -> dict[str, Any]:
    """Return what happened to the raw files; what doesn't apply to them is left out."""
    fields = source.fields
    optional = {
        "dropped": dict(source.dropped),
        "unmatched": dict(source.unmatched),
        "repeated_events": source.repeated,
        "unused_columns": list(source.unused),
        "buckets": {
            each.code.name: list(each.code.edges) for each in fitted if each.code.edges is not None
        },
        "cut": {
            each.field.name: each.longest for each in fitted if each.longest > each.field.slots
        },
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
        "unknown": dict(zip((field.name for field in fields), unknown.tolist(), strict=True)),
        "sources": {path.name: sha256(path) for path in source.files},
        "scenario": scenario,
        "separators": {
            field.name: field.separator for field in fields if field.separator is not None
        },
        "min_count": config.min_count,
        **{name: value for name, value in optional.items() if value},
    }

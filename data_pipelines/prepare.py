"""Table expression -> split, vocabularies and encoded columns in a prepared directory.

Everything is an Ibis expression that DuckDB and Spark answer alike, written to Parquet between
the steps, so the rows may be larger than memory and the result is the same bytes whatever the
engine, the number of threads or the order of the raw rows. Only vocabularies, counts and the
evidence of an error are collected.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import StringValue

from d3jax.batch import EMPTY, UNKNOWN, Schema
from d3jax.errors import ConfigError, DataError
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
from data_pipelines.stage import Stage

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

    A row's split is a function of the seed and its key alone where the source doesn't say it, and
    vocabularies see train only. Raises `DataError` when `out` exists and `overwrite` is false, a
    label is not 0 or 1, a split is unknown or empty or a scenario has no row in train.
    """
    steps = _steps(source, progress)
    with (
        building(out, overwrite) as directory,
        tempfile.TemporaryDirectory(dir=directory) as folder,
    ):
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
    return open_prepared(out)


def _steps(source: Source, progress: Progress | None) -> Iterator[None]:
    names = ["rows", *(f"field {field.name}" for field in source.fields), *SPLITS]
    for index, name in enumerate(names):
        if progress is not None:
            progress(name, index, len(names))
        yield


def _keyed_rows(source: Source, config: PrepareConfig) -> ibis.Table:
    """Columns `digest`, `split`, `scenario`, `label` and `value_<i>` of field i, no value NULL."""
    rows = source.rows
    digest = _digest(rows, source.key, config.seed)
    values = [
        rows[field.name].fill_null("").name(f"value_{index}")
        for index, field in enumerate(source.fields)
    ]
    split = _split(source, config).name("split")
    return rows.select(digest.name("digest"), split, "scenario", "label", *values)


def _digest(rows: ibis.Table, columns: Sequence[str], seed: int) -> StringValue:
    text = ibis.literal(str(seed))
    for name in columns:
        text = text + "|" + rows[name].cast("string").fill_null("")
    return text.hexdigest("md5")


def _split(source: Source, config: PrepareConfig) -> StringValue:
    """The split of each row: the publisher's where there is one, else what `config` asks for."""
    rows = source.rows
    if source.split is not None:
        if config.split != "random":
            raise ConfigError(
                f"these data come with a split of their own ({source.split_rule}); it can't be "
                f"by {config.split}"
            )
        drawn = _drawn(_digest(rows, source.key, config.seed), 0.0, config.validation_fraction)
        return rows[source.split].fill_null(drawn)
    if config.split == "time":
        return _latest(rows, _required(source.time, "time"), config)
    key = source.key
    if config.split == "user":
        key = (_required(source.user_field, "user"),)
    digest = _digest(rows, key, config.seed)
    return _drawn(digest, config.test_fraction, config.validation_fraction)


def _required(column: str | None, kind: str) -> str:
    if column is None:
        raise ConfigError(f"a split by {kind} needs to know the column of the {kind}; name it")
    return column


def _drawn(digest: StringValue, test: float, validation: float) -> StringValue:
    return ibis.cases(
        (digest < _threshold(test), "test"),
        (digest < _threshold(test + (1 - test) * validation), "validation"),
        else_="train",
    )


def _latest(rows: ibis.Table, time: str, config: PrepareConfig) -> StringValue:
    """The last rows are test, and the last of the others validation; equal times stay together."""
    train_or_validation = 1 - config.test_fraction
    train = train_or_validation * (1 - config.validation_fraction)
    total = rows.count().to_pyarrow().as_py()
    moments = rows.select(time=rows[time]).order_by("time")
    bounds = [
        moments.limit(1, offset=min(int(fraction * total), total - 1)).to_pyarrow()["time"]
        for fraction in (train_or_validation, train)
        if total
    ]
    starts = [bound[0].as_py() for bound in bounds] or [0, 0]
    return ibis.cases(
        (rows[time] >= starts[0], "test"), (rows[time] >= starts[1], "validation"), else_="train"
    )


def _threshold(fraction: float) -> str:
    """The hexadecimal prefix below which this fraction of all digests lies."""
    return f"{int(fraction * 2**32):08x}"


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
            f"{_describe_split(source, config)}; give more rows, other fractions or another seed"
        )
    _check_scenarios(groups, source)
    return counts


def _describe_split(source: Source, config: PrepareConfig) -> str:
    if source.split is not None:
        return (
            f"and column {source.split!r} gives it none; validation_fraction is "
            f"{config.validation_fraction}"
        )
    return (
        f"test_fraction is {config.test_fraction} and validation_fraction "
        f"{config.validation_fraction}"
    )


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
        "split": _split_rule(source, config),
        "rows": counts,
        "sources": {path.name: _sha256(path) for path in source.files},
        "scenario": scenario,
        "separators": {
            field.name: field.separator for field in fields if field.separator is not None
        },
        "min_count": config.min_count,
        **{name: value for name, value in optional.items() if value},
    }


def _split_rule(source: Source, config: PrepareConfig) -> dict[str, Any]:
    rule: dict[str, Any] = {
        "method": "md5 of seed and key",
        "key": list(source.key),
        "seed": config.seed,
        "test_fraction": config.test_fraction,
        "validation_fraction": config.validation_fraction,
    }
    if source.split is not None:
        del rule["test_fraction"]
        rule["method"] = f"{source.split_rule}; what is not, by md5 of seed and key"
    elif config.split == "time":
        rule["method"] = f"the latest rows by {source.time}"
    elif config.split == "user":
        rule |= {"method": "md5 of seed and user", "key": [source.user_field]}
    return rule


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

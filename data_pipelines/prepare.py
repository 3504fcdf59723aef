"""Table expression -> split, vocabularies and encoded columns in a prepared directory.

Everything is an Ibis expression that DuckDB and Spark answer alike, written to Parquet between
the steps, so the rows may be larger than memory and the result is the same bytes whatever the
engine, the number of threads or the order of the raw rows. Only vocabularies, counts and the
evidence of an error are collected.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.expr.types import StringValue

from d3jax.batch import EMPTY, UNKNOWN, Field, Schema
from d3jax.errors import DataError
from data_pipelines.columns import (
    SPLITS,
    Prepared,
    Rows,
    building,
    open_prepared,
    vocabulary_path,
    write_rows,
    write_schema,
    write_vocabulary,
)
from data_pipelines.source import PrepareConfig, Source

Progress = Callable[[str, int, int], None]
"""Called before each step with its name, its index and the number of steps."""


class _Stage(NamedTuple):
    """Writes expressions to Parquet files of `folder` and reads them back as tables."""

    connection: ibis.BaseBackend
    folder: Path

    def __call__(self, name: str, table: ibis.Table) -> ibis.Table:
        self.connection.to_parquet(table, self.folder / name)
        return self.connection.read_parquet(self.folder / name)


class _Code(NamedTuple):
    """A field's place in the schema and `ranked`: the id and slot of each value of a raw string."""

    field: Field
    ranked: ibis.Table


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
        stage = _Stage(source.rows.get_backend(), Path(folder))
        next(steps)
        rows = stage("rows", _keyed_rows(source, config))
        counts = _count(rows, source, config)
        codes = []
        for index in range(len(source.fields)):
            next(steps)
            codes.append(_encode_field(stage, directory, rows, source, index, config.min_count))
        schema = _schema(source, codes)
        for split, count in counts.items():
            next(steps)
            stage(split, _encode_rows(rows, split, codes))
            chunks = _stream(stage.folder / split, schema.num_slots)
            write_rows(directory, split, count, schema.num_slots, chunks)
        write_schema(directory, schema, _provenance(source, config, counts))
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
    event = ibis.literal(str(config.seed))
    for name in source.key:
        event = event + "|" + rows[name].cast("string").fill_null("")
    digest = event.hexdigest("md5")
    values = [
        rows[field.name].fill_null("").name(f"value_{index}")
        for index, field in enumerate(source.fields)
    ]
    split = _split(source, config, digest).name("split")
    return rows.select(digest.name("digest"), split, "scenario", "label", *values)


def _split(source: Source, config: PrepareConfig, digest: StringValue) -> StringValue:
    """The split of each row: the publisher's where there is one, else that of its digest."""
    test = 0.0 if source.split else config.test_fraction
    validation = test + (1 - test) * config.validation_fraction
    drawn = ibis.cases(
        (digest < _threshold(test), "test"),
        (digest < _threshold(validation), "validation"),
        else_="train",
    )
    return drawn if source.split is None else source.rows[source.split].fill_null(drawn)


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


def _encode_field(
    stage: _Stage, directory: Path, rows: ibis.Table, source: Source, index: int, min_count: int
) -> _Code:
    """Writes the vocabulary of field `index` and ranks the ids of every raw string."""
    origin = source.fields[index]
    pairs = stage(f"pairs_{index}", _pairs(rows, f"value_{index}", origin.separator))
    if origin.encoded:
        vocabulary = _given_ids(pairs)
    else:
        vocabulary = _vocabulary(pairs, min_count).to_pyarrow()
    write_vocabulary(directory, origin.name, vocabulary)
    known = stage.connection.read_parquet(vocabulary_path(directory, origin.name))
    ranked = stage(f"ranked_{index}", _rank(pairs, known))
    longest = ranked.filter(ranked["count"] > 0).slot.max().to_pyarrow().as_py()
    slots = 1 if longest is None else longest + 1
    if origin.max_slots is not None:
        slots = min(slots, origin.max_slots)
    return _Code(Field(origin.name, size=vocabulary.num_rows + 1, slots=slots), ranked)


def _pairs(rows: ibis.Table, column: str, separator: str | None) -> ibis.Table:
    """Every distinct `raw` string with each `value` in it once, and its `count` of train rows."""
    counts = rows.group_by(raw=rows[column]).agg(count=rows.count(where=rows.split == "train"))
    if separator is None:
        pairs = counts.mutate(value=counts.raw)
    else:
        # Spark takes the separator of `split` for a regular expression; `re_split` is one in both.
        values = counts.raw.re_split(re.escape(separator)).unnest()
        pairs = counts.mutate(value=values).distinct()
    return pairs.filter(pairs.value != "")


def _vocabulary(pairs: ibis.Table, min_count: int) -> ibis.Table:
    """Columns `value`, `count`, `id`: by count descending, then value; ids from 1."""
    totals = pairs.group_by("value").agg(count=pairs["count"].sum())
    kept = totals.filter(totals["count"] >= min_count)
    order = ibis.window(order_by=[ibis.desc("count"), ibis.asc("value")])
    return kept.mutate(id=(ibis.row_number().over(order) + 1).cast("int32")).order_by("id")


def _given_ids(pairs: ibis.Table) -> pa.Table:
    """Columns `value`, `count`, `id` of 1 to the largest id, whether train has it or not."""
    totals = pairs.group_by(id=pairs.value.cast("int32")).agg(count=pairs["count"].sum())
    seen = totals.select(totals.id, totals["count"].cast("int64")).to_pyarrow()
    counts = np.zeros(1 + max(seen["id"].to_pylist(), default=0), np.int64)
    counts[seen["id"].to_numpy()] = seen["count"].to_numpy()
    ids = np.arange(1, counts.size)
    return pa.table({"value": pa.array(ids).cast(pa.string()), "id": ids, "count": counts[1:]})


def _rank(pairs: ibis.Table, vocabulary: ibis.Table) -> ibis.Table:
    """Columns `raw`, `count`, `id` and `slot`: 0 for the smallest known id of a raw string."""
    known = pairs.inner_join(vocabulary.select("value", "id"), "value")
    known = known.select("raw", "count", "id")
    order = ibis.window(group_by="raw", order_by="id")
    return known.mutate(slot=ibis.row_number().over(order))


def _encode_rows(rows: ibis.Table, split: str, codes: list[_Code]) -> ibis.Table:
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


def _spread(code: _Code, raw: str, first: int) -> ibis.Table:
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


def _schema(source: Source, codes: list[_Code]) -> Schema:
    names = [field.name for field in source.fields]
    return Schema(
        fields=tuple(code.field for code in codes),
        scenarios=source.scenarios,
        scenario_field=source.scenario_field if source.scenario_field in names else None,
        user_field=source.user_field,
        item_field=source.item_field,
    )


def _provenance(source: Source, config: PrepareConfig, counts: dict[str, int]) -> dict[str, Any]:
    dropped = {"dropped": dict(source.dropped)} if source.dropped else {}
    return {
        "label_rule": source.label_rule,
        "split": _split_rule(source, config),
        "rows": counts,
        "sources": {path.name: _sha256(path) for path in source.files},
        "scenario": {
            "field": source.scenario_field,
            "values": dict(source.scenario_values),
        },
        "separators": {
            field.name: field.separator for field in source.fields if field.separator is not None
        },
        "min_count": config.min_count,
        **dropped,
    }


def _split_rule(source: Source, config: PrepareConfig) -> dict[str, Any]:
    rule = {
        "method": "md5 of seed and key",
        "key": list(source.key),
        "seed": config.seed,
        "test_fraction": config.test_fraction,
        "validation_fraction": config.validation_fraction,
    }
    if source.split is not None:
        del rule["test_fraction"]
        rule["method"] = "as published; what is not, by md5 of seed and key"
    return rule


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

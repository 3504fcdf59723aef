"""The ids of one field: from a vocabulary, buckets of numbers, a hash, or the publisher.

Whatever is fitted is fitted on the training rows alone, and a field that gives the label away is
refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import ibis
import numpy as np
import pyarrow as pa

from d3jax.batch import UNKNOWN, Field
from d3jax.errors import DataError
from data_pipelines.buckets import (
    assign,
    bucket_names,
    fit_edges,
    hash_expression,
    parse_numbers,
)
from data_pipelines.columns import vocabulary_path, write_vocabulary
from data_pipelines.source import LARGEST_ID, FieldSource
from data_pipelines.stage import Stage

SUPPORT = 10
"""Training rows from which on a value's clicks are evidence."""


_LEAK = "what is known only after the click can't be a field, so leave it out"


class Code(NamedTuple):
    """A field's place in the schema and `ranked`: the id and slot of each value of a raw string.

    `edges` are those of a field of numbers, None for any other.
    """

    field: Field
    ranked: ibis.Table
    edges: tuple[float, ...] | None = None


class _Fitted(NamedTuple):
    """`coded`: pairs with an id, unknown where a value has none; `vocabulary`: ids from 1."""

    coded: ibis.Table
    vocabulary: pa.Table
    edges: tuple[float, ...] | None = None


def encode_field(
    stage: Stage,
    directory: Path,
    rows: ibis.Table,
    origin: FieldSource,
    column: str,
    min_count: int,
) -> Code:
    """Fits the ids of the raw strings in `column`, and writes what they mean into `directory`.

    Raises `DataError` when the field gives the label away, or naming a value that is no number
    or no id.
    """
    pairs = stage(f"pairs_{column}", value_pairs(rows, column, origin.separator))
    fitted = _fit(stage, directory, pairs, origin, column, min_count)
    _check_leakage(fitted.coded, origin.name)
    ranked = stage(f"ranked_{column}", _rank(fitted.coded, origin))
    longest = ranked.filter(ranked["count"] > 0).slot.max().to_pyarrow().as_py()
    slots = 1 if longest is None else longest + 1
    if origin.max_slots is not None:
        slots = min(slots, origin.max_slots)
    size = fitted.vocabulary.num_rows + 1
    return Code(Field(origin.name, size=size, slots=slots), ranked, fitted.edges)


def value_pairs(rows: ibis.Table, column: str, separator: str | None) -> ibis.Table:
    """Every distinct `raw` string with each `value` in it once, its `count` in train and `clicks`.

    A raw string without a value has the value "".
    """
    train = rows.split == "train"
    counts = rows.group_by(raw=rows[column]).agg(
        count=rows.count(where=train), clicks=rows.count(where=train & (rows.label == 1))
    )
    if separator is None:
        return counts.mutate(value=counts.raw)
    # Spark takes the separator of `split` for a regular expression; `re_split` is one in both.
    values = counts.raw.re_split(re.escape(separator)).unnest()
    return counts.mutate(value=values).distinct()


def _fit(
    stage: Stage,
    directory: Path,
    pairs: ibis.Table,
    origin: FieldSource,
    column: str,
    min_count: int,
) -> _Fitted:
    present = pairs.filter(pairs.value != "")
    if origin.hash_buckets is not None:
        fitted = _hashed(pairs, present, origin.hash_buckets)
    elif origin.quantiles is not None:
        fitted = _in_buckets(stage, pairs, present, origin, column)
    else:
        if origin.encoded:
            vocabulary = _given_ids(present, origin.name)
        else:
            vocabulary = _vocabulary(present, min_count).to_pyarrow()
        write_vocabulary(directory, origin.name, vocabulary)
        known = stage.connection.read_parquet(vocabulary_path(directory, origin.name))
        return _Fitted(_look_up(pairs, known), vocabulary)
    write_vocabulary(directory, origin.name, fitted.vocabulary)
    return fitted


def _vocabulary(present: ibis.Table, min_count: int) -> ibis.Table:
    """Columns `value`, `count`, `id`: by count descending, then value; ids from 1."""
    totals = present.group_by("value").agg(count=present["count"].sum())
    kept = totals.filter(totals["count"] >= min_count)
    order = ibis.window(order_by=[ibis.desc("count"), ibis.asc("value")])
    return kept.mutate(id=(ibis.row_number().over(order) + 1).cast("int32")).order_by("id")


def _given_ids(present: ibis.Table, name: str) -> pa.Table:
    """Columns `value`, `count`, `id` of 1 to the largest id, whether train has it or not."""
    totals = present.group_by(id=present.value.cast("int64")).agg(count=present["count"].sum())
    largest = totals.id.max().to_pyarrow().as_py() or 0
    if largest > LARGEST_ID:
        raise DataError(
            f"field {name!r}: id {largest} is beyond the largest, {LARGEST_ID}; number the "
            "values without gaps, or prepare them as strings"
        )
    counts = _counts_by_id(totals, largest)
    ids = np.arange(1, largest + 1)
    return pa.table({"value": pa.array(ids).cast(pa.string()), "id": ids, "count": counts})


def _counts_by_id(totals: ibis.Table, size: int) -> np.ndarray:
    """[size] the training rows of ids 1 to `size`."""
    seen = totals.select(totals.id, totals["count"].cast("int64")).to_pyarrow()
    counts = np.zeros(size + 1, np.int64)
    counts[seen["id"].to_numpy()] = seen["count"].to_numpy()
    return counts[1:]


def _look_up(pairs: ibis.Table, known: ibis.Table) -> ibis.Table:
    joined = pairs.left_join(known.select("value", "id"), "value")
    return joined.select("raw", "value", "count", "clicks", id=joined.id.fill_null(UNKNOWN))


def _hashed(pairs: ibis.Table, present: ibis.Table, buckets: int) -> _Fitted:
    """The ids of buckets by md5; a bucket's value in the vocabulary is its number."""
    hashed = hash_expression(pairs.value, buckets)
    coded = pairs.mutate(id=ibis.ifelse(pairs.value == "", UNKNOWN, hashed).cast("int32"))
    ids = hash_expression(present.value, buckets)
    totals = present.group_by(id=ids).agg(count=present["count"].sum())
    names = pa.array(np.arange(1, buckets + 1)).cast(pa.string())
    counts = _counts_by_id(totals, buckets)
    return _Fitted(coded, pa.table({"value": names, "id": _ids(buckets), "count": counts}))


def _in_buckets(
    stage: Stage, pairs: ibis.Table, present: ibis.Table, origin: FieldSource, column: str
) -> _Fitted:
    """The ids of quantiles of the training rows; a bucket's value is its range."""
    # A number is a value of its own raw string. In order, whatever the engine.
    table = present.select("value", "count", "clicks").order_by("value").to_pyarrow()
    values, counts = table["value"].combine_chunks(), table["count"].to_numpy()
    numbers = parse_numbers(values)
    if wrong := np.flatnonzero(np.isnan(numbers)).tolist():
        raise DataError(
            f"field {origin.name!r}: {values[wrong[0]].as_py()!r} is not a number; correct it, or "
            "don't prepare the field as numbers"
        )
    _check_separation(numbers, counts, table["clicks"].to_numpy(), origin.name)
    edges = fit_edges(numbers, counts, origin.quantiles or 1)
    ids = assign(numbers, edges) + 1
    names = bucket_names(edges)
    rows = np.bincount(ids, counts, minlength=len(names) + 1)[1:].astype(np.int64)
    vocabulary = pa.table({"value": names, "id": _ids(len(names)), "count": rows})
    known = stage.put(f"buckets_{column}", pa.table({"value": values, "id": pa.array(ids)}))
    return _Fitted(_look_up(pairs, known), vocabulary, tuple(edges.tolist()))


def _check_separation(
    numbers: np.ndarray, counts: np.ndarray, clicks: np.ndarray, name: str
) -> None:
    """Refuses numbers that decide the label, whatever buckets they would be in."""
    if clicks.sum() < SUPPORT or (counts - clicks).sum() < SUPPORT:
        return
    clicked, others = numbers[clicks > 0], numbers[counts > clicks]
    above, below = clicked.min() > others.max(), clicked.max() < others.min()
    if above or below:
        raise DataError(
            f"field {name!r} gives the label away: in the training rows, the numbers of rows with "
            f"label 1 all lie {'above' if above else 'below'} those with 0; {_LEAK}"
        )


def _ids(size: int) -> np.ndarray:
    return np.arange(1, size + 1, dtype=np.int32)


def _rank(coded: ibis.Table, origin: FieldSource) -> ibis.Table:
    """Columns `raw`, `count`, `id` and `slot`: 0 for the smallest known id of a raw string."""
    known = coded.filter(coded.id != UNKNOWN).select("raw", "count", "id")
    if origin.hash_buckets is not None and origin.separator is not None:
        known = known.distinct()  # Two values may share a bucket.
    order = ibis.window(group_by="raw", order_by="id")
    return known.mutate(slot=ibis.row_number().over(order))


def _check_leakage(coded: ibis.Table, name: str) -> None:
    """Refuses a field whose values decide the label.

    The values are those with at least `SUPPORT` training rows, a missing one among them, and
    they must hold half of all such rows: each of them with one label only, and both labels among
    them, does not happen by chance. Rare values, such as users of a few rows, are no evidence.
    """
    judged = coded.filter((coded.id != UNKNOWN) | (coded.raw == ""))
    values = judged.group_by("id").agg(
        value=judged.value.min(), count=judged["count"].sum(), clicks=judged.clicks.sum()
    )
    enough = values["count"] >= SUPPORT
    clicked, pure = values.clicks == values["count"], (values.clicks == 0)
    tally = values.agg(
        rows=values["count"].sum(),
        supported=values["count"].sum(where=enough),
        values=values.count(where=enough),
        mixed=values.count(where=enough & ~clicked & ~pure),
        clicked=values.value.min(where=enough & clicked),
        unclicked=values.value.min(where=enough & pure),
    )
    found: dict[str, Any] = tally.to_pyarrow().to_pylist()[0]
    if found["mixed"] or found["clicked"] is None or found["unclicked"] is None:
        return
    if 2 * found["supported"] >= found["rows"]:
        raise DataError(
            f"field {name!r} gives the label away: each of its {found['values']} values with at "
            f"least {SUPPORT} training rows goes with one label only, such as "
            f"{found['clicked']!r} with 1 and {found['unclicked']!r} with 0; {_LEAK}"
        )

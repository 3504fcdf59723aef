"""The code of one field: from a vocabulary, buckets of numbers, a hash, or the publisher.

Whatever is fitted is fitted on the training rows alone, and a field that gives the label away is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import NamedTuple

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from d3jax.batch import UNKNOWN, Field, Kind
from d3jax.data.encoder import LIST, FieldCode
from d3jax.data.encoding import KindOf, bucket_of, hash_ids, parse_numbers, spell
from d3jax.errors import DataError
from data_pipelines.buckets import bucket_names, fit_edges
from data_pipelines.raw.stage import Stage, narrow
from data_pipelines.source import LARGEST_ID, FieldSource

SUPPORT = 10
"""Training rows from which on a value's clicks are evidence."""

_LEAK = "what is known only after the click can't be a field, so leave it out"

_VALUES = pa.schema({"value": pa.string(), "count": pa.int64(), "clicks": pa.int64()})
_NONE = pa.array([], pa.string())


class Fitted(NamedTuple):
    """A field's place in the schema, what gives its values ids, and those with their counts.

    `vocabulary` has the columns `value`, `id`, `count`, by id from 1; the rows hold the field
    `as_lists` or not. A training row has at most `longest` known values.
    """

    field: Field
    code: FieldCode
    vocabulary: pa.Table
    as_lists: bool
    longest: int


class _Seen(NamedTuple):
    """The spelt values of the training rows with their rows and clicks, and those `without`."""

    values: pa.StringArray
    counts: np.ndarray
    clicks: np.ndarray
    without: tuple[int, int]


class _Tally(NamedTuple):
    """Training rows and clicks of each id [V] and of rows without a value; an `example` of each."""

    rows: np.ndarray
    clicks: np.ndarray
    examples: pa.StringArray


def fit_field(
    stage: Stage, rows: ibis.Table, origin: FieldSource, column: str, min_count: int
) -> Fitted:
    """Fit the ids of the raw texts in `column` on the training rows.

    Raises `DataError` when the field gives the label away, or naming a value that is no number
    or no id.
    """
    stage.save(f"texts_{column}", _count_texts(rows, column))
    found = KindOf()
    for batch in stage.batches(f"texts_{column}"):
        found.add(_single_values(batch.column("raw"), origin)[1])
    rare = origin.encoded or origin.quantiles is not None or origin.hash_buckets is not None
    spelt = _spelt(stage, column, origin, found.kind)
    seen = _seen(_totals(stage, column, spelt, 1 if rare else min_count))
    bare = FieldCode(origin.name, found.kind, _NONE, origin.separator)
    if origin.hash_buckets is not None:
        code, tally = _hashed(bare, seen, origin.hash_buckets)
    elif origin.quantiles is not None:
        code, tally = _in_buckets(bare, seen, origin.quantiles)
    elif origin.encoded:
        code, tally = _given_ids(bare, seen, rows[column])
    else:
        code, tally = _vocabulary(bare, seen)
    _check_leakage(tally, origin.name)
    size = len(code.values)
    vocabulary = pa.table({"value": code.values, "id": _ids(size), "count": tally.rows[1:]})
    longest = _longest(stage, column, code, origin)
    slots = min(longest, origin.max_slots or longest)
    field = Field(origin.name, size + 1, slots, found.kind)
    return Fitted(field, code, vocabulary, origin.as_lists, longest)


def _count_texts(rows: ibis.Table, column: str) -> ibis.Table:
    """Every distinct `raw` text of the training rows with its `count` and `clicks`."""
    rows = narrow(rows, "split", "label", column)
    train = rows.filter(rows.split == "train")
    return train.group_by(raw=train[column]).agg(
        count=train.count().cast("int64"), clicks=train.label.sum().cast("int64")
    )


def _single_values(raw: pa.StringArray, origin: FieldSource) -> tuple[np.ndarray, pa.StringArray]:
    """The place in `raw` of each single value, and its text."""
    if origin.separator is None:
        return np.arange(len(raw)), raw
    code = FieldCode(origin.name, "text", _NONE, origin.separator)
    return code.items(as_column(raw, origin.as_lists), "the rows")


def as_column(raw: pa.StringArray, as_lists: bool) -> pa.Array:
    """Return the lists that staged texts hold, if these came as lists; else the texts."""
    return pc.split_pattern(raw, LIST) if as_lists else raw


def _spelt(stage: Stage, column: str, origin: FieldSource, kind: Kind) -> Iterator[pa.RecordBatch]:
    """The spelt values of each distinct text, each once, with the text's count and clicks; null
    for a text without a value."""
    for batch in stage.batches(f"texts_{column}"):
        places, texts = _single_values(batch.column("raw"), origin)
        coded = spell(texts, kind).dictionary_encode()
        codes = pc.fill_null(coded.indices, -1).to_numpy()
        pairs = np.unique(np.stack([places, codes], axis=1), axis=0)
        pairs = pairs[pairs[:, 1] >= 0]
        without = np.setdiff1d(np.arange(batch.num_rows), pairs[:, 0])
        values = coded.dictionary.take(pa.array(pairs[:, 1]))
        at = pa.array(np.concatenate([pairs[:, 0], without]))
        yield pa.record_batch(
            [
                pa.concat_arrays([values, pa.nulls(len(without), pa.string())]),
                batch.column("count").take(at),
                batch.column("clicks").take(at),
            ],
            schema=_VALUES,
        )


def _totals(stage: Stage, column: str, spelt: Iterator[pa.RecordBatch], min_count: int) -> pa.Table:
    """The count and clicks of each spelt value of `min_count` rows and more, and of null.

    Where they come in several batches the engine adds them up.
    """
    batches = list(islice(spelt, 2))
    if len(batches) > 1:
        values = stage.write(f"values_{column}", _VALUES, chain(batches, spelt))
        sums = {name: values[name].sum().cast("int64") for name in ("count", "clicks")}
        totals = values.group_by("value").agg(**sums)
        kept = totals.filter(totals.value.isnull() | (totals["count"] >= min_count))
        return kept.to_pyarrow().cast(_VALUES)
    groups = pa.Table.from_batches(batches, _VALUES).group_by("value")
    sums = groups.aggregate([("count", "sum"), ("clicks", "sum")]).rename_columns(_VALUES.names)
    return sums.filter(pc.or_(sums["value"].is_null(), pc.greater_equal(sums["count"], min_count)))


def _seen(totals: pa.Table) -> _Seen:
    """The values by count descending, then value, in an order that no engine decides."""
    table = totals.sort_by([("count", "descending"), ("value", "ascending")])
    missing = table.filter(table["value"].is_null())
    present = table.filter(table["value"].is_valid())
    return _Seen(
        values=present["value"].combine_chunks(),
        counts=present["count"].to_numpy(),
        clicks=present["clicks"].to_numpy(),
        without=(pc.sum(missing["count"]).as_py() or 0, pc.sum(missing["clicks"]).as_py() or 0),
    )


def _vocabulary(code: FieldCode, seen: _Seen) -> tuple[FieldCode, _Tally]:
    """Ids by count descending, then value."""
    rows, clicks = seen.without
    tally = _Tally(
        np.append(rows, seen.counts), np.append(clicks, seen.clicks), _examples(seen.values)
    )
    return code._replace(values=seen.values), tally


def _given_ids(code: FieldCode, seen: _Seen, column: ibis.Column) -> tuple[FieldCode, _Tally]:
    """Ids 1 to the largest of all rows, whether train has it or not."""
    largest = column.nullif("").cast("int64").max().to_pyarrow().as_py() or 0
    if largest > LARGEST_ID:
        raise DataError(
            f"field {code.name!r}: id {largest} is beyond the largest, {LARGEST_ID}; number the "
            "values without gaps, or prepare them as strings"
        )
    ids = seen.values.cast(pa.int64()).to_numpy()
    names = pa.array(np.arange(1, largest + 1)).cast(pa.string())
    tally = _tally(ids, largest, seen)
    return code._replace(values=names), tally


def _hashed(code: FieldCode, seen: _Seen, buckets: int) -> tuple[FieldCode, _Tally]:
    """Ids of buckets by md5; a bucket's value in the vocabulary is its number."""
    names = pa.array(np.arange(1, buckets + 1)).cast(pa.string())
    tally = _tally(hash_ids(seen.values, buckets), buckets, seen)
    return code._replace(values=names, buckets=buckets), tally


def _in_buckets(code: FieldCode, seen: _Seen, quantiles: int) -> tuple[FieldCode, _Tally]:
    """Ids of quantiles of the training rows; a bucket's value is its range."""
    numbers = parse_numbers(seen.values)
    if wrong := np.flatnonzero(np.isnan(numbers)).tolist():
        shown = seen.values[wrong[0]].as_py()
        raise DataError(
            f"field {code.name!r}: {shown!r} is not a number; correct it, or don't prepare the "
            "field as numbers"
        )
    _check_separation(numbers, seen, code.name)
    edges = fit_edges(numbers, seen.counts, quantiles)
    names = pa.array(bucket_names(edges), pa.string())
    tally = _tally(bucket_of(numbers, edges) + 1, len(names), seen)
    return code._replace(values=names, edges=tuple(edges.tolist())), tally


def _tally(ids: np.ndarray, size: int, seen: _Seen) -> _Tally:
    """Sum counts and clicks up by id; the example of an id is its most frequent value."""
    rows = np.bincount(ids, seen.counts, minlength=size + 1).astype(np.int64)
    clicks = np.bincount(ids, seen.clicks, minlength=size + 1).astype(np.int64)
    rows[UNKNOWN], clicks[UNKNOWN] = seen.without
    known, first = np.unique(ids, return_index=True)
    examples = np.full(size, -1)
    examples[known[known > 0] - 1] = first[known > 0]
    taken = seen.values.take(pa.array(examples, mask=examples < 0))
    return _Tally(rows, clicks, _examples(taken))


def _examples(values: pa.StringArray) -> pa.StringArray:
    return pa.concat_arrays([pa.array([""], pa.string()), values])


def _check_separation(numbers: np.ndarray, seen: _Seen, name: str) -> None:
    """Refuses numbers that decide the label, whatever buckets they would be in."""
    counts, clicks = seen.counts, seen.clicks
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


def _longest(stage: Stage, column: str, code: FieldCode, origin: FieldSource) -> int:
    """The most known values that a training row has, 1 at least."""
    if code.separator is None:
        return 1
    longest = 1
    for batch in stage.batches(f"texts_{column}"):
        pairs = code.pairs(as_column(batch.column("raw"), origin.as_lists), "the rows")
        if len(pairs):
            longest = max(longest, int(np.bincount(pairs[:, 0]).max()))
    return longest


def _check_leakage(tally: _Tally, name: str) -> None:
    """Refuses a field whose values decide the label.

    The values are those with at least `SUPPORT` training rows, a missing one among them, and
    they must hold half of all such rows: each of them with one label only, and both labels among
    them, does not happen by chance. Rare values, such as users of a few rows, are no evidence.
    """
    enough = tally.rows >= SUPPORT
    clicked = np.flatnonzero(enough & (tally.clicks == tally.rows))
    unclicked = np.flatnonzero(enough & (tally.clicks == 0))
    mixed = enough.sum() - len(clicked) - len(unclicked)
    if mixed or not len(clicked) or not len(unclicked):
        return
    if 2 * tally.rows[enough].sum() >= tally.rows.sum():
        shown = [tally.examples[int(ids[0])].as_py() for ids in (clicked, unclicked)]
        raise DataError(
            f"field {name!r} gives the label away: each of its {enough.sum()} values with at "
            f"least {SUPPORT} training rows goes with one label only, such as "
            f"{shown[0]!r} with 1 and {shown[1]!r} with 0; {_LEAK}"
        )

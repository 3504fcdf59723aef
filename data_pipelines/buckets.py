"""A fixed number of ids for numbers and for hashed strings, whatever values come.

Numbers fall between quantiles of the training rows, strings on their md5. Both are computed alike
for a whole table and for the rows of a prediction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis.expr.types import IntegerValue, StringValue

from d3jax.batch import UNKNOWN

_NUMBER = r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"

_DIGITS = 12
"""Hexadecimal digits of an md5 that make the number to be divided: 48 bits."""


def parse_numbers(texts: pa.Array) -> np.ndarray:
    """The decimal numbers that strings write, [R] float64; NaN for a text that writes none."""
    written = pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, None)
    return pc.cast(written, pa.float64()).to_numpy(zero_copy_only=False)


def fit_edges(numbers: np.ndarray, counts: np.ndarray, buckets: int) -> np.ndarray:
    """The edges of at most `buckets` buckets that hold about as many rows each.

    `counts` are the rows of each of the distinct `numbers`. An edge is a number itself and
    belongs to the bucket above it; a number of many rows takes the place of several buckets.
    """
    seen = counts > 0
    order = np.argsort(numbers[seen])
    values, rows = numbers[seen][order], counts[seen][order]
    below = np.cumsum(rows) - rows
    wanted = np.arange(1, buckets) * rows.sum() / buckets
    positions = np.unique(np.searchsorted(below, wanted, side="left"))
    return values[positions[(positions > 0) & (positions < values.size)]]


def assign(numbers: np.ndarray, edges: Sequence[float] | np.ndarray) -> np.ndarray:
    """The bucket of each number, from 0 below the first edge to len(edges); NaN is in the last."""
    return np.searchsorted(np.asarray(edges, np.float64), numbers, side="right").astype(np.int32)


def number_ids(texts: pa.Array, edges: Sequence[float] | np.ndarray) -> np.ndarray:
    """One more than the bucket of each text's number; unknown for a text that writes none."""
    numbers = parse_numbers(texts)
    return np.where(np.isnan(numbers), UNKNOWN, assign(numbers, edges) + 1).astype(np.int32)


def bucket_names(edges: Sequence[float] | np.ndarray, what: str = "x") -> list[str]:
    """Such as "x < 25", "25 <= x < 35" and "x >= 35"."""
    texts = [f"{edge:.17g}" for edge in edges]
    if not texts:
        return [f"any {what}"]
    between = [f"{low} <= {what} < {high}" for low, high in pairwise(texts)]
    return [f"{what} < {texts[0]}", *between, f"{what} >= {texts[-1]}"]


def hash_ids(texts: pa.Array, buckets: int) -> np.ndarray:
    """Ids [R] int32 from 1 to `buckets` by the md5 of each text; unknown where it is missing."""
    coded = texts.dictionary_encode()
    values = coded.dictionary.to_pylist()
    ids = np.array([_hash_id(value, buckets) for value in values] + [UNKNOWN], np.int32)
    return ids[pc.fill_null(coded.indices, len(values)).to_numpy()]


def _hash_id(value: str, buckets: int) -> int:
    if not value:
        return UNKNOWN
    return 1 + int(hashlib.md5(value.encode()).hexdigest()[:_DIGITS], 16) % buckets


def hash_expression(text: StringValue, buckets: int) -> IntegerValue:
    """What `hash_ids` gives for a text that is not empty, for any engine to compute."""
    digest = text.hexdigest("md5")
    # Engines differ in how they parse hexadecimal numbers and how wide their integers are, but not
    # in finding a character, and a float64 holds 53 bits exactly.
    number = ibis.literal(0.0)
    for place in range(_DIGITS):
        digit = ibis.literal("0123456789abcdef").find(digest.substr(place, 1))
        number = number * 16 + digit.cast("float64")
    return (number.cast("int64") % buckets + 1).cast("int32")

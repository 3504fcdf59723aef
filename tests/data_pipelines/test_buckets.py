"""Buckets and hashes against plain Python."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest

from d3jax.data.encoding import bucket_of, hash_ids, number_ids, parse_numbers
from data_pipelines.buckets import bucket_names, fit_edges


def test_only_decimal_numbers_are_numbers() -> None:
    texts = ["1", "-2.50", "+.5", "3.", "1e3", " 7 ", "", "1e999", "1_0", "0x1", "nan", "inf", None]
    numbers = parse_numbers(pa.array(texts, pa.string())).tolist()
    assert numbers[:6] == [1, -2.5, 0.5, 3, 1000, 7]
    assert all(np.isnan(numbers[6:]))


@pytest.mark.parametrize("buckets", [2, 3, 7, 20])
def test_buckets_hold_about_as_many_rows_each(buckets: int) -> None:
    """Each value is in one row: the sizes differ by one at most."""
    draw = random.Random(buckets)
    numbers = np.array([draw.lognormvariate(0, 3) for _ in range(501)])
    edges = fit_edges(numbers, np.ones(501, np.int64), buckets)
    sizes = np.bincount(bucket_of(numbers, edges), minlength=buckets)
    assert sizes.size == buckets
    assert sizes.max() - sizes.min() <= 1


def test_a_frequent_number_takes_several_buckets() -> None:
    numbers, counts = np.array([5.0, 1.0, 9.0, 7.0]), np.array([10, 1, 1, 0])
    edges = fit_edges(numbers, counts, 4)
    assert edges.tolist() == [9.0]


def test_edges_of_a_constant_or_of_nothing() -> None:
    assert fit_edges(np.array([3.0]), np.array([9]), 5).size == 0
    assert fit_edges(np.array([]), np.array([], np.int64), 5).size == 0


def test_an_edge_belongs_to_the_bucket_above() -> None:
    texts = pa.array(["24", "25", "34.9", "35", "", "old", None])
    assert number_ids(texts, [25, 35]).tolist() == [1, 2, 2, 3, 0, 0, 0]
    assert bucket_names([25, 35.5], "age") == ["age < 25", "25 <= age < 35.5", "age >= 35.5"]
    assert bucket_names([]) == ["any x"]


@pytest.mark.parametrize("buckets", [2, 97, 100_000, 2**31 - 2])
def test_a_hash_is_the_md5_of_a_spelling(buckets: int) -> None:
    texts = ["u1", "é", "12", "x|y", " ", "'"] + [str(n) for n in range(200)]
    expected = [
        1 + int(hashlib.md5(text.encode()).hexdigest()[:12], 16) % buckets for text in texts
    ]
    assert hash_ids(pa.array(texts), buckets).tolist() == expected
    assert hash_ids(pa.array([None, "u1", None], pa.string()), buckets).tolist() == [
        0,
        expected[0],
        0,
    ]

"""Buckets of numbers, between quantiles of the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


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
    inside = (positions > 0) & (positions < values.size)
    return np.unique(values[positions[inside]])


def bucket_names(edges: Sequence[float] | np.ndarray, what: str = "x") -> list[str]:
    """Such as "x < 25", "25 <= x < 35" and "x >= 35"."""
    texts = [f"{edge:.17g}" for edge in edges]
    if not texts:
        return [f"any {what}"]
    between = [f"{low} <= {what} < {high}" for low, high in pairwise(texts)]
    return [f"{what} < {texts[0]}", *between, f"{what} >= {texts[-1]}"]

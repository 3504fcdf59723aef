"""The interval of an AUC by bootstrap, in seconds also for very many rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FINEST = 1 << 12
"""Most distinct scores told apart; beyond, neighbours count as tied, which moves an AUC by 1e-4."""

AT_ONCE = 1 << 18
"""Most cells of resamples that are drawn together, a few MB."""


class Cells(NamedTuple):
    """Rows counted by distinct score, in ascending order; of one sample or of several."""

    positive: Int[np.ndarray, "*resamples cells"]
    negative: Int[np.ndarray, "*resamples cells"]


def auc_interval(
    scores: Float[np.ndarray, " R"],
    label: Float[np.ndarray, " R"],
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """The percentile interval of AUC over resamples of the rows; None where AUC is undefined.

    Each row is drawn a Poisson(1) number of times, which differs from drawing R rows with
    replacement only in the resample's size, and AUC doesn't depend on that (Chamandy et al., 2012).
    """
    if label.min() == label.max():
        return None
    cells = count_cells(scores, label)
    rng = np.random.default_rng(seed)
    together = max(1, AT_ONCE // cells.positive.size)
    parts = [min(together, resamples - done) for done in range(0, resamples, together)]
    values = np.concatenate([_resampled_aucs(cells, rng, count) for count in parts])
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def count_cells(
    scores: Float[np.ndarray, " R"], label: Float[np.ndarray, " R"], finest: int = FINEST
) -> Cells:
    """Rows by distinct score, at most `finest` of them, each of about equally many rows."""
    distinct, cell = np.unique(scores, return_inverse=True)
    if distinct.size > finest:
        rows = np.cumsum(np.bincount(cell))
        cell = ((rows - 1) * finest // rows[-1])[cell]
    size = int(cell.max()) + 1
    positive = np.bincount(cell[label == 1], minlength=size)
    return Cells(positive, np.bincount(cell, minlength=size) - positive)


def cells_auc(cells: Cells) -> Float[np.ndarray, "*resamples"]:
    """AUC of counted rows, ties counting half; NaN when a class is missing."""
    positive, negative = cells
    below = np.cumsum(negative, axis=-1) - negative
    ordered = (positive * (below + negative / 2)).sum(-1)
    pairs = positive.sum(-1).astype(float) * negative.sum(-1)
    return np.divide(ordered, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def _resampled_aucs(cells: Cells, rng: np.random.Generator, count: int) -> np.ndarray:
    """[count] AUC of cells whose counts are Poisson draws; most are 0, which need no draw."""
    some = [np.flatnonzero(counts) for counts in cells]
    means = np.concatenate([counts[at] for counts, at in zip(cells, some, strict=True)])
    draws = np.split(rng.poisson(means, (count, means.size)), [some[0].size], axis=1)
    resampled = [np.zeros((count, counts.size), np.int64) for counts in cells]
    for counts, at, drawn in zip(resampled, some, draws, strict=True):
        counts[:, at] = drawn
    return cells_auc(Cells(*resampled))

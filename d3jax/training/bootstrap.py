"""How sure an AUC is: a bootstrap interval, in seconds also for very many rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FINEST = 1 << 12
"""Most distinct scores told apart; beyond, neighbours count as tied, which moves an AUC by 1e-4."""


class Cells(NamedTuple):
    """Rows counted by distinct score, in ascending order."""

    positive: Int[np.ndarray, " cells"]
    negative: Int[np.ndarray, " cells"]


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
    values = np.array([_resampled_auc(cells, rng) for _ in range(resamples)])
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


def cells_auc(cells: Cells) -> float:
    """AUC of counted rows, ties counting half; NaN when a class is missing."""
    below = np.cumsum(cells.negative) - cells.negative
    ordered = float(np.dot(cells.positive, below + cells.negative / 2))
    pairs = float(cells.positive.sum()) * float(cells.negative.sum())
    return ordered / pairs if pairs else float("nan")


def _resampled_auc(cells: Cells, rng: np.random.Generator) -> float:
    return cells_auc(Cells(*(_poisson(counts, rng) for counts in cells)))


def _poisson(counts: Int[np.ndarray, " cells"], rng: np.random.Generator) -> np.ndarray:
    """A Poisson draw with each count as its mean; most counts are 0, which need no draw."""
    drawn = np.zeros_like(counts)
    some = counts > 0
    drawn[some] = rng.poisson(counts[some])
    return drawn

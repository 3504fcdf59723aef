"""The interval is the one that drawing rows again gives, computed here by plain loops."""

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from d3jax.training import bootstrap
from d3jax.training.bootstrap import Cells, auc_interval, cells_auc, count_cells


def rows(count, seed=0, digits=8):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=count), digits)
    return scores, (rng.random(count) < 1 / (1 + np.exp(-scores))).astype(np.float64)


@pytest.mark.parametrize("digits", [8, 0])
def test_counted_rows_have_the_auc_of_the_rows(digits):
    scores, label = rows(500, digits=digits)
    cells = count_cells(scores, label)
    assert cells_auc(cells) == pytest.approx(roc_auc_score(label, scores), abs=1e-12)


def test_neighbours_are_tied_beyond_the_finest_grid():
    scores, label = rows(20_000)
    cells = count_cells(scores, label, finest=1000)
    assert cells.positive.size == 1000
    assert (cells.positive + cells.negative).tolist() == [20] * 1000
    assert cells.positive.sum() == label.sum()
    assert cells_auc(cells) == pytest.approx(roc_auc_score(label, scores), abs=1e-3)


def test_the_interval_is_that_of_rows_drawn_with_replacement():
    scores, label = rows(300)
    wins = (np.sign(scores[label == 1][:, None] - scores[label == 0]) + 1) / 2
    rng = np.random.default_rng(7)
    values = []
    for _ in range(5000):
        times = np.bincount(rng.integers(0, 300, 300), minlength=300)
        positive, negative = times[label == 1], times[label == 0]
        values.append(positive @ wins @ negative / (positive.sum() * negative.sum()))
    expected = np.quantile(values, [0.025, 0.975])
    assert auc_interval(scores, label, 5000) == pytest.approx(expected, abs=6e-3)
    narrow = auc_interval(scores, label, 5000, level=0.5)
    assert narrow == pytest.approx(np.quantile(values, [0.25, 0.75]), abs=3e-3)


def test_resamples_are_the_same_however_many_are_drawn_together(monkeypatch):
    scores, label = rows(100)
    whole = auc_interval(scores, label, 50)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 700)
    assert auc_interval(scores, label, 50) == whole


def test_a_resample_without_a_class_has_no_auc():
    cells = Cells(np.array([[1, 0], [0, 0]]), np.array([[0, 3], [2, 1]]))
    np.testing.assert_array_equal(cells_auc(cells), [0.0, np.nan])


def test_a_seed_repeats_the_interval_and_one_class_has_none():
    scores, label = rows(100)
    assert auc_interval(scores, label, 50, seed=1) == auc_interval(scores, label, 50, seed=1)
    assert auc_interval(scores, label, 50, seed=1) != auc_interval(scores, label, 50, seed=2)
    assert auc_interval(scores, np.ones(100)) is None


def test_a_hundred_thousand_rows_take_seconds():
    scores, label = rows(100_000)
    start = time.perf_counter()
    low, high = auc_interval(scores, label, 1000)
    assert time.perf_counter() - start < 20
    assert low < roc_auc_score(label, scores) < high
    assert 0.004 < high - low < 0.01

import numpy as np
import pytest
from sklearn.metrics import log_loss

from d3jax.training.metrics import Metrics, Scores, auc, evaluate_scores, measure


def scores(seed=0, rows=400, ties=False):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=rows).astype(np.float32)
    if ties:
        logits = np.round(logits)
    label = (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return Scores(logits, label, rng.integers(0, 3, rows).astype(np.int32))


def brute_force_auc(logits, label):
    """The share of (positive, negative) pairs in order, ties counting half: O(P N)."""
    logits = logits.astype(np.float64)
    positive, negative = logits[label == 1], logits[label == 0]
    order = np.sign(positive[:, None] - negative[None, :])
    return float(((order + 1) / 2).mean())


@pytest.mark.parametrize("ties", [False, True])
def test_auc_counts_pairs_with_ties_half(ties):
    logits, label, _ = scores(ties=ties)
    assert auc(logits, label) == pytest.approx(brute_force_auc(logits, label), abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_class_has_no_auc(value):
    one = Scores(np.arange(4.0), np.full(4, value), np.zeros(4, int))
    metrics = measure(one)
    assert metrics.auc is None
    assert metrics.click_rate == value
    assert metrics.constant_logloss == 0.0


def test_logloss_and_its_baseline():
    given = scores()
    metrics = measure(given)
    probability = 1 / (1 + np.exp(-given.logits.astype(np.float64)))
    assert metrics.logloss == pytest.approx(log_loss(given.label, probability), abs=1e-12)
    constant = np.full(given.label.size, given.label.mean(), np.float64)
    assert metrics.constant_logloss == pytest.approx(log_loss(given.label, constant), abs=1e-6)


def test_scenarios_hold_their_own_rows_only():
    given = scores()
    evaluation = evaluate_scores(given, ["a", "b", "c", "empty"])
    assert evaluation.overall.rows == 400
    assert evaluation.scenarios["b"] == measure(given.of(1))
    assert sum(metrics.rows for metrics in evaluation.scenarios.values()) == 400
    assert evaluation.scenarios["empty"] == Metrics(0, None, None, None, None)
    assert list(evaluation.to_json()) == ["overall", "scenarios"]
    assert evaluation.to_json()["scenarios"]["a"]["auc"] == evaluation.scenarios["a"].auc


def test_pieces_merge_to_the_same_metrics():
    given = scores()
    pieces = [Scores(*(column[at : at + 7] for column in given)) for at in range(0, 400, 7)]
    assert measure(Scores.merge(pieces)) == measure(given)

from itertools import pairwise

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from d3jax.training.metrics import (
    Evaluation,
    Metrics,
    Scores,
    auc,
    calibration,
    evaluate_scores,
    gauc,
    measure,
)


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
    logits, label = scores(ties=ties)[:2]
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
    assert list(evaluation.groups) == ["a", "b", "c", "empty", "overall"]
    assert list(evaluation.to_json()) == ["overall", "scenarios"]
    assert evaluation.to_json()["scenarios"]["a"]["auc"] == evaluation.scenarios["a"].auc


def test_pieces_merge_to_the_same_metrics():
    given = scores()
    pieces = [Scores(*(column[at : at + 7] for column in given[:3])) for at in range(0, 400, 7)]
    assert measure(Scores.merge(pieces)) == measure(given)


def test_gate_and_weight_are_means_by_scenario():
    given = scores()
    gate, weight = np.arange(400) / 400, np.arange(400) % 7
    pieces = [given._replace(gate=gate, weight=weight)]
    found = evaluate_scores(Scores.merge(pieces), ["a", "b", "c"])
    for index, name in enumerate("abc"):
        mine = given.scenario == index
        assert found.scenarios[name].gate == pytest.approx(gate[mine].mean(), abs=1e-12)
        assert found.scenarios[name].weight == pytest.approx(weight[mine].mean(), abs=1e-12)
    assert found.overall.gate == pytest.approx(gate.mean(), abs=1e-12)
    assert (measure(given).gate, measure(given).weight) == (None, None)


@pytest.mark.parametrize("ties", [False, True])
def test_gauc_is_the_mean_of_the_users_aucs_by_their_rows(ties):
    given = scores(ties=ties)
    user = np.random.default_rng(1).integers(1, 60, 400)
    user[:30] = 99  # A user with many rows and one class.
    given.label[:30] = 1.0
    total, weight = 0.0, 0
    for one in np.unique(user):
        label = given.label[user == one]
        if 0 < label.sum() < label.size:
            total += label.size * roc_auc_score(label, given.logits[user == one])
            weight += label.size
    assert 0 < weight < 370
    merged = Scores.merge([Scores(*given[:3], user)])
    assert measure(merged).gauc == pytest.approx(total / weight, abs=1e-12)


def test_rows_of_unknown_users_are_no_user():
    logits, label = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 1.0, 0.0])
    assert gauc(logits, label, np.array([5, 5, 0, 0])) == 1.0
    assert gauc(logits, label, np.array([0, 0, 0, 0])) is None
    assert gauc(logits, label, np.array([1, 2, 3, 4])) is None
    assert measure(Scores(logits, label, np.zeros(4, int))).gauc is None


def test_pcoc_is_predicted_clicks_over_clicks():
    given = scores()
    predicted = sum(1 / (1 + np.exp(-float(logit))) for logit in given.logits)
    assert measure(given).pcoc == pytest.approx(predicted / given.label.sum(), abs=1e-9)
    assert measure(given._replace(label=np.zeros(400))).pcoc is None


def test_ece_is_the_weighted_distance_over_ten_bins_of_equal_mass():
    given = scores(rows=1003)
    probability = 1 / (1 + np.exp(-given.logits.astype(np.float64)))
    order = np.argsort(probability)
    borders = [1003 * k // 10 for k in range(11)]
    distance = 0.0
    for start, stop in pairwise(borders):
        mine = order[start:stop]
        gap = abs(np.mean(probability[mine]) - np.mean(given.label[mine].astype(np.float64)))
        distance += len(mine) / 1003 * gap
    assert measure(given).ece == pytest.approx(distance, abs=1e-12)


def test_rows_that_tie_share_a_bin_whatever_their_order():
    probability = np.array([0.2] * 50 + [0.6] * 50)
    label = np.arange(100) % 4 == 0
    bins = calibration(probability, label.astype(float))
    assert bins.rows.tolist() == [50, 50]
    assert bins.predicted == pytest.approx([0.2, 0.6])
    assert bins.observed == pytest.approx([13 / 50, 12 / 50])
    constant = Scores(np.full(8, np.log(3.0)), np.array([1.0, 0] * 4), np.zeros(8, int))
    assert measure(constant).ece == pytest.approx(0.25)


def test_macro_and_worst_auc_are_of_the_scenarios_that_have_one():
    names = {"a": 0.5, "b": 0.8, "c": None}
    groups = {name: Metrics(1, 0.5, value, 1.0, 1.0) for name, value in names.items()}
    evaluation = Evaluation(Metrics(3, 0.5, 0.9, 1.0, 1.0), groups)
    assert evaluation.macro_auc() == pytest.approx(0.65)
    assert evaluation.worst_auc() == 0.5
    assert (evaluation.macro_auc(["b", "c"]), evaluation.worst_auc(["b", "c"])) == (0.8, 0.8)
    none = Evaluation(evaluation.overall, {"c": groups["c"]})
    assert (none.macro_auc(), none.worst_auc()) == (None, None)


def test_json_gives_an_evaluation_back():
    evaluation = evaluate_scores(scores(), ["a", "b", "c"], resamples=20)
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    assert evaluation.overall.auc_interval is not None
    older = evaluation.to_json()
    del older["overall"]["auc_interval"]
    assert Evaluation.from_json(older).overall.auc_interval is None

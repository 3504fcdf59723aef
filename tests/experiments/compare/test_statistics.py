"""Means, tests and corrections, against hand-made numbers and scipy's and textbook formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import t as student

from d3jax.training.metrics import Evaluation, Metrics, mean_and_std
from experiments.compare.statistics import holm, paired_p, summarize
from experiments.compare.tables import MLP, Method, Table

ADI, D3 = Method("ADI", "adi"), Method("ADI + D3", "adi", "d3", base="ADI")
TABLE = Table("table", "A table", (MLP, ADI, D3))


def evaluation(auc: float, logloss: float = 0.5, slot: float | None = 0.7) -> Evaluation:
    def group(value: float | None) -> Metrics:
        return Metrics(10, 0.5, value, logloss, 0.69, 0.6, 1.0, 0.02, (0.4, 0.8))

    return Evaluation(group(auc), {"home": group(auc + 0.1), "slot": group(slot)})


def test_the_paired_test_is_the_t_of_the_differences() -> None:
    ours, base = [0.75, 0.76, 0.74, 0.77], [0.74, 0.752, 0.741, 0.755]
    difference = [a - b for a, b in zip(ours, base, strict=True)]
    mean = sum(difference) / 4
    spread = math.sqrt(sum((d - mean) ** 2 for d in difference) / 3)
    expected = 2 * student.sf(abs(mean / (spread / 2)), df=3)
    assert paired_p(ours, base) == pytest.approx(expected, rel=1e-9)
    assert paired_p(base, ours) == pytest.approx(expected, rel=1e-9)


def test_too_few_and_equal_pairs() -> None:
    assert paired_p([0.1, 0.2], [0.3, 0.5]) is None
    assert paired_p([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == 1.0
    assert paired_p([1.25, 1.5, 1.75], [1.0, 1.25, 1.5]) == 0.0


def test_holm_is_the_largest_so_far_of_p_times_what_is_left() -> None:
    # Holm (1979): sorted p times m, m - 1, ..., made monotone.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([None]) == [None]


@pytest.mark.parametrize("p_values", list(itertools.permutations([0.001, 0.02, 0.02, 0.4])))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: tuple[float, ...]) -> None:
    rejected = set()
    for rank, index in enumerate(sorted(range(4), key=lambda i: p_values[i])):
        if p_values[index] > 0.05 / (4 - rank):
            break
        rejected.add(p_values[index])
    adjusted = holm(p_values)
    assert {p for p, a in zip(p_values, adjusted, strict=True) if a <= 0.05} == rejected


def test_mean_and_sample_deviation() -> None:
    assert mean_and_std([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, np.std([1, 2, 4], ddof=1)))
    assert mean_and_std([1.5]) == (1.5, None)
    assert mean_and_std([]) == (None, None)


def test_seeds_are_paired_with_the_same_seeds_of_the_base() -> None:
    results = {
        "ADI": {seed: evaluation(0.70 + 0.01 * seed) for seed in (0, 1, 2, 3)},
        "ADI + D3": {seed: evaluation(0.71 + 0.011 * seed) for seed in (3, 1, 2, 7)},
    }
    found = {(s.method, s.group, s.metric): s for s in summarize(TABLE, results)}
    one = found["ADI + D3", "overall", "auc"]
    assert one.seeds == 4
    assert one.mean == pytest.approx(0.71 + 0.011 * 13 / 4)
    assert one.difference == pytest.approx(np.mean([0.011, 0.012, 0.013]))
    assert one.p == pytest.approx(paired_p([0.721, 0.732, 0.743], [0.71, 0.72, 0.73]), rel=1e-6)
    assert one.interval == (0.4, 0.8)
    # Of the three columns, one ties exactly; the other two are corrected together.
    family = [found["ADI + D3", group, "auc"].p for group in ("home", "slot", "overall")]
    assert family[1] == 1.0
    assert one.p_holm == pytest.approx(holm(family)[2])
    assert one.verdict == "better"
    assert found["ADI", "overall", "auc"].p is None
    assert found["MLP", "overall", "auc"].mean is None
    assert found["ADI + D3", "overall", "pcoc"].p is None


def test_a_lower_logloss_is_better_and_a_missing_value_is_left_out() -> None:
    noise = (0.001, -0.001, 0.0005, 0.0)
    results = {
        "ADI": {seed: evaluation(0.7, 0.5) for seed in range(4)},
        "ADI + D3": {s: evaluation(0.7, 0.4 + n, slot=None) for s, n in enumerate(noise)},
    }
    found = {(s.method, s.group, s.metric): s for s in summarize(TABLE, results)}
    assert found["ADI + D3", "overall", "logloss"].verdict == "better"
    assert found["ADI + D3", "overall", "auc"].verdict == ""
    slot = found["ADI + D3", "slot", "auc"]
    assert (slot.seeds, slot.mean, slot.difference, slot.p, slot.p_holm) == (0, *[None] * 4)
    worse = {"ADI": results["ADI + D3"], "ADI + D3": results["ADI"]}
    again = {(s.method, s.group, s.metric): s for s in summarize(TABLE, worse)}
    assert again["ADI + D3", "overall", "logloss"].verdict == "worse"

"""Statistics of several seeds: mean, spread, and whether a difference is more than chance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from d3jax.checks import OVERALL
from d3jax.training.metrics import Evaluation, Metrics, mean_and_std
from experiments.compare.tables import Table

MetricName = Literal["auc", "gauc", "logloss", "pcoc", "ece"]
TESTED: dict[MetricName, bool] = {"auc": True, "gauc": True, "logloss": False}
"""Metrics that methods are tested on, and whether more is better."""
METRICS: tuple[MetricName, ...] = ("auc", "gauc", "logloss", "pcoc", "ece")
LEVEL = 0.05
FEWEST_PAIRS = 3
"""With two pairs a t-test has one degree of freedom, and calls chance significant or nothing."""


class Repeat(NamedTuple):
    """A run's seed, and the split of the rows that it is of; 0 is the prepared one."""

    seed: int
    split: int = 0

    def __str__(self) -> str:
        return f"{self.seed}-split-{self.split}" if self.split else str(self.seed)


BySeed = Mapping[Repeat, Evaluation]
"""The evaluations of a method's finished seeds."""


class Summary(NamedTuple):
    """A method's metric in one group of rows, over seeds.

    `interval` is the mean of the seeds' bootstrap intervals (AUC only). `difference`, `p` and
    `p_holm` compare with the base on the seeds that both have; None where there is no base, or
    too few seeds.
    """

    method: str
    group: str
    metric: MetricName
    by_seed: dict[Repeat, float]
    """The figure of each seed in which it is defined."""
    mean: float | None
    std: float | None
    interval: tuple[float, float] | None = None
    base: str | None = None
    difference: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def seeds(self) -> int:
        """Return the number of seeds."""
        return len(self.by_seed)

    @property
    def verdict(self) -> Literal["better", "worse", ""]:
        """Return whether the difference from the base is significant, and its direction."""
        if self.p_holm is None or self.p_holm >= LEVEL or self.difference is None:
            return ""
        return "better" if (self.difference > 0) == TESTED[self.metric] else "worse"


def summarize(table: Table, results: Mapping[str, BySeed]) -> list[Summary]:
    """Every method's metrics in every group, with Holm's correction over a method's groups."""
    summaries = []
    for method in table.methods:
        ours = results.get(method.name, {})
        base = results.get(method.base, {}) if method.base else {}
        for metric in METRICS:
            family = [
                _summary(method.name, method.base, group, metric, ours, base)
                for group in _groups(results)
            ]
            adjusted = holm([summary.p for summary in family])
            summaries += [
                summary._replace(p_holm=p) for summary, p in zip(family, adjusted, strict=True)
            ]
    return summaries


def paired_p(ours: Sequence[float], base: Sequence[float]) -> float | None:
    """The p-value of a paired two-sided t-test; None for fewer than `FEWEST_PAIRS`.

    Equal pairs give 1; pairs that all differ by the same amount, which has no spread to compare
    with, give 0.
    """
    from scipy.stats import ttest_rel

    difference = np.subtract(ours, base)
    if difference.size < FEWEST_PAIRS:
        return None
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 0.0
    with warnings.catch_warnings():
        # scipy warns of lost precision when the differences hardly differ; p is all but 0 then.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ttest_rel(ours, base).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm, 1979); None stays None and doesn't count."""
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = largest
    return adjusted


def metric_of(metrics: Metrics, metric: MetricName) -> float | None:
    """One number of a group's metrics."""
    values: dict[MetricName, float | None] = {
        "auc": metrics.auc,
        "gauc": metrics.gauc,
        "logloss": metrics.logloss,
        "pcoc": metrics.pcoc,
        "ece": metrics.ece,
    }
    return values[metric]


def summary_of(
    method: str, group: str, metric: MetricName, values: Mapping[Repeat, float | None]
) -> Summary:
    """Mean and spread of a figure that isn't tested."""
    by_seed = defined(values)
    return Summary(method, group, metric, by_seed, *mean_and_std(list(by_seed.values())))


def defined(values: Mapping[Repeat, float | None]) -> dict[Repeat, float]:
    """The figures of the seeds in which there is one, in the seeds' order."""
    return {s: v for s, v in sorted(values.items()) if v is not None and math.isfinite(v)}


def pairs_of(
    ours: Mapping[Repeat, float], base: Mapping[Repeat, float]
) -> tuple[list[float], list[float]]:
    """The figures of the seeds that both have."""
    paired = sorted(ours.keys() & base.keys())
    return [ours[seed] for seed in paired], [base[seed] for seed in paired]


def _summary(
    method: str, base_name: str | None, group: str, metric: MetricName, ours: BySeed, base: BySeed
) -> Summary:
    mine, theirs = _values(ours, group, metric), _values(base, group, metric)
    mean, std = mean_and_std(list(mine.values()))
    pairs = pairs_of(mine, theirs)
    return Summary(
        method=method,
        group=group,
        metric=metric,
        by_seed=mine,
        mean=mean,
        std=std,
        interval=_mean_interval(ours, group) if metric == "auc" else None,
        base=base_name,
        difference=float(np.mean(np.subtract(*pairs))) if pairs[0] else None,
        p=paired_p(*pairs) if metric in TESTED else None,
    )


def _groups(results: Mapping[str, BySeed]) -> list[str]:
    """ "overall", and the scenarios in their order."""
    first = next((one for seeds in results.values() for one in seeds.values()), None)
    return [] if first is None else [OVERALL, *first.scenarios]


def _values(seeds: BySeed, group: str, metric: MetricName) -> dict[Repeat, float]:
    return defined({seed: metric_of(one.groups[group], metric) for seed, one in seeds.items()})


def _mean_interval(seeds: BySeed, group: str) -> tuple[float, float] | None:
    intervals = [one.groups[group].auc_interval for one in seeds.values()]
    known = [interval for interval in intervals if interval is not None]
    if not known:
        return None
    low, high = np.mean(known, axis=0)
    return float(low), float(high)

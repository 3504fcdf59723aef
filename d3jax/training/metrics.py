"""Metrics per scenario and overall, from scores that can be collected in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from d3jax.batch import UNKNOWN
from d3jax.checks import OVERALL
from d3jax.errors import TrainingError
from d3jax.training.bootstrap import auc_interval

CALIBRATION_BINS = 10


class Scores(NamedTuple):
    """R scored rows. Pieces concatenate, in any order, to the same metrics.

    `user` is each row's user id, None where the data has no user field; `gate` the share of its
    own weights, and `weight` what its loss counts, None where the model has neither.
    """

    logits: Float[np.ndarray, " R"]
    label: Float[np.ndarray, " R"]
    scenario: Int[np.ndarray, " R"]
    user: Int[np.ndarray, " R"] | None = None
    gate: Float[np.ndarray, " R"] | None = None
    weight: Float[np.ndarray, " R"] | None = None

    @classmethod
    def merge(cls, pieces: Iterable[Scores]) -> Scores:
        """All pieces as one."""
        columns: Iterable[Any] = zip(*pieces, strict=True)
        joined: list[Any] = [None if one[0] is None else np.concatenate(one) for one in columns]
        return cls(*joined)

    def of(self, scenario: int) -> Scores:
        """The rows of one scenario."""
        mine = self.scenario == scenario
        columns: list[Any] = [None if column is None else column[mine] for column in self]
        return Scores(*columns)


def undefined(metric: str, scenario: str = "") -> TrainingError:
    """Return the error of a metric that the validation rows, or a scenario's, can't give."""
    rows = f"the validation rows of {scenario!r}" if scenario else "the validation rows"
    return TrainingError(
        f"{metric} isn't defined on {rows}, which hold one class only; use --monitor logloss, or "
        "more validation rows"
    )


@dataclass(frozen=True)
class Metrics:
    """The metrics of a group of rows; None where a value isn't defined."""

    rows: int
    click_rate: float | None
    auc: float | None
    logloss: float | None
    constant_logloss: float | None
    """The logloss of answering every row with the group's own click rate."""
    gauc: float | None = None
    """Mean of the users' AUCs, each counting by its rows; users of one class are left out."""
    pcoc: float | None = None
    """Predicted clicks over clicks; above 1 the model promises too many."""
    ece: float | None = None
    """Expected calibration error over ten bins of equally many rows."""
    auc_interval: tuple[float, float] | None = None
    """A 95 % bootstrap interval of the AUC, when it was asked for."""
    gate: float | None = None
    """Mean share of the rows' own weights in the gate."""
    weight: float | None = None
    """Mean of what a row's loss counts once D3 weighs rows."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of all rows together and of each scenario by name."""

    overall: Metrics
    scenarios: dict[str, Metrics]

    @property
    def groups(self) -> dict[str, Metrics]:
        """Every scenario's metrics by name, then those of all rows as "overall"."""
        return {**self.scenarios, OVERALL: self.overall}

    def to_json(self) -> dict[str, Any]:
        """Plain values: {"overall": {...}, "scenarios": {name: {...}}}."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Evaluation:
        """The inverse of `to_json`, also for files from before a metric was added."""
        scenarios = {name: _metrics(group) for name, group in value["scenarios"].items()}
        return cls(_metrics(value["overall"]), scenarios)

    def macro_auc(self, among: Iterable[str] | None = None) -> float | None:
        """The mean AUC of all scenarios, or of those named, each counting the same."""
        values = self._aucs(among)
        return sum(values) / len(values) if values else None

    def worst_auc(self, among: Iterable[str] | None = None) -> float | None:
        """The AUC of the scenario that is served worst, of all or of those named."""
        return min(self._aucs(among), default=None)

    def _aucs(self, among: Iterable[str] | None) -> list[float]:
        groups = [self.scenarios[name] for name in (self.scenarios if among is None else among)]
        return [group.auc for group in groups if group.auc is not None]


class Calibration(NamedTuple):
    """Bins of equally many rows by predicted probability: its mean, the click rate, the rows."""

    predicted: Float[np.ndarray, " bins"]
    observed: Float[np.ndarray, " bins"]
    rows: Int[np.ndarray, " bins"]


def evaluate_scores(scores: Scores, scenarios: Sequence[str], resamples: int = 0) -> Evaluation:
    """Metrics overall and per scenario; `resamples` above 0 adds bootstrap intervals of AUC."""
    by_name = {name: measure(scores.of(index), resamples) for index, name in enumerate(scenarios)}
    return Evaluation(measure(scores, resamples), by_name)


def measure(scores: Scores, resamples: int = 0) -> Metrics:
    """Metrics of one group of rows."""
    rows = scores.label.size
    if rows == 0:
        return Metrics(0, None, None, None, None)
    logits, label = scores.logits.astype(np.float64), scores.label.astype(np.float64)
    probability = 1.0 / (1.0 + np.exp(-logits))
    rate = float(label.mean())
    return Metrics(
        rows=rows,
        click_rate=rate,
        auc=auc(logits, label),
        logloss=float(np.mean(np.logaddexp(0.0, logits) - label * logits)),
        constant_logloss=_entropy(rate),
        gauc=None if scores.user is None else gauc(logits, label, scores.user),
        pcoc=float(probability.mean()) / rate if rate else None,
        ece=calibration_error(calibration(probability, label)),
        auc_interval=auc_interval(logits, label, resamples) if resamples else None,
        gate=_mean(scores.gate),
        weight=_mean(scores.weight),
    )


def probabilities(logits: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """Return the click probabilities in float32, rounded once."""
    return (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def auc(scores: Float[np.ndarray, " R"], label: Float[np.ndarray, " R"]) -> float | None:
    """Area under the ROC curve, ties counting half; None unless both classes occur."""
    from sklearn.metrics import roc_auc_score

    if label.min() == label.max():
        return None
    return float(roc_auc_score(label, scores))


def gauc(
    scores: Float[np.ndarray, " R"], label: Float[np.ndarray, " R"], user: Int[np.ndarray, " R"]
) -> float | None:
    """The users' mean AUC weighted by their rows (Zhou et al., 2018); None if none has one.

    Users with one class have no AUC and are left out, as are rows whose user is unknown: they
    share an id, but are many people.
    """
    known = user != UNKNOWN
    order = np.lexsort((scores[known], user[known]))
    score, clicked, owner = scores[known][order], label[known][order], user[known][order]
    if not owner.size:
        return None
    first = np.flatnonzero(np.diff(owner, prepend=owner[0] - 1))
    size = np.diff(first, append=owner.size)
    rank = _tied_ranks(score, owner) - np.repeat(first, size)
    positives = np.add.reduceat(clicked, first)
    pairs = positives * (size - positives)
    ordered = np.add.reduceat(clicked * rank, first) - positives * (positives + 1) / 2
    mixed = pairs > 0
    if not mixed.any():
        return None
    return float(np.average(ordered[mixed] / pairs[mixed], weights=size[mixed]))


def calibration(
    probability: Float[np.ndarray, " R"],
    label: Float[np.ndarray, " R"],
    bins: int = CALIBRATION_BINS,
) -> Calibration:
    """Click rate against prediction, in up to `bins` bins of equally many rows.

    Rows with the same prediction share a bin, so that the order of rows doesn't matter.
    """
    ordered = np.sort(probability)
    edges = ordered[[ordered.size * k // bins for k in range(1, bins)]]
    index = np.searchsorted(edges, probability, side="right")
    rows = np.bincount(index, minlength=bins)
    used = rows > 0
    predicted = np.bincount(index, probability, minlength=bins)[used] / rows[used]
    observed = np.bincount(index, label, minlength=bins)[used] / rows[used]
    return Calibration(predicted, observed, rows[used])


def calibration_error(bins: Calibration) -> float:
    """The mean distance between prediction and click rate, weighted by rows (ECE)."""
    return float(np.average(np.abs(bins.predicted - bins.observed), weights=bins.rows))


def _tied_ranks(
    score: Float[np.ndarray, " R"], owner: Int[np.ndarray, " R"]
) -> Float[np.ndarray, " R"]:
    """Positions from 1 of rows sorted by owner and score; rows that tie share their mean."""
    new = np.concatenate([[True], (np.diff(score) != 0) | (np.diff(owner) != 0)])
    first = np.flatnonzero(new)
    size = np.diff(first, append=score.size)
    return np.repeat(first + (size + 1) / 2, size)


def _metrics(value: dict[str, Any]) -> Metrics:
    interval = value.get("auc_interval")
    return Metrics(**{**value, "auc_interval": None if interval is None else tuple(interval)})


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean(dtype=np.float64))


def _entropy(rate: float) -> float:
    """-p ln p - (1 - p) ln(1 - p), 0 at both ends."""
    return -sum(p * float(np.log(p)) for p in (rate, 1.0 - rate) if p > 0)


def mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean and the sample standard deviation; None where there are too few values."""
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None

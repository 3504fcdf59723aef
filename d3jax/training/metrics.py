"""Metrics per scenario and overall, from scores that can be collected in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Scores(NamedTuple):
    """R scored rows. Pieces concatenate, in any order, to the same metrics."""

    logits: Float[np.ndarray, " R"]
    label: Float[np.ndarray, " R"]
    scenario: Int[np.ndarray, " R"]

    @classmethod
    def merge(cls, pieces: Iterable[Scores]) -> Scores:
        """All pieces as one."""
        columns = zip(*pieces, strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def of(self, scenario: int) -> Scores:
        """The rows of one scenario."""
        mine = self.scenario == scenario
        return Scores(*(column[mine] for column in self))


@dataclass(frozen=True)
class Metrics:
    """What the scores of a group of rows are worth; None where a value isn't defined."""

    rows: int
    click_rate: float | None
    auc: float | None
    logloss: float | None
    constant_logloss: float | None
    """The logloss of answering every row with the group's own click rate."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of all rows together and of each scenario by name."""

    overall: Metrics
    scenarios: dict[str, Metrics]

    def to_json(self) -> dict[str, Any]:
        """Plain values: {"overall": {...}, "scenarios": {name: {...}}}."""
        return asdict(self)


def evaluate_scores(scores: Scores, scenarios: Sequence[str]) -> Evaluation:
    """Metrics overall and per scenario."""
    by_name = {name: measure(scores.of(index)) for index, name in enumerate(scenarios)}
    return Evaluation(measure(scores), by_name)


def measure(scores: Scores) -> Metrics:
    """Metrics of one group of rows."""
    rows = scores.label.size
    if rows == 0:
        return Metrics(0, None, None, None, None)
    logits, label = scores.logits.astype(np.float64), scores.label.astype(np.float64)
    rate = float(label.mean())
    return Metrics(
        rows=rows,
        click_rate=rate,
        auc=auc(logits, label),
        logloss=float(np.mean(np.logaddexp(0.0, logits) - label * logits)),
        constant_logloss=_entropy(rate),
    )


def auc(scores: Float[np.ndarray, " R"], label: Float[np.ndarray, " R"]) -> float | None:
    """Area under the ROC curve, ties counting half; None unless both classes occur."""
    from sklearn.metrics import roc_auc_score

    if label.min() == label.max():
        return None
    return float(roc_auc_score(label, scores))


def _entropy(rate: float) -> float:
    """-p ln p - (1 - p) ln(1 - p), 0 at both ends."""
    return -sum(p * float(np.log(p)) for p in (rate, 1.0 - rate) if p > 0)

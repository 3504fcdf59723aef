"""The account of a run says when it stopped and why, and what D3 did."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from d3jax.account import account, evenness, weighed_from, weighing_plan
from d3jax.adapters.d3 import BalanceOptions
from d3jax.config import Config, ModelConfig, TrainConfig
from d3jax.evaluate import Evaluated
from d3jax.training.loop import Progress
from d3jax.training.metrics import Evaluation, Metrics

TRAIN = TrainConfig(epochs=4, patience=2)
FIELDS = ("user", "item", "[/b]place")


def metrics(logloss: float = 0.5, constant: float = 0.6, gate: float | None = None) -> Metrics:
    return Metrics(100, 0.3, 0.7, logloss, constant, gate=gate)


def result(attention: Any = None, **scenarios: Metrics) -> Evaluated:
    groups = scenarios or {"home": metrics()}
    gates = [group.gate for group in groups.values() if group.gate is not None]
    overall = metrics(gate=float(np.mean(gates)) if gates else None)
    return Evaluated(Evaluation(overall, groups), None, attention)


def told(progress: Progress, weighed: int | None = None, **given: Any) -> list[str]:
    remarks = account(TRAIN, weighed, 10, progress, result(**given), FIELDS)
    return [("! " if remark.warns else "") + remark.text for remark in remarks]


def test_why_a_run_ended() -> None:
    assert told(Progress(40, 30, 0.5)) == [
        "trained 40 of at most 40 steps; the best weights are of step 30 (epoch 3)"
    ]
    assert told(Progress(31, 11, 0.5, stale=2)) == [
        "trained 31 of at most 40 steps: 2 evaluations in a row brought no better logloss; the "
        "best weights are of step 11 (epoch 2)"
    ]


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress(40, 25, 0.5), "rows were weighed from step 21 on"),
        (
            Progress(40, 20, 0.5),
            "! the best weights are older than the weighing of rows, from step 21 on, which has "
            "no part in them",
        ),
        (
            Progress(20, 10, 0.5),
            "! rows were never weighed: that was to start at step 21; a smaller --start-ratio or "
            "more --patience reaches it",
        ),
    ],
)
def test_whether_rows_were_weighed(progress: Progress, expected: str) -> None:
    assert told(progress, 21)[1:] == [expected]


def test_when_weighing_starts_is_said_before() -> None:
    config = Config(balance=BalanceOptions(start_ratio=0.5))
    assert weighed_from(config, 40) == 21
    assert weighed_from(replace(config, model=ModelConfig(head="own")), 40) is None
    assert weighed_from(config.changed(balance=BalanceOptions(start_ratio=1.0)), 40) is None
    plan = weighing_plan(21, 40, 10)
    assert plan == "rows are weighed from step 21 of at most 40 on (epoch 3)"


def test_an_attention_that_selects_nothing_is_called_even() -> None:
    third = np.full((2, 3), 1 / 3)
    [_, said] = told(Progress(40, 40, 0.5), attention=third)
    assert said.startswith("attention is even: ")
    assert said.endswith(" from it, where 1 is a single field; it selects nothing")
    chosen = np.array([[0.1, 0.1, 0.8], [np.nan, np.nan, np.nan]])
    entropy = -(0.2 * math.log(0.1) + 0.8 * math.log(0.8))
    assert evenness(chosen) == pytest.approx(1 - entropy / math.log(3))
    assert evenness(np.array([[0.0, 0.0, 1.0]])) == 1.0
    assert evenness(np.full((1, 3), 0.3333334)) == 0.0, "rounding goes not below even"
    [_, said] = told(Progress(40, 40, 0.5), attention=chosen)
    assert said == (
        "attention is 0.42 from even, where 1 is a single field; most of it, 80%, goes to [/b]place"
    )


def test_what_the_gate_gives_and_who_loses_to_the_constant() -> None:
    said = told(Progress(40, 40, 0.5), home=metrics(gate=0.25), slot=metrics(0.61, 0.6, gate=0.75))
    assert said[1:] == [
        "the gate gives a row's own weights 0.50 on average, from 0.25 in home to 0.75 in slot",
        "! no better than answering with its own click rate: slot (logloss)",
    ]

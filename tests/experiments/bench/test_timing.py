"""Rates, latencies and statistics on a clock that the test turns by hand."""

from __future__ import annotations

import numpy as np
import pytest

from d3jax.batch import Batch
from experiments.bench import timing
from experiments.bench.timing import (
    OneByOne,
    latencies,
    observe,
    scoring_rate,
    summarize,
    training_rate,
)
from experiments.bench.workload import WORKLOADS, make_batches

BATCHES = make_batches(WORKLOADS["tiny"], 8, 3)


class Clock:
    """Seconds on the wall, of all cores together, and of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.busy = self.own = 0.0
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(timing, "_busy_seconds", lambda: self.busy)
        monkeypatch.setattr(timing, "_own_seconds", lambda: self.own)

    def run(self, seconds: float, others: float = 0.0) -> None:
        self.wall += seconds
        self.own += seconds
        self.busy += seconds * (1 + others)


class Model(OneByOne):
    """Compiles for 9 s, then takes half a second a step; remembers the batches it was given."""

    def __init__(self, clock: Clock, others: float = 0.0) -> None:
        self.clock, self.others, self.seen, self.pending = clock, others, list[Batch](), 0.0

    def train(self, batch: Batch) -> None:
        self.pending += 0.5 if self.seen else 9.5
        self.seen.append(batch)

    def score(self, batch: Batch) -> np.ndarray:
        self.train(batch)
        self.wait()
        return batch.label

    def wait(self) -> None:
        self.clock.run(self.pending, self.others)
        self.pending = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("measure", [training_rate, scoring_rate])
def test_rate_leaves_compilation_out(clock: Clock, measure: object) -> None:
    model = Model(clock)
    rate = measure(model, BATCHES, seconds=4.0)  # type: ignore[operator]
    assert rate.rows_per_second == 8 / 0.5
    assert rate.first_seconds == 9.5
    assert rate.steps == 8
    assert rate.others == 0
    assert [id(batch) for batch in model.seen[7:10]] == [id(batch) for batch in BATCHES]


def test_slow_steps_are_measured_twice(clock: Clock) -> None:
    assert training_rate(Model(clock), BATCHES, seconds=0.1).steps == 2


def test_other_processes_are_noticed(clock: Clock) -> None:
    assert training_rate(Model(clock, others=0.7), BATCHES, 1.0).others == pytest.approx(0.7)
    assert observe(lambda: clock.run(2.0)).others == 0


def test_page_faults_are_counted() -> None:
    assert observe(lambda: None).faults < 1000
    assert observe(lambda: np.ones(2**22).sum()).faults >= 2**22 * 8 / 2**21


def test_latencies_in_milliseconds(clock: Clock) -> None:
    assert latencies(Model(clock), BATCHES[0], seconds=20.0) == [500.0] * 40
    assert len(latencies(Model(clock), BATCHES[0], seconds=1.0, least=7)) == 7


def test_summary() -> None:
    assert summarize([5, 1, 2, 4, 3]) == (3, 2, 4)
    assert summarize([1, 2]) == (1.5, 1.25, 1.75)


def test_counters_of_the_kernel() -> None:
    before = timing._busy_seconds(), timing._own_seconds()
    while timing._own_seconds() - before[1] < 0.2:
        np.ones(1000).sum()
    assert timing._busy_seconds() - before[0] >= 0.15
    assert timing.peak_megabytes() > 50

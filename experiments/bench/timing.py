"""Measuring a model's steps in this process, and whether the machine was left in peace.

Linux only: memory, page faults and the load of other processes are read from the kernel.
"""

from __future__ import annotations

import math
import os
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from d3jax.batch import Batch

WARM_STEPS = 5
"""Steps that aren't measured after the first two, or fewer if they would take as long."""


class Scorer(Protocol):
    """A model that answers."""

    def score(self, batch: Batch) -> np.ndarray:
        """The logits of host arrays, as a host array."""


class BulkScorer(Protocol):
    """A model that answers many batches."""

    def score_all(self, batches: Iterable[Batch]) -> None:
        """Brings the logits of each to the host; may have several under way."""


class Runner(BulkScorer, Protocol):
    """A model with its optimizer, as the benchmark drives it."""

    def train(self, batch: Batch) -> None:
        """Takes one step; may return before it is done."""

    def wait(self) -> None:
        """Returns when all steps are done."""


class OneByOne(ABC):
    """Scores many batches as `Scorer` scores one; torch does nothing before it is asked."""

    @abstractmethod
    def score(self, batch: Batch) -> np.ndarray:
        """The answers of host arrays, as a host array."""

    def score_all(self, batches: Iterable[Batch]) -> None:
        """Each waits for the one before it."""
        for batch in batches:
            self.score(batch)


@dataclass(frozen=True)
class Rate:
    """The measured rate of one stretch of steps."""

    rows_per_second: float
    first_seconds: float
    """The first call, compilation included."""
    steps: int
    faults: float
    """Page faults a step."""
    others: float
    """Cores that other processes kept busy meanwhile."""


class Stretch(NamedTuple):
    """The cost of a piece of work: wall time, page faults, and the cores that others used."""

    seconds: float
    faults: int
    others: float


def observe(work: Callable[[], None]) -> Stretch:
    """Runs `work` once."""
    start, faults, busy, own = time.perf_counter(), _faults(), _busy_seconds(), _own_seconds()
    work()
    seconds = time.perf_counter() - start
    others = (_busy_seconds() - busy) - (_own_seconds() - own)
    return Stretch(seconds, _faults() - faults, max(0.0, others / seconds))


def training_rate(runner: Runner, batches: Sequence[Batch], seconds: float) -> Rate:
    """Rows a second that `runner` trains, over about `seconds` after some to warm up."""

    def steps(count: int) -> None:
        for step in range(count):
            runner.train(batches[step % len(batches)])
        runner.wait()

    return _rate(steps, len(batches[0].label), seconds)


def scoring_rate(runner: BulkScorer, batches: Sequence[Batch], seconds: float) -> Rate:
    """Rows a second that `runner` scores, measured as `training_rate` does."""

    def steps(count: int) -> None:
        runner.score_all(batches[step % len(batches)] for step in range(count))

    return _rate(steps, len(batches[0].label), seconds)


def _rate(steps: Callable[[int], None], rows: int, seconds: float) -> Rate:
    first = observe(lambda: steps(1)).seconds
    usual = observe(lambda: steps(1)).seconds
    # A heap that keeps what is freed has found its size after a few steps.
    steps(min(WARM_STEPS, math.ceil(seconds / usual)))
    count = max(2, math.ceil(seconds / usual))
    stretch = observe(lambda: steps(count))
    return Rate(
        rows_per_second=rows * count / stretch.seconds,
        first_seconds=first,
        steps=count,
        faults=stretch.faults / count,
        others=stretch.others,
    )


def latencies(runner: Scorer, batch: Batch, seconds: float, least: int = 20) -> list[float]:
    """Milliseconds of each call that scores `batch`, for about `seconds`, `least` calls or more."""
    for _ in range(3):
        runner.score(batch)
    taken: list[float] = []
    stop = time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < stop:
        start = time.perf_counter()
        runner.score(batch)
        taken.append(1e3 * (time.perf_counter() - start))
    return taken


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Summary(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def summarize(values: Sequence[float]) -> Summary:
    """Return the summary of at least one value; quartiles are interpolated."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return Summary(float(median), float(low), float(high))


def _faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def _own_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _busy_seconds() -> float:
    """Return the busy seconds of all cores since the start, interrupts and stolen time included."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, hard, soft, stolen = ticks
    return (user + nice + system + hard + soft + stolen) / os.sysconf("SC_CLK_TCK")

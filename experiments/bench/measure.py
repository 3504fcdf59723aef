"""The measurements of a child process of its variant, the same on every side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from experiments.bench.children import Request
from experiments.bench.timing import (
    BulkScorer,
    Runner,
    Scorer,
    latencies,
    peak_megabytes,
    scoring_rate,
    training_rate,
)
from experiments.bench.workload import WORKLOADS, make_batches


def measure(
    request: Request,
    train: Callable[[], Runner],
    score: Callable[[], BulkScorer],
    serve: Callable[[], Scorer],
    peak: Callable[[], float] = peak_megabytes,
) -> dict[str, Any]:
    """Rates, latencies and memory; each of the three is made when its turn comes.

    `peak` says how many megabytes it took up to then, of the memory that the model lives in.
    """
    workload = WORKLOADS[request.workload]
    batches = make_batches(workload, request.batch_size, 4)
    trained = training_rate(train(), batches, request.seconds)
    scored = scoring_rate(score(), batches, request.seconds)
    megabytes = peak()
    server = serve()
    return {
        "train": asdict(trained),
        "score": asdict(scored),
        "peak_megabytes": megabytes,
        "latency": {
            rows: latencies(server, make_batches(workload, rows, 1)[0], request.seconds)
            for rows in (1, request.candidates)
        },
    }

"""What a child process measures of its variant, the same on every side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from experiments.bench.children import Request
from experiments.bench.timing import (
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
    score: Callable[[], Scorer],
    serve: Callable[[], Scorer],
) -> dict[str, Any]:
    """Rates, latencies and memory; each of the three is made when its turn comes."""
    workload = WORKLOADS[request.workload]
    batches = make_batches(workload, request.batch_size, 4)
    trained = training_rate(train(), batches, request.seconds)
    scored = scoring_rate(score(), batches, request.seconds)
    peak = peak_megabytes()
    server = serve()
    return {
        "train": asdict(trained),
        "score": asdict(scored),
        "peak_megabytes": peak,
        "latency": {
            rows: latencies(server, make_batches(workload, rows, 1)[0], request.seconds)
            for rows in (1, request.candidates)
        },
    }

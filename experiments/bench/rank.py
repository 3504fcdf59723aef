"""How fast D3 trains and scores by the rank of its generator.

python -m experiments.bench.rank --out rank.json

Rank 0 is the paper's form, with a shared matrix for each of M hidden units; a factored generator
mixes a row's kernel from as many matrices as its rank says.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from d3jax.console.terminal import Console
from experiments.bench.children import Request
from experiments.bench.limits import measure_limits
from experiments.bench.outputs import check_outputs, write_results
from experiments.bench.peers import WorkloadName
from experiments.bench.results import make_line, results_table
from experiments.bench.turns import take_turns
from experiments.bench.variants import Variant, text_d3, with_update
from experiments.bench.workload import WORKLOADS


@dataclass(frozen=True)
class RankBench:
    """The ranks, and how long each is measured."""

    workloads: tuple[WorkloadName, ...] = ("movielens", "ali-ccp")
    """Whose shapes the made-up rows have."""
    ranks: tuple[int, ...] = (0, 4, 8, 16, 32, 64, 128)
    """Numbers of shared matrices; 0: one for each hidden unit."""
    batch_size: int = 2048
    """Rows of a step."""
    rounds: int = 3
    """Turns that each rank takes, a process each."""
    seconds: float = 5.0
    """How long each kind of call is measured in a turn, at least two steps."""
    candidates: int = 500
    """Rows of a request whose latency is measured, beside one row."""
    out: Path | None = None
    """Where to write the results as JSON."""


def variant_of(rank: int) -> Variant:
    """D3 with a generator of that rank; the table's rows move when they are in the batch, so that
    the generator is what a step spends its time on."""
    return Variant(f"rank {rank}", "d3", "d3jax", with_update(text_d3(rank), "lazy_adamw"))


def main(bench: RankBench) -> None:
    """Measures, prints and writes."""
    check_outputs(bench.out)
    console, limits = Console(log_path=False, width=150), measure_limits()
    load = os.getloadavg()
    results: dict[str, list[dict[str, Any]]] = {}
    for name in bench.workloads:
        requests = {
            variant.name: Request(
                action="time",
                variant=variant,
                workload=name,
                batch_size=bench.batch_size,
                seconds=bench.seconds,
                candidates=bench.candidates,
            )
            for variant in map(variant_of, bench.ranks)
        }
        answers, failures = take_turns(requests, bench.rounds, console.log)
        lines = [
            make_line(requests[rank].variant, rounds, WORKLOADS[name], bench.batch_size, limits)
            for rank, rounds in answers.items()
        ]
        results[name] = [asdict(line) for line in lines]
        console.print(results_table(f"D3 at {name}", lines))
        for rank, reason in failures.items():
            console.print(f"not run: {rank}: {reason}", highlight=False)
        write_results(bench.out, load, limits, results)


if __name__ == "__main__":
    main(tyro.cli(RankBench))

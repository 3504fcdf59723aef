"""The speed of d3jax in training and scoring beside the same models in torch.

python -m experiments.bench.peers --out peers.json --picture peers.png

Needs the `bench` extra. Before a torch model is timed it takes d3jax's weights and must give the
same logits, losses and gradients. Each measurement runs in a process of its own, variants take
turns, and a `*` marks those during which other processes were busy. With `--workloads tiny` it
takes minutes and says nothing of speed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from d3jax.console.terminal import Console
from experiments.bench.children import ChildError, Chosen, Request, ask
from experiments.bench.limits import Limits, measure_limits
from experiments.bench.outputs import check_outputs, write_results
from experiments.bench.results import Line, draw, make_line, results_table
from experiments.bench.turns import Answers, Failures, take_turns
from experiments.bench.variants import Family, Variant, bf16_variants, variants
from experiments.bench.workload import WORKLOADS

WorkloadName = Literal["tiny", "movielens", "ali-ccp"]


@dataclass(frozen=True)
class PeersBench:
    """The models that are compared, and the time of measuring."""

    workloads: tuple[WorkloadName, ...] = ("movielens", "ali-ccp")
    """Whose shapes the made-up rows have."""
    families: tuple[Family, ...] = ("d3", "plain", "star", "mmoe")
    """The models."""
    only: tuple[str, ...] = ()
    """Variants to measure, by their names in the table; empty: all of a family."""
    bf16: bool = False
    """Also variants that multiply bfloat16 numbers, for a GPU."""
    batch_size: int = 2048
    """Rows of a step."""
    rounds: int = 5
    """Turns that each variant takes, a process each."""
    seconds: float = 5.0
    """The seconds of each kind of call in a turn, at least two steps."""
    candidates: int = 500
    """Rows of a request whose latency is measured, beside one row."""
    out: Path | None = None
    """The JSON file of the results."""
    picture: Path | None = None
    """The PNG file of their picture."""
    directory: Path | None = None
    """The folder of weights meanwhile, a GB of them; the system's folder when None."""


def compare(
    bench: PeersBench, workload: WorkloadName, family: Family, limits: Limits, console: Console
) -> tuple[list[Line], Failures, dict[str, Any]]:
    """The family's lines at one size, why others have none, and what the processes answered."""
    known = variants(family) + (bf16_variants(family) if bench.bf16 else [])
    wanted = [variant for variant in known if not bench.only or variant.name in bench.only]
    with tempfile.TemporaryDirectory(dir=bench.directory) as folder:
        basis = Request(
            action="reference",
            variant=known[0],
            workload=workload,
            batch_size=bench.batch_size,
            seconds=bench.seconds,
            candidates=bench.candidates,
            folder=folder,
        )
        console.log(f"{family} at {workload}: reference")
        ask(basis)
        requests, refused = _prepare(basis, wanted, console)
        answers, failures = take_turns(requests, bench.rounds, console.log)
    lines = _lines(answers, requests, limits)
    chosen = {name: asdict(request.chosen) for name, request in requests.items()}
    return lines, refused | failures, {"answers": answers, "torch_settings": chosen}


def _prepare(
    basis: Request, wanted: Sequence[Variant], console: Console
) -> tuple[dict[str, Request], Failures]:
    """A request to time each variant that agrees with the reference; why others don't run."""
    requests: dict[str, Request] = {}
    failures: Failures = {}
    for variant in wanted:
        console.log(f"preparing {variant.name}")
        try:
            requests[variant.name] = ready(replace(basis, variant=variant))
        except ChildError as error:
            failures[variant.name] = str(error)
    return requests, failures


def ready(request: Request) -> Request:
    """A request to time the variant, in torch with the settings that suit it best.

    Raises `ChildError` where torch doesn't compute what d3jax does.
    """
    variant = request.variant
    if variant.tuned:
        answer = ask(replace(request, action="probe", seconds=request.seconds / 3))
        request = replace(request, chosen=Chosen.from_json(answer["chosen"]))
    if variant.side == "torch":
        differs = ask(replace(request, action="check"))["differs"]
        if differs:
            raise ChildError(f"differs from d3jax: {'; '.join(differs[:3])}")
    return replace(request, action="time")


def _lines(answers: Answers, requests: Mapping[str, Request], limits: Limits) -> list[Line]:
    lines = []
    for name, rounds in answers.items():
        asked = requests[name]
        workload = WORKLOADS[asked.workload]
        lines.append(make_line(asked.variant, rounds, workload, asked.batch_size, limits))
    return lines


def main(bench: PeersBench) -> None:
    """Measures, prints, writes and draws."""
    check_outputs(bench.out, bench.picture)
    console = Console(log_path=False, width=150)
    load = os.getloadavg()
    console.log(f"load average {load[0]:.2f}; measuring what the machine can do")
    limits = measure_limits()
    console.log(
        f"matrix products {limits.flops / 1e9:,.0f} GFLOP/s ({limits.flops_by}), "
        f"copies {limits.bandwidth / 1e9:,.1f} GB/s"
    )
    results: dict[str, dict[str, Any]] = {}
    drawn: dict[str, list[Line]] = {}
    for workload in bench.workloads:
        for family in bench.families:
            title = f"{family} at {workload}, batch {bench.batch_size:,}"
            lines, failures, raw = compare(bench, workload, family, limits, console)
            console.print(results_table(title, lines))
            for name, why in failures.items():
                console.print(f"not run: {name} ({title}): {why}", highlight=False)
            drawn[title] = lines
            results[title] = {
                "lines": [asdict(line) for line in lines],
                "failures": failures,
                **raw,
            }
            write_results(bench.out, load, limits, results)
    if bench.picture:
        draw(bench.picture, drawn, "rows a second, median and quartiles")


if __name__ == "__main__":
    main(tyro.cli(PeersBench))

"""The share of a GPU's or TPU's speed that a step of D3 reaches, by precision and batch.

python -m experiments.bench.accelerator --out accelerator.json

The limit is the rate of a large matrix product by the same library on the same device, measured
first. Unlike the other benchmarks this one stays in one process, for a device's memory belongs to
the process that opened it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import jax
import tyro

from d3jax.batch import Schema
from d3jax.config import Config
from d3jax.console.allocator import keep_freed_memory
from d3jax.console.terminal import Console, Table
from d3jax.heads import Precision
from d3jax.parameters import count
from d3jax.parts import build_trainer
from d3jax.training.sharding import place_batch
from experiments.bench.jax_side import STEPS, JaxRunner
from experiments.bench.limits import ACCELERATED, device_copy_rate, product_rate
from experiments.bench.outputs import check_outputs
from experiments.bench.timing import scoring_rate, training_rate
from experiments.bench.variants import text_d3, with_update
from experiments.bench.work import share_of_limit, train_work
from experiments.bench.workload import WORKLOADS, make_batches, make_schema

PRODUCTS: dict[str, tuple[str, str | None]] = {
    "bf16": ("bfloat16", None),
    "float32": ("float32", None),
    "float32, highest": ("float32", "highest"),
}
"""The types and the way of multiplying: by default an accelerator rounds float32 factors."""


@dataclass(frozen=True)
class AcceleratorBench:
    """The steps that are measured."""

    workload: Literal["tiny", "movielens", "ali-ccp"] = "ali-ccp"
    """Whose shapes the made-up rows have."""
    precisions: tuple[Precision, ...] = ("bf16", "float32")
    """The type that generated weights are made, kept and multiplied in."""
    ranks: tuple[int, ...] = (0, 32)
    """The rank of the generator; 0: the paper's."""
    batch_sizes: tuple[int, ...] = (2048, 4096, 8192, 16384)
    """Rows of a step."""
    deterministic: bool = True
    """Add in one order, as d3jax train does unless told otherwise."""
    seconds: float = 2.0
    """The seconds for which each kind of call is measured."""
    side: int = ACCELERATED[0]
    """The side of the square matrices whose product sets the limit."""
    copied: int = ACCELERATED[1]
    """Numbers of the array whose copy sets the limit of memory traffic."""
    out: Path | None = None
    """The JSON file of the results."""


@dataclass(frozen=True)
class Measured:
    """One kind of step, at one number of rows."""

    precision: Precision
    rank: int
    rows: int
    milliseconds: float
    rows_per_second: float
    tflops: float
    share: float
    """The share of the time that products and memory traffic need at the device's limits."""
    compile_seconds: float
    megabytes: float
    """The bytes that the compiled step needs beside its arguments, and these."""
    scored_per_second: float


def config_of(precision: Precision, rank: int, rows: int, deterministic: bool = True) -> Config:
    """D3 in the equations of the paper's text, its table moved by the rows of the batch alone."""
    config = with_update(text_d3(rank), "lazy_adamw")
    return config.changed(
        d3=replace(config.d3, precision=precision),
        train=replace(config.train, batch_size=rows, deterministic=deterministic),
    )


def measure_step(
    config: Config, bench: AcceleratorBench, schema: Schema, flops: float, bandwidth: float
) -> Measured:
    """Trains and scores; `flops` and `bandwidth` are what the device can do a second."""
    rows, precision = config.train.batch_size, config.d3.precision
    batches = make_batches(WORKLOADS[bench.workload], rows, 4)
    trainer = build_trainer(schema, config, STEPS)
    runner = JaxRunner(trainer)
    placed = place_batch(trainer.mesh, batches[0])
    start = time.perf_counter()
    compiled = cast(Any, trainer.train_step).lower(runner.state, placed).compile()
    compile_seconds = time.perf_counter() - start
    analysis = compiled.memory_analysis()
    runner.trainer = trainer._replace(train_step=compiled)
    trained = training_rate(runner, batches, bench.seconds)
    scored = scoring_rate(runner, batches, bench.seconds)
    network = count(trainer.model.declared.params.network)
    work = train_work(config, schema, rows, network, whole_table=False)
    seconds = rows / trained.rows_per_second
    return Measured(
        precision=precision,
        rank=config.d3.rank,
        rows=rows,
        milliseconds=1e3 * seconds,
        rows_per_second=trained.rows_per_second,
        tflops=work.flops / seconds / 1e12,
        share=share_of_limit(work, seconds, flops, bandwidth),
        compile_seconds=compile_seconds,
        megabytes=(analysis.temp_size_in_bytes + analysis.argument_size_in_bytes) / 1e6,
        scored_per_second=scored.rows_per_second,
    )


def results_table(title: str, lines: list[Measured]) -> Table:
    """A row a kind of step."""
    table = Table(title=title, title_justify="left")
    for column in ("precision", "rank", "rows"):
        table.add_column(column, justify="left" if column == "precision" else "right")
    for column in ("ms", "rows/s", "TFLOP/s", "of limit", "compile s", "MB", "scored rows/s"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(
            line.precision,
            str(line.rank),
            f"{line.rows:,}",
            f"{line.milliseconds:.2f}",
            f"{line.rows_per_second:,.0f}",
            f"{line.tflops:.0f}" if line.tflops >= 10 else f"{line.tflops:.2f}",
            f"{line.share:.0%}",
            f"{line.compile_seconds:.1f}",
            f"{line.megabytes:,.0f}",
            f"{line.scored_per_second:,.0f}",
        )
    return table


def main(bench: AcceleratorBench) -> None:
    """Measures, prints and writes."""
    check_outputs(bench.out)
    console = Console(log_path=False, width=130)
    device = jax.devices()[0]
    rates = {name: product_rate(*how, bench.side) for name, how in PRODUCTS.items()}
    bandwidth = device_copy_rate(bench.copied)
    console.print(f"{device.device_kind}: {bandwidth / 1e12:.2f} TB/s", highlight=False)
    for name, rate in rates.items():
        console.print(f"  {name}: {rate / 1e12:.1f} TFLOP/s", highlight=False)
    machine = {"device": device.device_kind, "flops": rates, "bandwidth": bandwidth}
    schema = make_schema(WORKLOADS[bench.workload])
    lines: list[Measured] = []
    for rank, precision, rows in product(bench.ranks, bench.precisions, bench.batch_sizes):
        config = config_of(precision, rank, rows, bench.deterministic)
        line = measure_step(config, bench, schema, rates[precision], bandwidth)
        console.log(f"rank {rank}, {precision}, {rows:,} rows: {line.milliseconds:.2f} ms a step")
        lines.append(line)
        if bench.out:  # All so far, so that a run that is stopped has not been for nothing.
            results = [asdict(line) for line in lines]
            bench.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    console.print(results_table(f"D3 at {bench.workload} on {device.device_kind}", lines))


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(AcceleratorBench))

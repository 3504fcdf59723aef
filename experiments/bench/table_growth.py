"""The growth of a training step's cost with the embedding table, for each way to update it.

python -m experiments.bench.table_growth --rows 10000 100000 1000000 10000000

The model behind the table is small, so that the table's share of the step shows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import median

import jax
import numpy as np
import tyro

from d3jax.batch import Batch, Field, Schema
from d3jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from d3jax.console.terminal import Console, Table
from d3jax.parts import build_trainer
from d3jax.training.sharding import place_batch
from d3jax.training.trainer import Trainer

UPDATES = {
    "dense": OptimizerConfig(embedding_update="dense"),
    "lazy_adamw": OptimizerConfig(embedding_update="lazy_adamw"),
    "adagrad": OptimizerConfig(embedding_update="adagrad"),
}


@dataclass(frozen=True)
class TableGrowth:
    """The sizes of the table, and of the batch."""

    rows: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    """Rows of the table, over all fields."""
    fields: int = 23
    batch_size: int = 2048
    steps: int = 20
    """Steps that are timed, after two that aren't."""


def batches(schema: Schema, bench: TableGrowth) -> Iterator[Batch]:
    """Uniform ids, which touch as many different rows as a batch can."""
    rng = np.random.default_rng(0)
    shape = (bench.batch_size, bench.fields)
    while True:
        yield Batch(
            ids=rng.integers(0, schema.fields[0].size, shape, np.int32),
            scenario=rng.integers(0, 3, bench.batch_size, np.int32),
            label=rng.integers(0, 2, bench.batch_size).astype(np.float32),
            mask=np.ones(bench.batch_size, bool),
        )


def build(bench: TableGrowth, rows: int, optimizer: OptimizerConfig) -> Trainer:
    """A plain network of two layers behind a table of `rows` rows."""
    fields = tuple(Field(f"field {i}", rows // bench.fields) for i in range(bench.fields))
    model = ModelConfig(backbone="plain", head="own", bottom_layers=(64, 32))
    train = TrainConfig(batch_size=bench.batch_size, epochs=1)
    config = replace(Config(), model=model, optimizer=optimizer, train=train)
    return build_trainer(Schema(fields, ("a", "b", "c")), config, steps_per_epoch=1000)


def measure(bench: TableGrowth, rows: int, optimizer: OptimizerConfig) -> tuple[float, int]:
    """Milliseconds of the median step, and bytes of the train state."""
    trainer = build(bench, rows, optimizer)
    state, seconds = trainer.init(), []
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    source = batches(trainer.model.schema, bench)
    for _ in range(bench.steps + 2):
        batch = place_batch(trainer.mesh, next(source))
        start = time.perf_counter()
        state, info = trainer.train_step(state, batch)
        jax.block_until_ready((state, info))
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds[2:]), size


def main(bench: TableGrowth) -> None:
    """Measures every cell and prints the table."""
    console = Console()
    table = Table(title=f"median step of {bench.batch_size:,} rows with {bench.fields} fields")
    for name in ("rows of the table", "update", "ms", "dense / this", "state, MB"):
        table.add_column(name, justify="left" if name == "update" else "right")
    for rows in bench.rows:
        dense = None
        for name, optimizer in UPDATES.items():
            ms, size = measure(bench, rows, optimizer)
            dense = dense or ms
            table.add_row(f"{rows:,}", name, f"{ms:.1f}", f"{dense / ms:.1f}", f"{size / 1e6:,.0f}")
        table.add_section()
        console.print(f"{rows:,} rows measured", style="dim")
    console.print(table)


if __name__ == "__main__":
    main(tyro.cli(TableGrowth))

"""How much memory a table takes that is spread over devices from its first moment.

python -m experiments.bench.sharded_table --rows 100000000

Eight devices are forced on the CPU, all in this process, so its peak is that of all of them. A
table that first lived whole in one buffer would show as a peak of twice its size.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass

import tyro

from d3jax.console.terminal import Console

GIGABYTE = 1e9


@dataclass(frozen=True)
class ShardedTable:
    """The size of the table."""

    rows: int = 100_000_000
    dim: int = 16
    devices: int = 8
    batch_size: int = 2048
    steps: int = 3
    """Training steps to take, with row-wise Adagrad."""


def peak() -> float:
    """The most memory this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main(bench: ShardedTable) -> None:
    """Makes the table, takes a few steps, and prints what they took."""
    forced = f"--xla_force_host_platform_device_count={bench.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    from d3jax.config import OptimizerConfig
    from d3jax.training.sharding import place_batch
    from experiments.bench.table_growth import TableGrowth, batches, build

    console = Console()
    growth = TableGrowth(fields=1, batch_size=bench.batch_size)
    trainer = build(growth, bench.rows, OptimizerConfig(embedding_update="adagrad"))
    before = peak()
    start = time.perf_counter()
    state = jax.block_until_ready(trainer.init())
    seconds, after = time.perf_counter() - start, peak()
    table = state.params.embedding.table
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    console.print(
        f"table {table.shape[0]:,} x {table.shape[1]}: {table.nbytes / GIGABYTE:.2f} GB, with the "
        f"optimizer {whole / GIGABYTE:.2f} GB, as {len(table.addressable_shards)} shards of "
        f"{table.addressable_shards[0].data.nbytes / GIGABYTE:.2f} GB; made in {seconds:.0f} s"
    )
    console.print(
        f"peak memory {after / GIGABYTE:.2f} GB, {(after - before) / GIGABYTE:.2f} GB above the "
        f"start: {(after - before) / whole:.2f} times the state"
    )
    source = batches(trainer.model.schema, growth)
    for _ in range(bench.steps):
        state, info = trainer.train_step(state, place_batch(trainer.mesh, next(source)))
    jax.block_until_ready(state)
    console.print(
        f"{bench.steps} steps taken, loss {float(info.loss):.4f}; peak {peak() / GIGABYTE:.2f} GB"
    )


if __name__ == "__main__":
    main(tyro.cli(ShardedTable))

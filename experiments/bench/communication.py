"""What a training step sends between devices: on paper for many, and as compiled for eight.

python -m experiments.bench.communication --rows 25000000 --fields 23 --batch-size 65536

On paper, a ring: to sum an array of s bytes each of n devices sends 2 (n - 1) / n s, to gather or
scatter one (n - 1) / n s. The compiled step's collectives are read from its HLO.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tyro

from d3jax.console.terminal import Console, Table

BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
Kind = Literal["all-reduce", "all-gather", "reduce-scatter"]


@dataclass(frozen=True)
class Communication:
    """The size of the model and of the batch over all devices."""

    rows: int = 1_000_000
    """Rows of the embedding table."""
    fields: int = 23
    dim: int = 16
    batch_size: int = 2048
    layout: Literal["sharded", "replicated"] = "sharded"
    head: Literal["own", "d3"] = "own"
    """own: a plain network of 128 and 64; d3: with the paper's generator, 69 million weights."""


class Sent(NamedTuple):
    """One collective: what for, how, and the bytes of its whole array."""

    what: str
    kind: Kind
    size: int

    def per_device(self, devices: int) -> float:
        """Bytes that each device sends in a ring."""
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * (devices - 1) / devices * self.size


def on_paper(bench: Communication, weights: int) -> list[Sent]:
    """The collectives of a step whose network has so many weights."""
    slots = bench.batch_size * bench.fields
    network = Sent("gradient of the network", "all-reduce", 4 * weights)
    ids = Sent("ids", "all-gather", 4 * slots)
    if bench.layout == "replicated":
        gradients = Sent("gradients of the rows", "all-gather", 4 * slots * bench.dim)
        return [network, ids, gradients]
    return [
        network,
        ids,
        Sent("rows of the table", "reduce-scatter", 4 * slots * bench.dim),
        Sent("gradients of the rows", "all-gather", 4 * slots * bench.dim),
    ]


def as_compiled(program: str, devices: int) -> dict[Kind, int]:
    """Bytes of the whole arrays of each kind of collective in a compiled step's HLO."""
    totals: dict[Kind, int] = {"all-reduce": 0, "all-gather": 0, "reduce-scatter": 0}
    for result, kind in re.findall(
        r"= (.*?) (all-reduce|all-gather|reduce-scatter)(?:-start)?\(", program
    ):
        sizes = (
            BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
        )
        # A scatter's result is one device's part.
        totals[kind] += sum(sizes) * (devices if kind == "reduce-scatter" else 1)
    return totals


def compiled_step(bench: Communication) -> tuple[str, int, int]:
    """The HLO of the step on all devices here, their number, and the network's weights."""
    import jax

    from d3jax.batch import Batch, Field, Schema
    from d3jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
    from d3jax.heads import D3Options
    from d3jax.parameters import SHARDED, count
    from d3jax.training.fit import build_trainer

    schema = Schema(
        tuple(Field(f"field {i}", bench.rows // bench.fields) for i in range(bench.fields)),
        ("a", "b", "c"),
    )
    config = Config(
        model=ModelConfig("plain", bench.head, bench.dim, table_layout=bench.layout),
        d3=D3Options(parts="d2"),
        optimizer=OptimizerConfig(embedding_update="lazy_adamw"),
        train=TrainConfig(batch_size=bench.batch_size),
    )
    trainer = build_trainer(schema, config, 1)
    place = jax.NamedSharding(trainer.mesh, SHARDED)

    def rows(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((bench.batch_size, *shape), dtype, sharding=place)

    batch = Batch(rows("int32", bench.fields), rows("int32"), rows("float32"), rows("bool"))
    step: Any = trainer.train_step
    program = step.lower(trainer.abstract, batch).compile().as_text()
    return program, trainer.mesh.size, count(trainer.model.declared.params.network)


def main(bench: Communication) -> None:
    """Prints both, and by how much they differ."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if os.environ["JAX_PLATFORMS"] == "cpu":
        forced = "--xla_force_host_platform_device_count=8"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}"
    program, devices, weights = compiled_step(bench)
    console, sent = Console(), on_paper(bench, weights)
    table = Table(title="MB that each device sends in a step of the whole batch")
    table.add_column("what")
    table.add_column("how")
    for n in (8, 64, 512):
        table.add_column(f"{n} devices", justify="right")
    for each in sent:
        table.add_row(
            each.what, each.kind, *(f"{each.per_device(n) / 1e6:.3f}" for n in (8, 64, 512))
        )
    console.print(table)
    compiled = as_compiled(program, devices)
    for kind, size in compiled.items():
        paper = sum(each.size for each in sent if each.kind == kind)
        console.print(
            f"{kind}: {size / 1e6:.3f} MB as compiled for {devices} devices, "
            f"{paper / 1e6:.3f} MB on paper"
        )


if __name__ == "__main__":
    main(tyro.cli(Communication))

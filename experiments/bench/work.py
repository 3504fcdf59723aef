"""The arithmetic and memory traffic that a step can't do without, by the model's shapes.

Only matrix products are counted, a multiplication and an addition each; what stands between them
is small beside them, or moves memory rather than computing. So the numbers are lower bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from d3jax.batch import Schema
from d3jax.config import Config
from d3jax.heads import D3Options

BACKWARD = 3
"""A training step has three products for each of the forward pass: it, and two of its gradient."""

ADAM_PASSES = 6
"""AdamW reads and writes the weights and both of their running means."""

FLOAT_BYTES = 4


class Work(NamedTuple):
    """Floating-point operations and bytes of memory traffic of one step."""

    flops: float
    bytes: float


def mlp_flops(widths: Sequence[int]) -> int:
    """Return the operations of a row through dense layers of these widths, the input's first."""
    return sum(2 * inputs * outputs for inputs, outputs in pairwise(widths))


def d3_flops(config: D3Options, fields: int, dim: int, width: int) -> int:
    """Return the operations of a row through the D3 head on `fields` embeddings of width `dim`.

    The generator dominates: R shared matrices [I, O], I = N D and O = `width`, are mixed by row,
    R = M = N H in the paper's form and `rank` in the factored one.
    """
    flat, hidden = fields * dim, fields * config.field_hidden
    official = config.form == "official"
    rank = 0 if official else config.rank
    if config.attention_value == "row" and not official:
        attention = 2 * (2 * dim * dim + fields * dim)
    else:
        projections = 3 if official or config.attention_value != "text" else 2
        attention = projections * 2 * fields * dim * dim + 2 * (2 * fields * fields * dim)
    units = 2 * fields * dim * config.field_hidden + 2 * hidden * hidden
    mixing = 2 * hidden * rank + 2 * rank * width
    offset = 0 if official or 0 < rank < flat else 2 * flat * width
    generated = 2 * (rank or hidden) * flat * width + 2 * flat * width + 2 * hidden * width + offset
    gate = mlp_flops((flat, *config.gate_layers, 2)) if config.parts != "d1" else 0
    return (
        attention + units + mixing + generated + gate + mlp_flops((width, *config.head_layers, 1))
    )


def row_flops(config: Config, schema: Schema) -> int:
    """Return the operations of a row through the model, with its own scenario's parts only."""
    flat = schema.num_fields * config.model.embedding_dim
    match config.model.backbone, config.model.head:
        case "plain", "d3":
            width = config.d3.width or 128
            return d3_flops(config.d3, schema.num_fields, config.model.embedding_dim, width)
        case "plain", _:
            return mlp_flops((flat, *config.model.bottom_layers, 1))
        case "mmoe", _:
            experts, layers = config.mmoe.experts, config.mmoe.layers
            mixture = experts * (mlp_flops((flat, *layers)) + 2 * flat + 2 * layers[-1])
            return mixture + mlp_flops((layers[-1], *config.model.tower_layers, 1))
        case "star", _:
            known = flat + config.model.embedding_dim
            side = mlp_flops((known, *config.star.auxiliary, 1))
            return side + mlp_flops((flat, *config.star.layers, 1))
        case other:
            raise AssertionError(f"no formula for {other}")


def train_work(
    config: Config, schema: Schema, rows: int, network: int, whole_table: bool = True
) -> Work:
    """Return the work of a training step; `network` counts the parameters beside the table.

    `whole_table`: the optimizer moves every row of the table, not those of the batch alone; the
    latter, far fewer, are not counted.
    """
    dim = config.model.embedding_dim
    moved = network + (schema.num_rows * dim if whole_table else 0)
    flops = BACKWARD * rows * row_flops(config, schema)
    return Work(flops, ADAM_PASSES * FLOAT_BYTES * moved)


def score_work(config: Config, schema: Schema, rows: int, network: int) -> Work:
    """Return the work of scoring `rows` rows: the weights are read once."""
    return Work(rows * row_flops(config, schema), FLOAT_BYTES * network)


def share_of_limit(work: Work, seconds: float, flops: float, bandwidth: float) -> float:
    """The least time the machine needs, by `flops` and `bandwidth` a second, over the measured."""
    return max(work.flops / flops, work.bytes / bandwidth) / seconds

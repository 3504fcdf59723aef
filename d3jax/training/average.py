"""An exponential average of the weights, which often scores better than the last ones.

After step t it is the mean of the weights after steps 1 to t, those after step i weighted by
decay^(t-i) (Polyak and Juditsky, 1992, with a window): a_t = a_{t-1} + c_t (w_t - a_{t-1}) with
c_t = (1 - decay) / (1 - decay^t), which is 1 at the first step, so that the initial weights don't
count. A table that is updated row by row is averaged row by row: while a row rests at w from step
s to t, its a - w shrinks by decay^(t-s) (1 - decay^s) / (1 - decay^t), the product of all 1 - c_i.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3jax.base import ModelParams
from d3jax.embedding import EmbeddingParams
from d3jax.parameters import Tree
from d3jax.training.table.rows import RowSums, Table


class Average(NamedTuple):
    """The average of all weights; `last` is the step that a row's average is of, () where every
    row's is of the newest step."""

    network: Tree
    table: Table
    last: Tree = ()


def init_average(params: ModelParams, row_wise: bool) -> Average:
    """Return the average before the first step, when nothing of it counts."""
    table = params.embedding.table
    last = jnp.zeros(table.shape[:1], jnp.int32) if row_wise else ()
    return Average(jax.tree.map(jnp.zeros_like, params.network), jnp.zeros_like(table), last)


def follow(
    average: Average,
    decay: float,
    old: Table,
    new: ModelParams,
    sums: RowSums | None,
    step: Int[Array, ""],
) -> Average:
    """Return the average with the weights after step number `step` (the first is 1).

    `sums` names the rows that the step moved, whose table was `old` before; None for all rows.
    """
    newest = -math.expm1(math.log(decay)) / _filled(decay, step)

    def nearer(mean: Array, weight: Array) -> Array:
        return mean + newest * (weight - mean)

    network, table = jax.tree.map(nearer, average.network, new.network), new.embedding.table
    if sums is None:
        return Average(network, nearer(average.table, table))
    rested = _rested(decay, sums.at(average.table), sums.at(old), sums.at(average.last), step - 1)
    moved = nearer(rested, sums.at(table))
    last = sums.put(average.last, jnp.broadcast_to(step, sums.row.shape))
    return Average(network, sums.put(average.table, moved), last)


def averaged(
    average: Average, decay: float, params: ModelParams, step: Int[Array, ""]
) -> ModelParams:
    """Return the average of the weights after `step` steps; the weights themselves after none."""
    table = params.embedding.table
    if isinstance(average.last, tuple):
        mean = jnp.where(step > 0, average.table, table)
    else:
        mean = _rested(decay, average.table, table, average.last, step)
    network = jax.tree.map(
        lambda mean, weight: jnp.where(step > 0, mean, weight), average.network, params.network
    )
    return ModelParams(EmbeddingParams(mean), network)


def _rested(decay: float, mean: Array, weight: Array, last: Array, step: Array) -> Any:
    """Return the averages [R D] at `step` of rows that have been at `weight` since `last` [R]."""
    known = last > 0
    kept = jnp.exp((step - last).astype(mean.dtype) * math.log(decay))
    share = kept * _filled(decay, last) / jnp.where(known, _filled(decay, step), 1.0)
    return weight + jnp.where(known, share, 0.0)[:, None] * (mean - weight)


def _filled(decay: float, step: Array) -> Float[Array, "..."]:
    """Return 1 - decay^step, precisely."""
    return -jnp.expm1(step.astype(jnp.float32) * math.log(decay))

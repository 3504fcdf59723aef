"""Ids become field embeddings: one table for all fields, multi-valued fields mean-pooled."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d3jax.batch import EMPTY, Schema
from d3jax.config import EmbeddingInit
from d3jax.parameters import declare_array, normal, uniform


class EmbeddingParams(NamedTuple):
    """The rows of all fields, one field after the other in the schema's order."""

    table: Float[Array, "V D"]


def declare_embedding(
    schema: Schema, dim: int, init: EmbeddingInit = "xavier_table", scale: float = 0.01
) -> EmbeddingParams:
    """`normal`: N(0, scale). `xavier_table`: Glorot over the whole table, as the authors do,
    which for a large vocabulary means tiny numbers (±0.002 at Ali-CCP's 1.6 million rows)."""
    limit = math.sqrt(6.0 / (schema.num_rows + dim))
    initializer = normal(scale) if init == "normal" else uniform(limit)
    return EmbeddingParams(declare_array((schema.num_rows, dim), initializer))


def table_rows(schema: Schema, ids: Int[Array, "B K"]) -> Int[Array, "B K"]:
    """The table row of each id slot; V, one past the end, where a slot is empty."""
    return jnp.where(ids == EMPTY, schema.num_rows, ids + schema.slot_offset[None])


def lookup(params: EmbeddingParams, rows: Int[Array, "B K"]) -> Float[Array, "B K D"]:
    """The embedding of each table row, zero where `rows` is past the end."""
    return params.table.at[rows].get(mode="fill", fill_value=0.0)


def table_gradient(
    params: EmbeddingParams, rows: Int[Array, "B K"], gradient: Float[Array, "B K D"]
) -> Float[Array, "V D"]:
    """The table's gradient from that of its looked-up rows; rows past the end have none."""
    return jnp.zeros_like(params.table).at[rows].add(gradient, mode="drop")


def pool(
    schema: Schema, rows: Float[Array, "B K D"], ids: Int[Array, "B K"]
) -> Float[Array, "B N D"]:
    """x: one vector a field, the mean over the used slots of a multi-valued one."""
    if schema.num_slots == schema.num_fields:
        return rows
    owner = np.eye(schema.num_fields, dtype=np.float32)[schema.slot_field]
    used = (ids != EMPTY).astype(rows.dtype)
    total = jnp.einsum("bkd,kn->bnd", rows, owner)
    return total / jnp.maximum(used @ owner, 1.0)[..., None]

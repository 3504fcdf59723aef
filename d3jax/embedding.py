"""Ids become field embeddings: one table for all fields, multi-valued fields mean-pooled.

The table's rows are padded to a multiple of `ROW_MULTIPLE`, however it is laid out, so that a
checkpoint fits any number of devices that divides it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d3jax.batch import EMPTY, Schema
from d3jax.config import EmbeddingInit
from d3jax.parameters import REPLICATED, P, declare_array, normal, row_by_row, uniform

ROW_MULTIPLE = 512

LARGE_TABLE = 100_000
"""Rows from which on a table is, left to itself, sharded and updated row by row; about where the
latter begins to pay."""


class EmbeddingParams(NamedTuple):
    """The rows of all fields, one field after the other in the schema's order."""

    table: Float[Array, "V D"]


def padded_rows(schema: Schema) -> int:
    """V: the rows of all fields, rounded up to a multiple of `ROW_MULTIPLE`."""
    return -(-schema.num_rows // ROW_MULTIPLE) * ROW_MULTIPLE


def declare_embedding(
    schema: Schema,
    dim: int,
    init: EmbeddingInit = "xavier_table",
    scale: float = 0.01,
    spec: P = REPLICATED,
) -> EmbeddingParams:
    """`normal`: N(0, scale). `xavier_table`: Glorot over the whole table, as the authors do,
    which for a large vocabulary means tiny numbers (±0.002 at Ali-CCP's 1.6 million rows)."""
    limit = math.sqrt(6.0 / (schema.num_rows + dim))
    initializer = normal(scale) if init == "normal" else uniform(limit)
    rows = padded_rows(schema)
    if rows >= LARGE_TABLE:
        initializer = row_by_row(initializer, ROW_MULTIPLE)
    return EmbeddingParams(declare_array((rows, dim), initializer, spec))


def table_rows(schema: Schema, ids: Int[Array, "B K"]) -> Int[Array, "B K"]:
    """The table row of each id slot; V, one past the end, where a slot is empty."""
    return jnp.where(ids == EMPTY, padded_rows(schema), ids + schema.slot_offset[None])


def lookup(params: EmbeddingParams, rows: Int[Array, "B K"]) -> Float[Array, "B K D"]:
    """The embedding of each table row, zero where `rows` is past the end."""
    return params.table.at[rows].get(mode="fill", fill_value=0.0)


def pool(
    schema: Schema, rows: Float[Array, "B K D"], ids: Int[Array, "B K"]
) -> Float[Array, "B N D"]:
    """x: one vector a field, the mean over the used slots of a multi-valued one."""
    if schema.num_slots == schema.num_fields:
        return rows
    total = jnp.einsum("bkd,kn->bnd", rows, _owner(schema))
    return total / _values(schema, (ids != EMPTY).astype(rows.dtype))[..., None]


def slot_shares(schema: Schema, ids: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """Return the share of each slot in `pool`'s mean: 1 over the used slots of its field."""
    if schema.num_slots == schema.num_fields:
        return jnp.ones(ids.shape)
    used = (ids != EMPTY).astype(jnp.float32)
    return used / _values(schema, used)[:, schema.slot_field]


def _owner(schema: Schema) -> Float[np.ndarray, "K N"]:
    """1 where a slot is the field's."""
    return np.eye(schema.num_fields, dtype=np.float32)[schema.slot_field]


def _values(schema: Schema, used: Float[Array, "B K"]) -> Float[Array, "B N"]:
    """The number of used slots of each field, at least 1."""
    return jnp.maximum(used @ _owner(schema), 1.0)

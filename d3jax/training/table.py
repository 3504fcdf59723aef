"""The embedding table inside the mapped step: a batch's rows are read, their gradients summed.

A device holds the whole table, or its consecutive part of the rows. Only what the batch touched
travels between devices: ids, the vectors they name, and these vectors' gradients. Nothing here
has the table's size, but `dense_gradient`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from d3jax.embedding import EmbeddingParams, lookup
from d3jax.parameters import DATA_AXIS

Table = Float[Array, "V D"]
"""One device's part of the table, which is the whole where it isn't sharded."""


class Touched(NamedTuple):
    """What a batch read, and what it says of it. R = B·K slots of all devices together.

    `rows` are the table rows of this device's slots, `places` where the slots of all devices lie
    in this device's part (its size for a row that lies elsewhere, or for an empty slot).
    """

    rows: Int[Array, "B K"]
    places: Int[Array, " R"]
    gradient: Float[Array, "B K D"]


class RowSums(NamedTuple):
    """Gradients summed by table row: `row` names each row once, all other entries are past the
    table's end and have no gradient; `slot` is the scratch, to be passed on."""

    row: Int[Array, " R"]
    gradient: Float[Array, "R D"]
    slot: Int[Array, " V"]


def find_places(rows: Int[Array, "B K"], size: int, sharded: bool) -> Int[Array, " R"]:
    """Where the rows that all devices read lie in this device's part of `size` rows."""
    gathered = _gather(rows.reshape(-1), sharded)
    if not sharded:
        return gathered
    local = gathered - lax.axis_index(DATA_AXIS) * size
    return jnp.where((local >= 0) & (local < size), local, size)


def read_rows(
    table: Table, rows: Int[Array, "B K"], places: Int[Array, " R"], sharded: bool
) -> Float[Array, "B K D"]:
    """The vectors of this device's slots, zero for an empty one."""
    if not sharded:
        return lookup(EmbeddingParams(table), rows)
    vectors = lookup(EmbeddingParams(table), places[:, None])[:, 0]
    if not _alone():
        vectors = lax.psum_scatter(vectors, DATA_AXIS, scatter_dimension=0, tiled=True)
    return vectors.reshape(*rows.shape, table.shape[1])


def dense_gradient(table: Table, touched: Touched, sharded: bool) -> Table:
    """The gradient of this device's part, of the whole batch; costs as much as the part is large.

    A replicated table's is summed where it is scattered to, which for a table small enough to be
    updated so is less to send than the vectors' gradients.
    """
    empty = jnp.zeros_like(table)
    if sharded:
        return empty.at[touched.places].add(_gathered_gradient(touched, sharded), mode="drop")
    own = lax.pcast(empty, DATA_AXIS, to="varying")
    return lax.psum(own.at[touched.rows].add(touched.gradient, mode="drop"), DATA_AXIS)


def sum_by_row(slot: Int[Array, " V"], touched: Touched, sharded: bool) -> RowSums:
    """The gradient of every row that the batch touched, without sorting and without a table.

    Each row remembers, in `slot`, one of the places that read it; all gradients of the row are
    added up there. The scratch need not be cleared: only entries written a moment ago are read.
    On a GPU, XLA may add in any order unless told to be deterministic.
    """
    places, size = touched.places, slot.shape[0]
    index = jnp.arange(places.size, dtype=jnp.int32)
    slot = slot.at[places].set(index, mode="drop")
    chosen = slot.at[places].get(mode="fill", fill_value=places.size)
    gradient = _gathered_gradient(touched, sharded)
    sums = jnp.zeros_like(gradient).at[chosen].add(gradient, mode="drop")
    return RowSums(jnp.where(chosen == index, places, size + index), sums, slot)


def squared_norm(gradient: Array, sharded: bool) -> Float[Array, ""]:
    """‖g‖² of the whole table's gradient, from that of this device's part."""
    mine = jnp.square(gradient).sum()
    return lax.psum(mine, DATA_AXIS) if sharded else mine


def _gathered_gradient(touched: Touched, sharded: bool) -> Float[Array, "R D"]:
    return _gather(touched.gradient.reshape(-1, touched.gradient.shape[-1]), sharded)


def _gather(local: Array, sharded: bool) -> Array:
    """All devices' entries in order; for a replicated table, known to be the same everywhere."""
    if sharded and _alone():
        return local
    to = "varying" if sharded else "invarying"
    return lax.all_gather(local, DATA_AXIS, tiled=True, to=to)


def _alone() -> bool:
    """Whether there is one device: XLA copies what it would send to itself."""
    return lax.axis_size(DATA_AXIS) == 1

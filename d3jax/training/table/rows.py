"""The embedding table inside the mapped step: a batch's rows are read, their gradients summed.

A device holds the whole table, or its consecutive part of the rows. Only what the batch touched
travels between devices: ids, the vectors they name, and these vectors' gradients. Nothing here
has the table's size, but `dense_gradient`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from d3jax.embedding import EmbeddingParams, lookup
from d3jax.parameters import DATA_AXIS

Table = Float[Array, "V D"]
"""One device's part of the table, which is the whole where it isn't sharded."""


class Touched(NamedTuple):
    """The rows that a batch read, and their gradients. R = B·K slots of all devices together.

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

    def at(self, array: Array) -> Array:
        """Return the entries of an array [V ...] at these rows, zero for those past its end."""
        return array.at[self.row].get(mode="fill", fill_value=0)

    def put(self, array: Array, values: Array) -> Array:
        """Return an array [V ...] with the values [R ...] written at these rows."""
        return _put(array, self.row, values)


def find_places(rows: Int[Array, "B K"], size: int, sharded: bool) -> Int[Array, " R"]:
    """Return the places of the rows that all devices read in this device's part of `size` rows."""
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
        return _add_up(empty, touched.places, _gathered_gradient(touched, sharded))
    own = lax.pcast(empty, DATA_AXIS, to="varying")
    gradient = touched.gradient.reshape(-1, table.shape[1])
    return lax.psum(_add_up(own, touched.rows.reshape(-1), gradient), DATA_AXIS)


def sum_by_row(slot: Int[Array, " V"], touched: Touched, sharded: bool) -> RowSums:
    """The gradient of every row that the batch touched, without anything of the table's size."""
    return sums_of(slot, touched.places, _gathered_gradient(touched, sharded))


def sums_of(
    slot: Int[Array, " V"], places: Int[Array, " R"], gradient: Float[Array, "R D"]
) -> RowSums:
    """Return the sums of the gradients by their places, in whichever way is quicker and exact."""
    return _by_platform(sums_of_sorted, sums_in_slots, slot, places, gradient)


def sums_in_slots(
    slot: Int[Array, " V"], places: Int[Array, " R"], gradient: Float[Array, "R D"]
) -> RowSums:
    """Each row remembers, in `slot`, one of the places that read it; all its gradients are added
    up there. The scratch need not be cleared: only entries written a moment ago are read."""
    index = jnp.arange(places.size, dtype=jnp.int32)
    slot = slot.at[places].set(index, mode="drop")
    chosen = slot.at[places].get(mode="fill", fill_value=places.size)
    sums = jnp.zeros_like(gradient).at[chosen].add(gradient, mode="drop")
    return RowSums(jnp.where(chosen == index, places, slot.shape[0] + index), sums, slot)


def sums_of_sorted(
    slot: Int[Array, " V"], places: Int[Array, " R"], gradient: Float[Array, "R D"]
) -> RowSums:
    """The gradients of a row are brought side by side, and a scan adds up each run of them; its
    last one's place then stands for the row. `slot` is left as it is."""
    size, index = slot.shape[0], jnp.arange(places.size, dtype=jnp.int32)
    ordered, order = lax.sort_key_val(places, index)
    ends = jnp.append(ordered[1:] != ordered[:-1], True)
    begins = jnp.append(True, ends[:-1])

    def add(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] | right[0], right[1] + jnp.where(right[0], 0.0, left[1])

    _, totals = lax.associative_scan(add, (begins[:, None], gradient[order]))
    last = ends & (ordered < size)
    sums = _put(jnp.zeros_like(gradient), order, jnp.where(last[:, None], totals, 0.0))
    row = _put(jnp.zeros_like(places), order, jnp.where(last, ordered, size + order))
    return RowSums(row, sums, slot)


def _add_up(array: Table, places: Int[Array, " R"], gradient: Float[Array, "R D"]) -> Table:
    """The array with each gradient added at its place, where it has one."""

    def sorted_first(array: Table, places: Array, gradient: Array) -> Table:
        no_slot = jnp.zeros(array.shape[0], jnp.int32)
        sums = sums_of_sorted(no_slot, places, gradient)
        return _put(array, sums.row, sums.gradient)

    def scattered(array: Table, places: Array, gradient: Array) -> Table:
        return array.at[places].add(gradient, mode="drop")

    return _by_platform(sorted_first, scattered, array, places, gradient)


def _by_platform(gpu: Callable[..., Any], other: Callable[..., Any], *operands: Array) -> Any:
    """A GPU adds in any order where several numbers go to one place, so that no two runs give the
    same bits; sorting first costs it little. Elsewhere the order is always the same."""
    return lax.platform_dependent(*operands, cuda=gpu, rocm=gpu, default=other)


def _put(array: Array, places: Int[Array, " R"], values: Array) -> Array:
    """Writes each value at its place, where it has one; the places are all different."""
    return array.at[places].set(values, mode="drop", unique_indices=True)


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
    """Return whether there is one device: XLA copies what it would send to itself."""
    return lax.axis_size(DATA_AXIS) == 1

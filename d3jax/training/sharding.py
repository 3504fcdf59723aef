"""The mesh of devices, and where each array of a run lives on it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from d3jax.batch import Batch
from d3jax.embedding import ROW_MULTIPLE
from d3jax.errors import ConfigError
from d3jax.parameters import DATA_AXIS, REPLICATED, Parameter, Tree


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices in a row. `Auto` axes: with explicit ones a plain gather is a type error."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def check_batch_size(batch_size: int, mesh: Mesh, slices: int = 1) -> None:
    """Raises `ConfigError` when the rows of a batch can't be shared evenly."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"batch_size is {batch_size}, which {mesh.size} devices can't share evenly; "
            f"use a multiple of {mesh.size}"
        )
    if batch_size % (mesh.size * slices):
        raise ConfigError(
            f"a device's {batch_size // mesh.size} rows of a batch can't be cut into {slices} "
            f"equal slices; use a batch_size that is a multiple of {mesh.size * slices}"
        )


def check_table(table: Parameter, mesh: Mesh) -> None:
    """Raises `ConfigError` when the rows of a sharded table can't be shared evenly."""
    if table.spec != REPLICATED and table.shape[0] % mesh.size:
        raise ConfigError(
            f"{mesh.size} devices can't share the {table.shape[0]:,} rows of the embedding table "
            f"evenly; use a number of devices that divides {ROW_MULTIPLE}, or --table-layout "
            "replicated"
        )


def place(mesh: Mesh, layout: Tree, tree: Tree) -> Tree:
    """The sharding of every array of `tree`; a spec of `layout` stands for all below it."""
    return jax.tree.map(
        lambda spec, below: jax.tree.map(lambda _: NamedSharding(mesh, spec), below),
        layout,
        tree,
        is_leaf=lambda node: isinstance(node, P),
    )


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
    """This process' rows as its part of one batch spread over all devices."""
    rows = NamedSharding(mesh, P(DATA_AXIS))
    if jax.process_count() == 1:
        return jax.device_put(batch, rows)  # The same, in half the time.
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(rows, np.asarray(array)), batch
    )


def local_rows(array: jax.Array | np.ndarray) -> np.ndarray:
    """The rows, of an array spread over the devices, that this process holds; on the host.

    They are those that it gave to `place_batch`, in that order.
    """
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
    return np.concatenate([shard.data for shard in shards])


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))

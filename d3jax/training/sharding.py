"""The mesh of devices, and where each array of a run lives on it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from d3jax.batch import Batch
from d3jax.errors import ConfigError
from d3jax.parameters import Tree

DATA_AXIS = "data"
"""The one axis of the mesh: the rows of a batch are shared along it."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices in a row. `Auto` axes: with explicit ones a plain gather is a type error."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises `ConfigError` when the rows of a batch can't be shared evenly."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"batch_size is {batch_size}, which {mesh.size} devices can't share evenly; "
            f"use a multiple of {mesh.size}"
        )


def place_batch(mesh: Mesh, batch: Batch) -> Batch:
    """This process' rows as its part of one batch spread over all devices."""
    rows = NamedSharding(mesh, P(DATA_AXIS))
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(rows, np.asarray(array)), batch
    )


def replicate(mesh: Mesh, tree: Tree) -> Tree:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))

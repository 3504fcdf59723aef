"""One declaration per parameter: shape, initialiser, dtype and its place on the mesh.

A model declares a pytree of `Parameter`; arrays, shardings and the targets that a checkpoint
restores into are all derived from that one tree, so they can't drift apart.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray

Initializer = Callable[[PRNGKeyArray, tuple[int, ...], Any], Array]
Tree = Any
"""A pytree whose structure is the declaring function's own."""

DATA_AXIS = "data"
"""The one axis of the mesh: the rows of a batch, and those of a large table, lie along it."""

REPLICATED = P()
"""The spec of an array that every device holds whole."""

SHARDED = P(DATA_AXIS)
"""The spec of an array whose first axis is spread over all devices."""

zeros = initializers.zeros
ones = initializers.ones


@dataclass(frozen=True)
class Parameter:
    """The shape, type and start of one array of a model before it exists."""

    shape: tuple[int, ...]
    init: Initializer = zeros
    dtype: Any = jnp.float32
    spec: P = REPLICATED
    own_decay: bool = False
    """True where it decays by `OptimizerConfig.own_decay`, not as the network does."""


def declare_array(
    shape: tuple[int, ...],
    init: Initializer = zeros,
    spec: P = REPLICATED,
    dtype: Any = jnp.float32,
    own_decay: bool = False,
) -> Any:
    """A `Parameter`, typed as the array that will stand in its place."""
    return Parameter(shape, init, dtype, spec, own_decay)


def glorot(fan_in: int, fan_out: int, gain: float = 1.0) -> Initializer:
    """Uniform ±gain √(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010), fans stated by hand.

    Stacked and generated kernels have leading axes that are no fan, so the shape can't tell.
    """
    return uniform(gain * math.sqrt(6.0 / (fan_in + fan_out)))


def uniform(limit: float) -> Initializer:
    """Uniform on [-limit, limit]."""

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def normal(stddev: float, mean: float = 0.0) -> Initializer:
    """Normal with the given mean and standard deviation."""

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return mean + stddev * jax.random.normal(key, shape, dtype)

    return init


def constant(value: float) -> Initializer:
    """The same value everywhere."""
    return initializers.constant(value)


def row_by_row(initializer: Initializer, groups: int, rows_at_once: int = 65536) -> Initializer:
    """Draws each row of an array from a key of its own, some rows at a time.

    `jax.random` makes several arrays of bits as large as its result. Here the result is the only
    large one, and whatever part of its rows a device is to hold, the others are never made there:
    the rows are drawn as `groups` runs side by side, so any number of devices that divides
    `groups` takes its runs alone. The numbers don't depend on any of this.
    """

    def init(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        length = shape[0] // groups
        width = min(length, max(rows_at_once // groups, 1))

        def draw(row: Array) -> Array:
            return initializer(jax.random.fold_in(key, row), shape[1:], dtype)

        def fill(step: Array, array: Array) -> Array:
            start = jnp.minimum(step * width, length - width)
            rows = jnp.arange(groups)[:, None] * length + start + jnp.arange(width)[None]
            return lax.dynamic_update_slice_in_dim(array, jax.vmap(jax.vmap(draw))(rows), start, 1)

        empty = jnp.zeros((groups, length, *shape[1:]), dtype)
        return lax.fori_loop(0, -(-length // width), fill, empty).reshape(shape)

    return init


def initialize(declaration: Tree, key: PRNGKeyArray) -> Tree:
    """Arrays for a declaration; each key depends on the parameter's path alone.

    Adding, removing or reordering one parameter therefore leaves all others as they were.
    """

    def create(path: Any, parameter: Parameter) -> Array:
        name = zlib.crc32(jax.tree_util.keystr(path).encode())
        return parameter.init(jax.random.fold_in(key, name), parameter.shape, parameter.dtype)

    return jax.tree_util.tree_map_with_path(create, declaration)


def shardings(declaration: Tree, mesh: Mesh) -> Tree:
    """Return the place of each array on the mesh."""
    return jax.tree.map(lambda parameter: NamedSharding(mesh, parameter.spec), declaration)


def specs(declaration: Tree) -> Tree:
    """The partition specs alone, as `shard_map` wants them."""
    return jax.tree.map(lambda parameter: parameter.spec, declaration)


def count(declaration: Tree) -> int:
    """Return the number of numbers in a declaration, or a tree of arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(declaration))


def named_leaves(tree: Tree) -> dict[str, Any]:
    """The arrays of a tree by their path, such as "params.network.bottom.0.kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}

"""The floating-point type that an equation computes in, which its arguments decide."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from d3jax.parameters import Tree


def common_type(*trees: Tree) -> Any:
    """Return the one type that JAX promotes all arrays to, also in a session of strict types."""
    types = {leaf.dtype for leaf in jax.tree.leaves(trees)}
    with jax.numpy_dtype_promotion("standard"):
        return reduce(jnp.promote_types, types)


def wide_type(*trees: Tree) -> Any:
    """Return float32, or float64 where an array has it: sums in less lose most of their digits."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(common_type(*trees), jnp.float32)


def widened(*trees: Tree) -> tuple[Tree, ...]:
    """Return the trees with all their arrays in `wide_type`."""
    wide = wide_type(*trees)
    return jax.tree.map(lambda leaf: leaf.astype(wide), trees)

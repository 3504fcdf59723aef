"""Checks of the sizes and arrays that a user gives.

They read shapes and types alone, while a program is traced, and cost a compiled one nothing.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import jax.numpy as jnp
from jax import Array

from d3jax.errors import ConfigError, ShapeError
from d3jax.parameters import Tree, named_leaves


def check_size(name: str, value: Any, least: int = 1) -> None:
    """Raise `ConfigError` unless `value` is an integer of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")


def check_shape(name: str, array: Array, **axes: int | None) -> None:
    """Raise `ShapeError` unless the array has these axes, of the sizes given, and rows.

    The first axis is that of the rows; None stands for any size.
    """
    shape = array.shape
    sizes = (axis if size is None else f"{axis}={size}" for axis, size in axes.items())
    wanted = f"it must be [{', '.join(sizes)}]"
    if len(shape) != len(axes):
        raise ShapeError(f"{name} has the shape {shape}; {wanted}")
    for (axis, size), found in zip(axes.items(), shape, strict=True):
        if size is not None and found != size:
            raise ShapeError(f"{name} has the shape {shape}, whose {axis} is {found}; {wanted}")
    if shape[0] == 0:
        raise ShapeError(f"{name} has no rows: its shape is {shape}; give at least one row")


def check_floats(name: str, array: Array, **axes: int | None) -> None:
    """Raise `ShapeError` unless `check_shape` passes and the numbers are floating-point."""
    check_shape(name, array, **axes)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ShapeError(
            f"{name} is {array.dtype}; it must be floating-point (look ids up in an embedding "
            "table, or convert it by .astype(jnp.float32))"
        )


def check_mask(name: str, array: Array) -> None:
    """Raise `ShapeError` unless the array has one boolean a row."""
    check_shape(name, array, rows=None)
    if array.dtype != bool:
        raise ShapeError(f"{name} is {array.dtype}; it must be boolean, True for real rows")


def check_rows(**arrays: Array) -> None:
    """Raise `ShapeError` unless all arrays have as many rows."""
    (first, *_), counts = arrays, {name: array.shape[0] for name, array in arrays.items()}
    for name, rows in counts.items():
        if rows != counts[first]:
            raise ShapeError(
                f"{first} has {counts[first]} rows and {name} has {rows}; give as many of each"
            )


def check_arrays(expected: Tree, given: Tree) -> None:
    """Raise `ShapeError` naming the first array of `expected` that isn't `given` in its shape."""
    arrays = named_leaves(given)
    for name, leaf in named_leaves(expected).items():
        found = jnp.shape(arrays[name]) if name in arrays else "missing"
        if found != leaf.shape:
            raise ShapeError(f"parameter {name!r} is {found}; it must be of shape {leaf.shape}")

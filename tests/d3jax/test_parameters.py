from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from d3jax.parameters import (
    DATA_AXIS,
    SHARDED,
    Initializer,
    Parameter,
    constant,
    count,
    declare_array,
    glorot,
    initialize,
    normal,
    ones,
    row_by_row,
    shardings,
    specs,
    uniform,
    zeros,
)


class Pair(NamedTuple):
    kernel: Any
    bias: Any


SHAPE = (200, 300)


@pytest.mark.parametrize(
    ("init", "mean", "std", "limit"),
    [
        (uniform(0.3), 0.0, 0.3 / math.sqrt(3), 0.3),
        (glorot(40, 56), 0.0, 0.25 / math.sqrt(3), 0.25),
        (glorot(40, 56, gain=0.1), 0.0, 0.025 / math.sqrt(3), 0.025),
        (normal(0.05), 0.0, 0.05, 1.0),
        (normal(0.01, mean=1.0), 1.0, 0.01, 1.1),
    ],
)
def test_distributions(
    init: Initializer, mean: float, std: float, limit: float, key: jax.Array
) -> None:
    drawn = np.asarray(init(key, SHAPE, jnp.float32))
    assert drawn.shape == SHAPE
    assert np.abs(drawn).max() <= limit
    assert drawn.mean() == pytest.approx(mean, abs=4 * std / math.sqrt(drawn.size))
    assert drawn.std() == pytest.approx(std, rel=0.02)


def test_glorot_does_not_look_at_the_shape(key: jax.Array) -> None:
    drawn = np.asarray(glorot(3, 3)(key, (10, 20, 30), jnp.float32))
    assert 0.99 < np.abs(drawn).max() <= 1.0


def test_constants(key: jax.Array) -> None:
    for init, value in ((zeros, 0.0), (ones, 1.0), (constant(2.5), 2.5)):
        np.testing.assert_array_equal(init(key, (3,), jnp.float32), np.full(3, value))


def test_each_array_depends_on_its_path_alone(key: jax.Array) -> None:
    weight = declare_array((4, 3), normal(1.0))
    full = initialize({"a": Pair(weight, weight), "b": (weight, weight)}, key)
    less = initialize({"b": (weight,), "a": Pair(None, weight), "c": weight}, key)
    np.testing.assert_array_equal(full["a"].bias, less["a"].bias)
    np.testing.assert_array_equal(full["b"][0], less["b"][0])
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(full)]
    assert len(set(arrays)) == 4


def test_another_key_gives_other_arrays(key: jax.Array) -> None:
    declaration = {"a": declare_array((4, 3), normal(1.0))}
    first, second = (initialize(declaration, k)["a"] for k in jax.random.split(key))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, initialize(declaration, jax.random.split(key)[0])["a"])


def test_dtype_and_shape_follow_the_declaration(key: jax.Array) -> None:
    arrays = initialize((Parameter((2,), zeros, jnp.int32), declare_array(())), key)
    assert [(a.shape, a.dtype) for a in arrays] == [((2,), jnp.int32), ((), jnp.float32)]


def test_count() -> None:
    declaration = {"a": declare_array((4, 3)), "b": (declare_array(()), declare_array((2, 1, 5)))}
    assert count(declaration) == 12 + 1 + 10


def test_shardings_and_specs_follow_the_declaration() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    declaration = Pair(declare_array((16, 2), spec=P("data")), declare_array((2,)))
    assert specs(declaration) == Pair(P("data"), P())
    assert shardings(declaration, mesh) == Pair(
        NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    )


@pytest.mark.parametrize(("rows", "at_once"), [(64, 16), (72, 40), (8, 1000)])
def test_rows_are_drawn_each_from_its_own_key(key: jax.Array, rows: int, at_once: int) -> None:
    init = row_by_row(normal(0.3), groups=8, rows_at_once=at_once)
    array = jax.jit(init, static_argnums=1)(key, (rows, 5))
    expected = [0.3 * jax.random.normal(jax.random.fold_in(key, row), (5,)) for row in range(rows)]
    np.testing.assert_allclose(array, np.stack(expected), rtol=1e-6)


def test_a_large_array_is_made_where_it_lives(key: jax.Array) -> None:
    init = row_by_row(uniform(1.0), groups=16, rows_at_once=64)
    mesh = jax.make_mesh((8,), (DATA_AXIS,), axis_types=(AxisType.Auto,))
    make = jax.jit(lambda key: init(key, (4096, 16)), out_shardings=NamedSharding(mesh, SHARDED))
    compiled = make.lower(key).compile()
    assert "all-gather" not in compiled.as_text()
    assert "all-to-all" not in compiled.as_text()
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes == 4096 * 16 * 4 / 8
    np.testing.assert_array_equal(make(key), jax.jit(lambda key: init(key, (4096, 16)))(key))

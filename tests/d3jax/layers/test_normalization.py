from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.base import Mode
from d3jax.layers.normalization import BatchNorm, Moments, batch_norm, declare_batch_norm
from d3jax.parameters import declare_array
from tests.conftest import Draw
from tests.d3jax import reference

TRAIN = Mode(train=True)
normed = jax.jit(batch_norm, static_argnames="mode")
MASK = np.array([True, True, False, True, False, True])
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def norm(draw: Draw, *shape: int) -> tuple[BatchNorm, Moments, BatchNorm, Moments]:
    declared = declare_batch_norm(*shape)
    params, params64 = draw(declared.params)
    state, state64 = draw(declared.state)
    state = state._replace(variance=jnp.abs(state.variance) + 0.5)
    return params, state, params64, state64._replace(variance=np.abs(state64.variance) + 0.5)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_batch_norm_in_training_counts_real_rows_only(shape: tuple[int, ...], draw: Draw) -> None:
    params, state, exact, running = norm(draw, *shape)
    h, h64 = draw(declare_array((6, *shape)))
    out, moments = normed(params, state, h, jnp.asarray(MASK), TRAIN)
    mean, var = reference.batch_moments(h64, MASK)
    close(out, reference.normalise(h64, mean, var, exact.scale, exact.offset))
    close(moments.mean, 0.9 * running.mean + 0.1 * mean)
    close(moments.variance, 0.9 * running.variance + 0.1 * var)


def test_padding_changes_neither_output_nor_moments(draw: Draw) -> None:
    params, state, _, _ = norm(draw, 3)
    h, _ = draw(declare_array((6, 3)))
    other = jnp.where(MASK[:, None], h, 1e3)
    out, moments = normed(params, state, h, jnp.asarray(MASK), TRAIN)
    again, moments_again = normed(params, state, other, jnp.asarray(MASK), TRAIN)
    np.testing.assert_array_equal(out[MASK], again[MASK])
    jax.tree.map(np.testing.assert_array_equal, moments, moments_again)


@pytest.mark.parametrize("mask", [[False, True, False], [False, False, False]])
def test_fewer_than_two_rows_use_and_keep_the_running_moments(mask: list[bool], draw: Draw) -> None:
    params, state, exact, running = norm(draw, 3)
    h, h64 = draw(declare_array((3, 3)))
    out, moments = normed(params, state, h, jnp.array(mask), TRAIN)
    close(out, reference.normalise(h64, running.mean, running.variance, exact.scale, exact.offset))
    jax.tree.map(np.testing.assert_array_equal, moments, state)


def test_evaluation_reads_and_keeps_the_running_moments(draw: Draw) -> None:
    params, state, exact, running = norm(draw, 3)
    h, h64 = draw(declare_array((6, 3)))
    out, moments = normed(params, state, h, jnp.asarray(MASK), Mode())
    close(out, reference.normalise(h64, running.mean, running.variance, exact.scale, exact.offset))
    jax.tree.map(np.testing.assert_array_equal, moments, state)
    alone, _ = normed(params, state, h[4:5], jnp.array([True]), Mode())
    np.testing.assert_array_equal(alone[0], out[4])


def test_batch_norm_gradient_goes_through_the_batch_moments(draw: Draw) -> None:
    params, state, exact, _ = norm(draw, 2)
    h, h64 = draw(declare_array((6, 2)))
    weight = np.random.default_rng(1).normal(size=(6, 2)) * MASK[:, None]

    def loss(h: jax.Array) -> jax.Array:
        out, _ = normed(params, state, h, jnp.asarray(MASK), TRAIN)
        return (jnp.float32(weight) * out).sum()

    def loss64(h: np.ndarray) -> float:
        moments = reference.batch_moments(h, MASK)
        return float((weight * reference.normalise(h, *moments, exact.scale, exact.offset)).sum())

    close(jax.grad(loss)(h), reference.numeric_gradient(loss64, h64), rtol=1e-4)


def test_constant_feature_has_a_finite_gradient(draw: Draw) -> None:
    params, state, _, _ = norm(draw, 2)

    def loss(h: jax.Array) -> jax.Array:
        return normed(params, state, h, jnp.ones(4, bool), TRAIN)[0].sum()

    assert np.isfinite(jax.grad(loss)(jnp.ones((4, 2)))).all()


def test_moments_of_eight_devices_are_those_of_one(draw: Draw) -> None:
    params, state, _, _ = norm(draw, 3)
    h, _ = draw(declare_array((16, 3)))
    mask = jnp.array([True, False, True, True] + [False] * 4 + [True] * 8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mode = Mode(train=True, axis_name="data")
    many = jax.shard_map(
        lambda h, mask: normed(params, state, h, mask, mode),
        mesh=mesh,
        in_specs=(P("data"), P("data")),
        out_specs=(P("data"), P()),
    )(h, mask)
    one = normed(params, state, h, mask, TRAIN)
    jax.tree.map(close, many, one)

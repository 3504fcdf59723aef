from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.base import Mode
from d3jax.layers import (
    BatchNorm,
    Dense,
    Moments,
    batch_norm,
    declare_batch_norm,
    declare_dense,
    declare_mlp,
    dense,
    dropout,
    mlp,
    select,
    stacked_dense,
)
from d3jax.parameters import constant, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

TRAIN = Mode(train=True)
normed = jax.jit(batch_norm, static_argnames="mode")
MASK = np.array([True, True, False, True, False, True])
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(5,), (5, 2)])
def test_dense(rows: tuple[int, ...], draw: Draw) -> None:
    params, exact = draw(declare_dense(4, 3))
    h, h64 = draw(declare_array((*rows, 4)))
    close(dense(params, h), reference.dense(exact, h64))


def test_dense_without_bias(draw: Draw) -> None:
    params, exact = draw(declare_dense(4, 3, bias=None))
    h, h64 = draw(declare_array((5, 4)))
    assert params.bias is None
    close(dense(params, h), h64 @ exact.kernel)


def test_dense_starts_as_glorot_with_the_given_bias(key: jax.Array) -> None:
    params = initialize(declare_dense(100, 200, stack=(3,), bias=constant(0.5)), key)
    assert params.kernel.shape == (3, 100, 200)
    assert 0.999 * np.sqrt(6 / 300) < np.abs(params.kernel).max() <= np.sqrt(6 / 300)
    np.testing.assert_array_equal(params.bias, np.full((3, 200), 0.5))


def test_mlp_activates_every_layer(draw: Draw) -> None:
    params, exact = draw(declare_mlp(4, (5, 3)))
    h, h64 = draw(declare_array((6, 4)))
    close(mlp(params, h), reference.mlp(exact, h64))
    first = np.tanh(reference.dense(exact[0], h64))
    close(mlp(params, h, jnp.tanh), np.tanh(reference.dense(exact[1], first)))
    assert mlp((), h) is h


@pytest.mark.parametrize("bias", [True, False])
def test_stacked_dense_is_every_copy(bias: bool, draw: Draw) -> None:
    params, exact = draw(declare_dense(4, 3, stack=(2,)))
    if not bias:
        params, exact = params._replace(bias=None), exact._replace(bias=None)
    shared, shared64 = draw(declare_array((5, 4)))
    own, own64 = draw(declare_array((5, 2, 4)))
    for copy in range(2):
        layer = (exact.kernel[copy], exact.bias[copy] if bias else None)
        close(stacked_dense(params, shared)[:, copy], reference.dense(layer, shared64))
        close(stacked_dense(params, own)[:, copy], reference.dense(layer, own64[:, copy]))


def test_select_takes_each_rows_own_scenario() -> None:
    outputs = jnp.arange(24.0).reshape(4, 3, 2)
    chosen = select(outputs, jnp.array([2, 0, 1, 2]))
    np.testing.assert_array_equal(chosen, [[4, 5], [6, 7], [14, 15], [22, 23]])
    np.testing.assert_array_equal(select(outputs[..., 0], jnp.array([2, 0, 1, 2])), [4, 6, 14, 22])


def test_absent_scenario_has_exactly_zero_gradient(draw: Draw) -> None:
    params, _ = draw(declare_dense(4, 3, stack=(3,)))
    h, _ = draw(declare_array((5, 4)))

    def loss(params: Dense) -> jax.Array:
        return (select(stacked_dense(params, h), jnp.array([0, 2, 2, 0, 2])) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(params)
    for leaf in gradient:
        np.testing.assert_array_equal(leaf[1], np.zeros_like(leaf[1]))
        assert np.abs(leaf[0]).max() > 0
        assert np.abs(leaf[2]).max() > 0


def test_dropout_zeroes_a_share_and_scales_up_the_rest(key: jax.Array) -> None:
    mode = Mode(train=True, key=key)
    dropped = np.asarray(dropout(jnp.full((200, 5, 4), 3.0), 0.25, mode))
    assert set(np.unique(dropped)) == {0.0, 4.0}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert not np.array_equal(dropped[0], dropped[1])
    again = dropout(jnp.full((200, 5, 4), 3.0), 0.25, mode)
    np.testing.assert_array_equal(again, dropped)


@pytest.mark.parametrize(
    ("rate", "mode", "keyed"), [(0.0, TRAIN, True), (0.5, TRAIN, False), (0.5, Mode(), True)]
)
def test_dropout_is_off(rate: float, mode: Mode, keyed: bool, key: jax.Array) -> None:
    hidden = jnp.ones((3, 2))
    assert dropout(hidden, rate, mode._replace(key=key if keyed else None)) is hidden


def test_dropout_is_the_same_on_eight_devices(key: jax.Array) -> None:
    hidden = jnp.ones((16, 5))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mode = Mode(train=True, axis_name="data", key=key)
    many = jax.shard_map(
        lambda hidden: dropout(hidden, 0.5, mode),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
    )
    one = dropout(hidden, 0.5, Mode(train=True, key=key))
    np.testing.assert_array_equal(jax.jit(many)(hidden), one)


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

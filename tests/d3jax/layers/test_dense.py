from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.base import Mode
from d3jax.layers.dense import (
    Dense,
    declare_dense,
    declare_mlp,
    dense,
    dropout,
    for_rows,
    mlp,
    select,
    stacked_dense,
    sum_outer,
    sum_rows,
)
from d3jax.parameters import constant, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

TRAIN = Mode(train=True)
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


def test_what_all_rows_share_has_the_sum_over_rows_as_its_gradient(draw: Draw) -> None:
    vector, vector64 = draw(declare_array((3, 2)))
    weight, weight64 = draw(declare_array((5, 3, 2)))
    shared, pull = jax.vjp(lambda v: for_rows(v, 5), vector)
    np.testing.assert_array_equal(shared, np.repeat(np.float32(vector64)[None], 5, axis=0))
    close(pull(weight)[0], weight64.sum(0))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_sum_outer_is_the_sum_of_the_rows_products(
    backend: str, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    left, left64 = draw(declare_array((6, 3)))
    right, right64 = draw(declare_array((6, 5)))
    expected = sum(np.outer(left64[row], right64[row]) for row in range(6))
    close(jax.jit(lambda *factors: sum_outer(*factors))(left, right), expected)
    half = sum_outer(left.astype(jnp.bfloat16), right.astype(jnp.bfloat16), jnp.float32)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, atol=0.05)
    rounded = half.astype(jnp.bfloat16).astype(jnp.float32)
    assert float(jnp.abs(half - rounded).max()) > 0, "or the sum was rounded"


def test_sum_rows_weighs_each_row(draw: Draw) -> None:
    (weight, weight64), (values, values64) = (
        draw(declare_array((5,))),
        draw(declare_array((5, 3, 2))),
    )
    close(sum_rows(weight, values), np.tensordot(weight64, values64, 1))

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax import generation
from d3jax.generation import (
    HiddenParams,
    apply_mixed,
    declare_generator,
    declare_hidden,
    feature_hidden,
    field_hidden,
    generate_weights,
)
from d3jax.parameters import declare_array, initialize, ones
from tests.conftest import Draw
from tests.d3jax import reference


def test_every_field_has_a_linear_layer_of_its_own(draw: Draw) -> None:
    params, exact = draw(declare_hidden(5, 4, 3))
    selected, selected64 = draw(declare_array((6, 5, 4)))
    hidden = field_hidden(params, selected)
    assert hidden.shape == (6, 15)
    for field in range(5):
        expected = selected64[:, field] @ exact.field_kernel[field] + exact.field_bias[field]
        np.testing.assert_allclose(
            hidden[:, 3 * field : 3 * field + 3], expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("outer", [True, False])
def test_hidden_values(outer: bool, draw: Draw) -> None:
    params, exact = draw(declare_hidden(5, 4, 3))
    selected, selected64 = draw(declare_array((6, 5, 4)))
    expected = reference.generator_hidden(*exact, selected64, outer)
    hidden = feature_hidden(params, selected, outer=outer)
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-5)
    assert (hidden.min() >= 0) == outer


def test_another_activation(draw: Draw) -> None:
    params, _ = draw(declare_hidden(5, 4, 3))
    selected, _ = draw(declare_array((6, 5, 4)))
    flat = field_hidden(params, selected)
    expected = jnp.tanh(flat + jnp.tanh(flat @ params.mix.kernel + params.mix.bias[None]))
    np.testing.assert_allclose(feature_hidden(params, selected, jnp.tanh), expected, rtol=1e-5)


def test_hidden_gradients(draw: Draw) -> None:
    params, exact = draw(declare_hidden(3, 2, 2))
    selected, selected64 = draw(declare_array((4, 3, 2)))
    weight = np.random.default_rng(1).normal(size=(4, 6))

    def loss(params: HiddenParams, selected: jax.Array) -> jax.Array:
        return (jnp.float32(weight) * feature_hidden(params, selected)).sum()

    by_params, by_selected = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, selected)

    def loss64(kernels: np.ndarray, x: np.ndarray) -> float:
        rest = exact._replace(field_kernel=kernels)
        return float((weight * reference.generator_hidden(*rest, x)).sum())

    for ours, theirs in (
        (
            by_params.field_kernel,
            reference.numeric_gradient(lambda k: loss64(k, selected64), exact.field_kernel),
        ),
        (
            by_selected,
            reference.numeric_gradient(lambda x: loss64(exact.field_kernel, x), selected64),
        ),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_weights_are_the_row_major_reshape_of_a_linear_map(draw: Draw) -> None:
    params, exact = draw(declare_generator(6, 4, 3, ones))
    hidden, hidden64 = draw(declare_array((5, 6)))
    weight = (exact.kernel.reshape(6, 12), exact.kernel_offset.reshape(12))
    kernels, biases = reference.specific_parts(weight, exact.bias, hidden64, inputs=4)
    ours = generate_weights(params, hidden)
    np.testing.assert_allclose(ours[0], kernels, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[1], biases, rtol=1e-4, atol=1e-5)


def test_shapes_and_initial_scales(key: jax.Array) -> None:
    hidden = initialize(declare_hidden(10, 20, 10), key)
    assert [leaf.shape for leaf in jax.tree.leaves(hidden)] == [
        (10, 20, 10),
        (10, 10),
        (100, 100),
        (100,),
    ]
    generator = initialize(declare_generator(100, 40, 20, ones), key)
    assert [leaf.shape for leaf in jax.tree.leaves(generator)] == [
        (100, 40, 20),
        (40, 20),
        (100, 20),
        (20,),
    ]
    for kernel, limit in (
        (hidden.field_kernel, np.sqrt(6 / 30)),
        (hidden.mix.kernel, np.sqrt(6 / 200)),
        (generator.kernel, 0.1 * np.sqrt(6 / 120)),
        (generator.bias.kernel, np.sqrt(6 / 120)),
    ):
        assert 0.97 * limit < np.abs(kernel).max() <= limit
    np.testing.assert_array_equal(generator.kernel_offset, np.ones((40, 20)))
    for bias in (hidden.field_bias, hidden.mix.bias, generator.bias.bias):
        np.testing.assert_array_equal(bias, np.zeros_like(bias))


@pytest.mark.parametrize(
    ("backend", "rows", "block"),
    [("cpu", 6, 2), ("cpu", 6, 6), ("cpu", 13, 8), ("cpu", 8, 100), ("gpu", 6, 2)],
)
def test_rows_through_mixtures_of_matrices(
    backend: str, rows: int, block: int, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three blocks, one, one since thirteen rows have no equal parts but tiny ones, and one; a GPU
    takes all at once."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(generation, "BLOCK", block)
    kernel, kernel64 = draw(declare_array((3, 5, 4)))
    terms, terms64 = draw(declare_array((rows, 3)))
    inputs, inputs64 = draw(declare_array((rows, 5)))
    weight = np.random.default_rng(2).normal(size=(rows, 4))
    outputs = apply_mixed(terms, inputs, kernel)
    kernels64 = np.einsum("br,rio->bio", terms64, kernel64)
    np.testing.assert_allclose(
        outputs, np.einsum("bi,bio->bo", inputs64, kernels64), rtol=1e-4, atol=1e-5
    )

    def loss(terms: jax.Array, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return (jnp.float32(weight) * apply_mixed(terms, inputs, kernel)).sum()

    by_terms, by_inputs, by_kernel = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(
        terms, inputs, kernel
    )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(by_terms, np.einsum("bi,rio,bo->br", inputs64, kernel64, weight))
    close(by_inputs, np.einsum("bio,bo->bi", kernels64, weight))
    close(by_kernel, np.einsum("br,bi,bo->rio", terms64, inputs64, weight))

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.attention import (
    AttentionParams,
    ValueForm,
    declare_attention,
    select_by_row,
    select_features,
)
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

select = jax.jit(select_features, static_argnames="scaled")
by_row = jax.jit(select_by_row, static_argnames="scaled")
FORMS = ("text", "official", "danet", "row")


def expected(
    form: str, exact: AttentionParams, x: np.ndarray, scaled: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    if form == "row":
        return reference.selected_by_row(exact.query, exact.key, x, scaled)
    logits = reference.attention_logits(exact.query, exact.key, x, scaled)
    if form == "text":
        return reference.selected_text(logits, x), logits
    if form == "official":
        return reference.selected_official(logits, x, exact.value), logits
    return reference.selected_danet(logits, x, exact.value, exact.gain), logits


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_values(form: ValueForm, scaled: bool, draw: Draw) -> None:
    params, exact = draw(declare_attention(4, form))
    x, x64 = draw(declare_array((6, 5, 4)))
    selected, logits = (by_row if form == "row" else select)(params, x, scaled=scaled)
    for ours, theirs in zip((selected, logits), expected(form, exact, x64, scaled), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: ValueForm, draw: Draw) -> None:
    params, exact = draw(declare_attention(3, form))
    x, x64 = draw(declare_array((2, 4, 3)))
    weight = np.random.default_rng(1).normal(size=(2, 4, 3))

    def loss(params: AttentionParams, x: jax.Array) -> jax.Array:
        selected, _ = (by_row if form == "row" else select)(params, x)
        return (jnp.float32(weight) * selected).sum()

    leaves, structure = jax.tree.flatten((exact, x64))
    gradients = jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x))
    for position, gradient in enumerate(gradients):

        def loss64(leaf: np.ndarray, position: int = position) -> float:
            changed = [*leaves[:position], leaf, *leaves[position + 1 :]]
            exact, x = jax.tree.unflatten(structure, changed)
            return float((weight * expected(form, exact, x)[0]).sum())

        numeric = reference.numeric_gradient(loss64, np.asarray(leaves[position]))
        np.testing.assert_allclose(gradient, numeric, rtol=1e-3, atol=1e-4)


def test_what_a_form_does_not_use_does_not_exist() -> None:
    assert count(declare_attention(4, "text")) == 2 * 16
    assert count(declare_attention(4, "row")) == 2 * 16
    assert count(declare_attention(4, "official")) == 3 * (16 + 4)
    assert count(declare_attention(4, "danet")) == 3 * 16 + 1


def test_attention_rows_sum_to_one(draw: Draw) -> None:
    params, _ = draw(declare_attention(4), scale=3.0)
    one_field, _ = draw(declare_array((6, 1, 4)))
    x = jnp.tile(one_field, (1, 5, 1))
    np.testing.assert_allclose(select(params, x)[0], 2 * x, rtol=1e-6)


def test_one_field_is_doubled(draw: Draw) -> None:
    params, _ = draw(declare_attention(4))
    x, _ = draw(declare_array((6, 1, 4)))
    np.testing.assert_array_equal(select(params, x)[0], 2 * x)
    np.testing.assert_array_equal(by_row(params, x)[0], 2 * x)


def test_a_dominant_logit_selects_its_field() -> None:
    eye = jnp.eye(2)
    params = AttentionParams(*[d._replace(kernel=eye * 12) for d in declare_attention(2)[:2]])
    x = jnp.eye(2)[None]
    selected, logits = select(params, x)
    np.testing.assert_array_equal(logits[0], 144 * eye)
    np.testing.assert_array_equal(selected, 2 * x)


def test_official_is_the_text_only_with_identity_values(draw: Draw) -> None:
    official, _ = draw(declare_attention(4, "official"))
    x, _ = draw(declare_array((6, 5, 4)))
    zero = jnp.zeros(4)
    official = AttentionParams(*[d._replace(bias=zero) for d in official[:3]])
    text, _ = select(official._replace(value=None), x)
    assert np.abs(select(official, x)[0] - text).max() > 0.1
    identity = official._replace(value=official.value._replace(kernel=jnp.eye(4)))
    np.testing.assert_allclose(select(identity, x)[0], text, rtol=1e-5, atol=1e-6)


def test_danet_starts_as_the_identity(key: jax.Array, draw: Draw) -> None:
    x, _ = draw(declare_array((6, 5, 4)))
    params = initialize(declare_attention(4, "danet"), key)
    np.testing.assert_array_equal(select(params, x)[0], x)


def test_query_and_key_start_apart(key: jax.Array) -> None:
    params = initialize(declare_attention(4, "official"), key)
    kernels = [np.asarray(layer.kernel) for layer in params[:3]]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])
    assert max(np.abs(kernel).max() for kernel in kernels) <= np.sqrt(6 / 8)

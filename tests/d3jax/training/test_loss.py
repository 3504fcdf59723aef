import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.adapters.d3 import BalanceOptions, binary_cross_entropy, unweighted, weigh_rows
from d3jax.balance import complexity_weights, row_complexity, specificity_weights
from d3jax.base import EVALUATION, Output
from d3jax.batch import Batch


def test_cross_entropy_matches_float64_and_stays_finite():
    logits = np.array([-200.0, -3.0, 0.0, 0.5, 30.0, 200.0], np.float32)
    for label in (0.0, 1.0):
        labels = np.full_like(logits, label)
        ours = binary_cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
        wide = logits.astype(np.float64)
        np.testing.assert_allclose(ours, np.logaddexp(0, wide) - label * wide, rtol=1e-6, atol=1e-6)


@pytest.fixture
def output():
    rng = np.random.default_rng(0)
    gate = rng.random((6, 1)).astype(np.float32)
    return Output(
        logits=jnp.zeros(6),
        attention=jnp.asarray(rng.normal(size=(6, 3, 3)), jnp.float32),
        gate=jnp.concatenate([gate, 1 - gate], axis=1),
    )


@pytest.fixture
def six(output):
    mask = jnp.array([1, 1, 1, 1, 1, 0], bool)
    return Batch(jnp.zeros((6, 3), int), jnp.zeros(6, int), jnp.zeros(6), mask)


def weights(config, output, batch, step=5, start=5):
    return weigh_rows(config, start).row_weights((), output, batch, jnp.int32(step), EVALUATION)


def test_weights_are_complexity_times_specificity(output, six):
    config = BalanceOptions(complexity_shift=0.2, specificity_scale=0.3, lower=0.05, upper=0.9)
    expected = complexity_weights(
        row_complexity(output.attention), six.mask, lower=0.05, upper=0.9, shift=0.2
    ) * specificity_weights(output.gate, scale=0.3)
    np.testing.assert_allclose(weights(config, output, six), expected, rtol=1e-6, atol=1e-6)


def test_weights_before_the_start_are_one(output, six):
    np.testing.assert_array_equal(weights(BalanceOptions(), output, six, step=4), np.ones(6))


def test_a_model_without_attention_is_weighed_by_its_gate(output, six):
    gate_only = output._replace(attention=None)
    expected = 0.5 + np.asarray(output.gate[:, 0])
    np.testing.assert_allclose(
        weights(BalanceOptions(), gate_only, six), expected, rtol=1e-6, atol=1e-6
    )


def test_normalised_weights_have_mean_one_over_real_rows(output, six):
    given = np.asarray(weights(BalanceOptions(normalize=True), output, six))
    assert given[:5].mean() == pytest.approx(1.0, rel=1e-6)


def test_literal_sign_turns_the_order_around(output):
    plain = row_complexity(output.attention)
    literal = row_complexity(output.attention, literal_sign=True)
    np.testing.assert_array_equal(literal, -plain)


@pytest.mark.parametrize("entropy", ["rows", "mean_row", "naive"])
def test_entropy_forms(output, entropy):
    attention = np.exp(np.asarray(output.attention, np.float64))
    attention /= attention.sum(-1, keepdims=True)
    if entropy != "rows":
        attention = attention.mean(1, keepdims=True)
    expected = -(attention * np.log(attention)).sum(-1).mean(-1)
    if entropy != "naive":
        expected = expected - np.log(3)
    ours = row_complexity(output.attention, entropy=entropy)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_weights_pass_no_gradient(output, six):
    def total(scale):
        moved = output._replace(attention=output.attention * scale, gate=output.gate * scale)
        return weights(BalanceOptions(), moved, six).sum()

    assert jax.grad(total)(1.0) == 0.0


def test_unweighted_is_one_everywhere(output, six):
    adapter = unweighted()
    np.testing.assert_array_equal(
        adapter.row_weights((), output, six, jnp.int32(0), EVALUATION), np.ones(6)
    )

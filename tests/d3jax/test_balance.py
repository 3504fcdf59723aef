from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.adapters.d3 import BalanceOptions
from d3jax.balance import (
    EntropyForm,
    complexity,
    complexity_weights,
    naive_complexity,
    normalized_complexity,
    row_weights,
    scheduled_weights,
    specificity_weights,
    unit_mean_weights,
    weighted_loss,
)
from d3jax.checks import one_of
from d3jax.errors import ConfigError, ShapeError
from tests.d3jax import reference

FORMS = ("rows", "mean_row")
entropy = jax.jit(complexity, static_argnames="form")
normalized = jax.jit(normalized_complexity, static_argnames=("lower", "upper"))


def true_complexity(logits: np.ndarray, form: str) -> np.ndarray:
    if form == "rows":
        return reference.entropy_minus_log_n(logits)
    return reference.entropy_of_mean(logits) - np.log(logits.shape[-1])


def attention_logits(std: float, rows: int = 256, n: int = 23, d: int = 16) -> np.ndarray:
    """Logits of a freshly drawn attention over embeddings N(0, std)."""
    generator = np.random.default_rng(20240226)
    limit = np.sqrt(6 / (2 * d))
    x = std * generator.normal(size=(rows, n, d))
    query, key = generator.uniform(-limit, limit, (2, d, d))
    return reference.attention_logits((query, None), (key, None), x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-3, 0.03, 0.3, 1.0, 3.0, 30.0, 300.0])
def test_complexity_values(scale: float, form: EntropyForm) -> None:
    logits = scale * np.random.default_rng(1).normal(size=(40, 7, 7)) + 5.0 * (scale > 0.1)
    logits = np.float32(logits)
    expected = true_complexity(np.float64(logits), form)
    ours = entropy(jnp.asarray(logits), form=form)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6 * min(scale, 1) ** 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("std", [1e-3, 1e-2, 1e-1, 1.0, 10.0])
def test_float32_keeps_the_order_of_rows(std: float, form: EntropyForm) -> None:
    logits = attention_logits(std)
    ours = np.float64(entropy(jnp.asarray(logits, jnp.float32), form=form))
    assert np.corrcoef(ours, true_complexity(logits, form))[0, 1] > 0.99


def test_the_naive_form_loses_the_order_of_rows() -> None:
    logits = attention_logits(1e-3)
    naive = np.float64(naive_complexity(jnp.asarray(logits, jnp.float32)))
    assert abs(np.corrcoef(naive, true_complexity(logits, "mean_row"))[0, 1]) < 0.5


@pytest.mark.parametrize("form", FORMS)
def test_equal_logits_are_most_complex(form: EntropyForm) -> None:
    logits = jnp.full((3, 6, 6), jnp.array([0.0, 7.3, -90.0])[:, None, None])
    np.testing.assert_allclose(entropy(logits, form=form), np.zeros(3), atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("height", [80.0, 1e4])
def test_one_dominant_field_is_least_complex(height: float, form: EntropyForm) -> None:
    logits = jnp.zeros((2, 6, 6)).at[:, :, 2].set(height)
    values, gradient = jax.jit(jax.value_and_grad(lambda v: complexity(v, form=form).sum()))(logits)
    np.testing.assert_allclose(values, -2 * np.log(6), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_mean_of_entropies_and_entropy_of_the_mean_differ() -> None:
    logits = 80.0 * jnp.eye(2)[None]
    np.testing.assert_allclose(entropy(logits) + np.log(2), [0.0], atol=1e-6)
    np.testing.assert_allclose(entropy(logits, form="mean_row") + np.log(2), [np.log(2)])
    np.testing.assert_allclose(naive_complexity(logits), [np.log(2)], rtol=1e-6)


def test_naive_values() -> None:
    logits = np.float32(3 * np.random.default_rng(1).normal(size=(40, 7, 7)))
    expected = reference.entropy_of_mean(np.float64(logits), epsilon=1e-9)
    np.testing.assert_allclose(naive_complexity(jnp.asarray(logits)), expected, rtol=1e-5)


@given(st.integers(2, 8), st.floats(-4, 2), st.integers(0, 2**31))
def test_complexity_is_within_its_range(n: int, exponent: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(64, 8, 8)) * 10.0**exponent
    logits[:, :, n:] = -1e4
    logits = jnp.asarray(logits, jnp.float32)
    rows, mean_row = (np.asarray(entropy(logits, form=form)) for form in FORMS)
    slack = 1e-5
    assert (rows >= -np.log(8) - slack).all()
    assert (rows <= mean_row + slack).all()
    assert (mean_row <= slack).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [0.05, 0.8, 5.0])
def test_complexity_gradient(scale: float, form: EntropyForm) -> None:
    logits = np.float32(scale * np.random.default_rng(1).normal(size=(1, 4, 4)))
    gradient = jax.jit(jax.grad(lambda v: complexity(v, form=form).sum()))(jnp.asarray(logits))
    numeric = reference.numeric_gradient(
        lambda v: float(true_complexity(v, form).sum()), np.float64(logits)
    )
    np.testing.assert_allclose(gradient, numeric, rtol=2e-3, atol=1e-5)


def test_normalized_oracle_uses_the_population_deviation() -> None:
    ours = normalized_complexity(jnp.array([1.0, 1.0, 1.0, 1.0, 3.0]), jnp.ones(5, bool))
    np.testing.assert_allclose(ours, [0.25, 0.25, 0.25, 0.25, 1.0], rtol=1e-6)


@pytest.mark.parametrize(("lower", "upper"), [(0.1, 1.0), (0.3, 0.6), (0.0, 10.0)])
def test_normalized_values_and_clipping(lower: float, upper: float) -> None:
    c = np.float32(np.random.default_rng(1).normal(size=50) - 2)
    mask = np.arange(50) % 3 > 0
    expected = reference.normalised_complexity(np.float64(c), mask, lower, upper)
    ours = normalized(jnp.asarray(c), jnp.asarray(mask), lower=lower, upper=upper)
    np.testing.assert_allclose(ours[mask], expected[mask], rtol=1e-4, atol=1e-5)
    assert (ours.min(), ours.max()) == (pytest.approx(lower), pytest.approx(upper)) or upper == 10


@pytest.mark.parametrize("value", [0.0, 0.1, -2.7172, 1e-30, 12345.678])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1000])
def test_equal_complexities_count_half(rows: int, value: float) -> None:
    ours = normalized(jnp.full(rows, value), jnp.ones(rows, bool))
    np.testing.assert_array_equal(ours, np.full(rows, 0.5))


def test_a_batch_without_rows_is_finite() -> None:
    ours = normalized_complexity(jnp.array([1.0, 2.0]), jnp.zeros(2, bool))
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("padding", [0.0, 1e6, -1e6, np.nan])
def test_padding_changes_nothing(padding: float) -> None:
    c = jnp.array([0.3, 0.1, 0.7, 0.2])
    alone = normalized(c, jnp.ones(4, bool))
    padded = normalized(
        jnp.concatenate([c, jnp.full(3, padding)]), jnp.array([True] * 4 + [False] * 3)
    )
    np.testing.assert_allclose(padded[:4], alone, rtol=1e-6)


def test_a_constant_added_changes_nothing() -> None:
    c = jnp.array([0.3, 0.1, 0.7, 0.2])
    shifted = normalized(c + np.log(23), jnp.ones(4, bool))
    np.testing.assert_allclose(shifted, normalized(c, jnp.ones(4, bool)), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_scale_of_complexity_changes_nothing(scale: float) -> None:
    c = jnp.array([0.3, 0.1, 0.7, 0.2])
    scaled = normalized(c * scale, jnp.ones(4, bool))
    np.testing.assert_allclose(scaled, normalized(c, jnp.ones(4, bool)), rtol=1e-5)


def test_a_deviation_below_the_minimum_counts_as_none() -> None:
    c = jnp.array([0.1, 0.2])
    half = normalized_complexity(c, jnp.ones(2, bool), minimum_std=0.06)
    np.testing.assert_array_equal(half, [0.5, 0.5])
    full = normalized_complexity(c, jnp.ones(2, bool), minimum_std=0.04)
    np.testing.assert_allclose(full, [0.1, 1.0], rtol=1e-5)


def test_equal_complexities_have_a_finite_gradient() -> None:
    gradient = jax.jit(jax.grad(lambda c: normalized_complexity(c, jnp.ones(3, bool)).sum()))
    assert np.isfinite(gradient(jnp.full(3, 0.1))).all()


def test_weights() -> None:
    c = np.float32([0.3, 0.1, 0.7, 0.2])
    mask = np.array([True, True, True, False])
    ours = complexity_weights(
        jnp.asarray(c), jnp.asarray(mask), lower=0.2, upper=0.9, shift=0.3, scale=2.0
    )
    expected = 0.3 + 2.0 * reference.normalised_complexity(np.float64(c), mask, 0.2, 0.9)
    np.testing.assert_allclose(ours[:3], expected[:3], rtol=1e-5)
    gate = jnp.array([[0.9, 0.1], [0.2, 0.8]])
    np.testing.assert_allclose(specificity_weights(gate), [1.4, 0.7], rtol=1e-6)
    np.testing.assert_allclose(
        specificity_weights(gate, shift=0.1, scale=3.0), [2.8, 0.7], rtol=1e-6
    )


def test_neutral_weights_are_one() -> None:
    c, gate = jnp.array([0.3, 0.1]), jnp.array([[0.9, 0.1], [0.2, 0.8]])
    ones = complexity_weights(c, jnp.ones(2, bool), shift=1.0, scale=0.0)
    np.testing.assert_array_equal(ones, np.ones(2))
    np.testing.assert_array_equal(specificity_weights(gate, shift=1.0, scale=0.0), np.ones(2))


def test_schedule_starts_at_its_step_without_retracing() -> None:
    traces = []

    @jax.jit
    def weights(step: jax.Array, start: jax.Array) -> jax.Array:
        traces.append(None)
        return scheduled_weights(jnp.array([0.5, 2.0]), step, start)

    for step, expected in ((0, 1), (4, 1), (5, [0.5, 2]), (6, [0.5, 2])):
        ours = weights(jnp.int32(step), jnp.int32(5))
        np.testing.assert_array_equal(ours, np.broadcast_to(expected, 2))
    assert len(traces) == 1


@pytest.mark.parametrize("step", [4, 5])
def test_scheduled_weights_are_never_differentiated(step: int) -> None:
    gradient = jax.grad(lambda w: scheduled_weights(w, step, 5).sum())(jnp.array([0.5, 2.0]))
    np.testing.assert_array_equal(gradient, np.zeros(2))


def test_weighted_loss_divides_by_the_real_rows() -> None:
    generator = np.random.default_rng(1)
    z, w = np.float32(generator.normal(size=9)), np.float32(generator.uniform(0.1, 2, 9))
    y, mask = np.float32(np.arange(9) % 2), np.arange(9) % 4 > 0
    losses = np.float32(np.logaddexp(0, np.float64(z)) - y * np.float64(z))
    ours = weighted_loss(*map(jnp.asarray, (losses, w, mask)))
    exact = reference.weighted_loss(*map(np.float64, (z, y, w)), mask)
    assert ours == pytest.approx(exact, rel=1e-5)


def test_padding_does_not_enter_the_loss() -> None:
    losses, weights = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([2.0, 1.0, jnp.nan])
    mask = jnp.array([True, True, False])
    value, gradient = jax.value_and_grad(weighted_loss)(losses, weights, mask)
    assert value == 2.5
    np.testing.assert_array_equal(gradient, [1.0, 0.5, 0.0])
    assert weighted_loss(losses, weights, jnp.zeros(3, bool)) == 0


def test_unit_mean_weights_keep_proportions() -> None:
    weights, mask = jnp.array([1.0, 2.0, 6.0, 100.0]), jnp.array([True, True, True, False])
    np.testing.assert_allclose(unit_mean_weights(weights, mask)[:3], [1 / 3, 2 / 3, 2.0])
    assert np.isfinite(unit_mean_weights(weights, jnp.zeros(4, bool))).all()


def test_row_weights_by_the_reference() -> None:
    generator = np.random.default_rng(3)
    logits, share = np.float32(generator.normal(size=(7, 4, 4))), np.float32(generator.random(7))
    gate, mask = np.stack([share, 1 - share], 1), np.arange(7) < 5
    complexities = reference.entropy_minus_log_n(np.float64(logits))
    by_complexity = 0.2 + 0.7 * reference.normalised_complexity(complexities, mask, 0.05, 0.9)
    by_gate = 0.1 + 3.0 * np.float64(share)
    settings = {"complexity_shift": 0.2, "complexity_scale": 0.7, "lower": 0.05, "upper": 0.9}
    settings |= {"specificity_shift": 0.1, "specificity_scale": 3.0}
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(row_weights(logits, gate, mask, **settings)[mask], (by_complexity * by_gate)[mask])
    close(row_weights(logits, None, mask, **settings)[mask], by_complexity[mask])
    close(row_weights(None, gate, mask, **settings)[mask], by_gate[mask])
    every = 0.5 + reference.normalised_complexity(complexities, np.ones(7, bool))
    close(row_weights(logits, gate), every * (0.5 + np.float64(share)))
    close(row_weights(None, gate, normalize=True).mean(), 1.0)
    turned = 0.5 + reference.normalised_complexity(-complexities, np.ones(7, bool))
    close(row_weights(logits, None, literal_sign=True), turned)
    mean_row = reference.entropy_of_mean(np.float64(logits))
    expected = 0.5 + reference.normalised_complexity(mean_row, np.ones(7, bool))
    close(row_weights(logits, None, entropy="mean_row"), expected)


def test_row_weights_in_float64_are_exact() -> None:
    logits = np.random.default_rng(3).normal(size=(7, 4, 4))
    complexities = reference.entropy_minus_log_n(logits)
    expected = 0.5 + reference.normalised_complexity(complexities, np.ones(7, bool))
    with jax.enable_x64(True):
        weights = row_weights(logits, None)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


def test_row_weights_pass_no_gradient() -> None:
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(7, 4, 4)), jnp.float32)
    np.testing.assert_array_equal(jax.grad(lambda a: row_weights(a, None).sum())(logits), 0.0)


def test_the_defaults_of_row_weights_are_those_of_the_settings() -> None:
    given = inspect.signature(row_weights).parameters
    for setting in dataclasses.fields(BalanceOptions):
        if setting.name != "start_ratio":
            assert given[setting.name].default == setting.default, setting.name


A, G = (6, 3, 3), (6, 2)


@pytest.mark.parametrize(
    ("attention", "gate", "mask", "message"),
    [
        (None, None, None, "attention and gate are both None; row_weights needs one of them"),
        (A, (5, 2), None, "attention has 6 rows and gate has 5; give as many of each"),
        (A, G, (7,), "attention has 6 rows and mask has 7; give as many of each"),
        (None, G, (7,), "gate has 6 rows and mask has 7; give as many of each"),
        ((6, 3, 4), G, None, r"attention has the shape \(6, 3, 4\), whose fields is 3; it must be"),
        ((6, 3), G, None, r"attention has the shape \(6, 3\); it must be \[rows, fields=3, others"),
        (
            A,
            (6, 3),
            None,
            r"gate has the shape \(6, 3\), whose sides is 3; it must be \[rows, s",
        ),
        (A, G, (6, 1), r"mask has the shape \(6, 1\); it must be \[rows\]"),
        ((0, 3, 3), None, None, r"attention has no rows: its shape is \(0, 3, 3\); give at least"),
    ],
)
def test_row_weights_of_what_does_not_fit(
    attention: tuple[int, ...] | None,
    gate: tuple[int, ...] | None,
    mask: tuple[int, ...] | None,
    message: str,
) -> None:
    arrays = [None if shape is None else jnp.zeros(shape) for shape in (attention, gate)]
    with pytest.raises(ShapeError, match=message):
        row_weights(*arrays, None if mask is None else jnp.ones(mask, bool))


def test_row_weights_of_other_types() -> None:
    with pytest.raises(ShapeError, match="attention is int32; it must be floating-point"):
        row_weights(jnp.zeros(A, int), None)
    with pytest.raises(ShapeError, match="mask is float32; it must be boolean, True for real rows"):
        row_weights(jnp.zeros(A), None, jnp.ones(6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lower": 0.5, "upper": 0.2}, "lower is 0.5; it must be between 0 and 0.2"),
        ({"minimum_std": -1.0}, "minimum_std is -1.0; it must be between 0 and inf"),
        ({"complexity_shift": -0.1}, "complexity_shift is -0.1; it must be between 0 and 100"),
        ({"specificity_scale": math.nan}, "specificity_scale is nan; it must be between 0 and"),
        (
            {"complexity_shift": 0.0, "complexity_scale": 0.0},
            "complexity_shift and complexity_scale are both 0, which weighs every row with 0; set",
        ),
    ],
)
def test_row_weights_by_settings_that_can_not_be(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        row_weights(jnp.zeros(A), None, **settings)


def test_an_unknown_choice_names_those_known() -> None:
    with pytest.raises(ConfigError, match="entropy is 'row'; it must be one of rows, naive"):
        one_of("entropy", "row", ("rows", "naive"))


Function = Callable[..., jax.Array]


@pytest.mark.parametrize(
    ("function", "per_device"),
    [
        (normalized_complexity, False),
        (functools.partial(complexity_weights, shift=0.2), False),
        (unit_mean_weights, False),
        (lambda c, mask, axis_name=None: weighted_loss(c, c**2, mask, axis_name=axis_name), True),
    ],
)
def test_statistics_of_eight_devices_are_those_of_one(function: Function, per_device: bool) -> None:
    c = jnp.asarray(np.random.default_rng(1).uniform(0.1, 1, 32), jnp.float32)
    mask = jnp.asarray(np.arange(32) % 3 > 0).at[8:12].set(False)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def device(c: jax.Array, mask: jax.Array) -> jax.Array:
        value = function(c, mask, axis_name="data")
        return jax.lax.psum(value, "data") if per_device else value

    spec = P() if per_device else P("data")
    many = jax.shard_map(device, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=spec)
    rows = np.ones((), bool) if per_device else np.asarray(mask)
    ours, expected = np.asarray(jax.jit(many)(c, mask)), np.asarray(function(c, mask))
    np.testing.assert_allclose(ours[rows], expected[rows], rtol=1e-5)


def test_equal_complexities_over_eight_devices_count_half() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    device = functools.partial(normalized_complexity, axis_name="data")
    many = jax.shard_map(device, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data"))
    ours = jax.jit(many)(jnp.full(24, 0.1), jnp.ones(24, bool))
    np.testing.assert_array_equal(ours, np.full(24, 0.5))

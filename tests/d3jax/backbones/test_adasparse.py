from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.backbones.adasparse import (
    AdaSparseOptions,
    AdaSparseParams,
    AdaSparseState,
    adasparse,
    neuron_weights,
)
from d3jax.base import EVALUATION, Inputs, Mode, Output, Sizes
from d3jax.heads import D3Options, d3, dense_head
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

B, N, D, S = 8, 3, 4, 3
SMALL = AdaSparseOptions(layers=(6, 5), scale=1.7, threshold=0.4, growth=0.25)
HEADS = {"dense": dense_head(()), "d3": d3(D3Options(field_hidden=2, width=5))}
TRAIN = Mode(train=True)
forms = pytest.mark.parametrize("form", ["fusion", "scaling", "binary"])


def state_of(sharpness: float, head: Any = ()) -> AdaSparseState:
    return AdaSparseState(jnp.float32(sharpness), head)


def make(
    draw: Draw,
    options: AdaSparseOptions = SMALL,
    *,
    head: str = "dense",
    scenarios: int = S,
    rows: int = B,
) -> tuple[Any, AdaSparseParams, Inputs, AdaSparseParams, np.ndarray]:
    """Backbone, drawn parameters and rows of every scenario, and both in float64."""
    backbone = adasparse(HEADS[head], options)
    params, exact = draw(backbone.declare(Sizes(N, D, scenarios)).params)
    x, x64 = draw(declare_array((rows, N, D)))
    inputs = Inputs(x, jnp.arange(rows) * 2 % scenarios, jnp.ones(rows, bool))
    return backbone, params, inputs, exact, x64.reshape(rows, -1)


def run(
    backbone: Any, params: AdaSparseParams, inputs: Inputs, mode: Mode = EVALUATION
) -> tuple[Output, AdaSparseState]:
    return jax.jit(backbone.apply, static_argnums=3)(params, state_of(1.5), inputs, mode)


def weigh(v: np.ndarray, alpha: float, options: AdaSparseOptions) -> np.ndarray:
    """The paper's three kinds of weighting factor, neuron by neuron."""
    out = np.empty_like(v)
    for place, score in np.ndenumerate(v):
        if options.form == "scaling":
            out[place] = options.scale * reference.sigmoid(score)
        elif options.form == "binary":
            out[place] = 1.0 if reference.sigmoid(alpha * score) > options.threshold else 0.0
        else:
            weight = options.scale * reference.sigmoid(alpha * score)
            out[place] = weight if weight > options.threshold else 0.0
    return out


def expected(
    exact: AdaSparseParams,
    flat: np.ndarray,
    scenario: np.ndarray,
    alpha: float,
    options: AdaSparseOptions,
) -> tuple[np.ndarray, int]:
    """Logits, and how many neurons were dropped."""
    known = exact.scenario[scenario]
    h, dropped = flat, 0
    for place, pruner in enumerate(exact.pruners):
        if place > 0:
            h = reference.relu(reference.dense(exact.layers[place - 1], h))
        factors = weigh(reference.dense(pruner, np.hstack([h, known])), alpha, options)
        dropped += int((factors == 0).sum())
        h = h * factors
        if place == 0:
            h = np.hstack([known, h])
    return reference.mlp_linear_last(exact.head, h)[:, 0], dropped


@forms
def test_values(form: Any, draw: Draw) -> None:
    check_values(replace(SMALL, form=form), S, B, draw)


@pytest.mark.parametrize(("scenarios", "rows"), [(1, 4), (3, 1)])
def test_values_of_one_scenario_and_one_row(scenarios: int, rows: int, draw: Draw) -> None:
    check_values(SMALL, scenarios, rows, draw)


def check_values(options: AdaSparseOptions, scenarios: int, rows: int, draw: Draw) -> None:
    backbone, params, inputs, exact, flat = make(draw, options, scenarios=scenarios, rows=rows)
    logits, dropped = expected(exact, flat, np.asarray(inputs.scenario), 1.5, options)
    assert (dropped > 0) == (options.form != "scaling")
    for mode, sharpness in ((EVALUATION, 1.5), (TRAIN, 1.75)):
        output, state = run(backbone, params, inputs, mode)
        np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)
        assert float(state.sharpness) == sharpness


def test_sharpness_starts_as_told_grows_in_training_and_stops(key: jax.Array, draw: Draw) -> None:
    options = replace(SMALL, sharpness=0.5, growth=0.2, sharpest=0.8)
    backbone, params, inputs, _, _ = make(draw, options)
    state = initialize(backbone.declare(Sizes(N, D, S)).state, key)
    seen = [float(state.sharpness)]
    for _ in range(3):
        _, state = jax.jit(backbone.apply, static_argnums=3)(params, state, inputs, TRAIN)
        seen.append(float(state.sharpness))
    np.testing.assert_allclose(seen, [0.5, 0.7, 0.8, 0.8], rtol=1e-6)


def test_the_default_pruner_is_neutral_where_it_is_undecided() -> None:
    weights = neuron_weights(jnp.zeros((1, 2)), jnp.float32(1.0), AdaSparseOptions())
    np.testing.assert_array_equal(weights, [[1.0, 1.0]])


def test_binary_passes_the_sigmoids_slope_and_fusion_none_where_it_prunes() -> None:
    scores = jnp.array([[-3.0, 0.4]])

    def slope(options: AdaSparseOptions) -> jax.Array:
        return jax.grad(lambda v: neuron_weights(v, jnp.float32(2.0), options).sum())(scores)[0]

    soft = reference.sigmoid(2.0 * np.array([-3.0, 0.4]))
    straight = 2.0 * soft * (1 - soft)
    np.testing.assert_allclose(slope(replace(SMALL, form="binary")), straight, rtol=1e-5)
    np.testing.assert_allclose(slope(SMALL), [0.0, 1.7 * straight[1]], rtol=1e-5)


def gradient_of(backbone: Any) -> Callable[[AdaSparseParams, Inputs], AdaSparseParams]:
    """By the parameters, of a sum of real rows' logits that weighs each row differently."""

    def loss(params: AdaSparseParams, inputs: Inputs) -> jax.Array:
        output, _ = backbone.apply(params, state_of(1.0), inputs, TRAIN)
        return jnp.where(inputs.mask, output.logits * jnp.cos(jnp.arange(1.0 * B)), 0.0).sum()

    return jax.jit(jax.grad(loss))


@forms
def test_every_parameter_learns_also_with_d3_as_the_head(form: Any, draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw, replace(SMALL, form=form), head="d3")
    for path, leaf in jax.tree.leaves_with_path(gradient_of(backbone)(params, inputs)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    output, _ = jax.eval_shape(lambda x: backbone.apply(params, state_of(1.0), x, TRAIN), inputs)
    assert (output.attention.shape, output.gate.shape) == ((B, N, N), (B, 2))


def test_absent_scenario_has_exactly_zero_gradient(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw)
    table = gradient_of(backbone)(params, inputs._replace(scenario=jnp.arange(B) % 2)).scenario
    assert (np.abs(table[:2]).max(axis=1) > 0).all()
    np.testing.assert_array_equal(table[2], np.zeros(D))


def test_eight_devices_equal_one(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    many = jax.shard_map(
        lambda inputs: backbone.apply(params, state_of(1.5), inputs, Mode(True, "data")),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=(P("data"), P()),
    )
    output, state = jax.jit(many)(inputs)
    one, one_state = run(backbone, params, inputs, TRAIN)
    np.testing.assert_allclose(output.logits, one.logits, rtol=1e-5, atol=1e-6)
    assert float(state.sharpness) == float(one_state.sharpness) == 1.75


def test_scenarios_differ(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw)
    same = inputs._replace(x=jnp.broadcast_to(inputs.x[:1], inputs.x.shape))
    logits = run(backbone, params, same)[0].logits[:S]
    assert len(set(np.asarray(logits).round(4).tolist())) == S


@pytest.mark.parametrize("scenarios", [1, 3])
def test_parameter_count(scenarios: int) -> None:
    declared = adasparse(dense_head(()), AdaSparseOptions((10, 7))).declare(Sizes(N, D, scenarios))
    network = 16 * 10 + 10 + 10 * 7 + 7
    pruners = sum((width + 4) * width + width for width in (12, 10, 7))
    assert count(declared.params) == scenarios * 4 + network + pruners + 8
    assert count(declared.state) == 1

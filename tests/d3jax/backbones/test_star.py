from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.backbones.star import (
    STAROptions,
    STARParams,
    declare_star_dense,
    partitioned_norm,
    star,
    star_blocks,
    star_network,
)
from d3jax.base import EVALUATION, Backbone, Inputs, Mode, Output, Sizes
from d3jax.layers.dense import dense, mlp
from d3jax.layers.grouping import collect, group_rows, spread
from d3jax.layers.normalization import BatchNorm, Moments, batch_norm
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference
from tests.d3jax.backbones import reference_star

B, N, D, S = 12, 3, 4, 3
TRAIN = Mode(train=True)
GATE = (6, 4)
MASK = np.array([True] * 9 + [False] * 3)
ALL = np.array([2, 0, 0, 2, 1, 0, 2, 1, 1, 0, 1, 2], np.int32)
TWO = np.array([2, 0, 0, 2, 2, 0, 2, 0, 0, 0, 0, 2], np.int32)
LONE = np.array([2, 0, 0, 2, 1, 0, 2, 0, 0, 0, 1, 2], np.int32)
OPTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None]] = {
    "plain": ({}, None),
    "gate": ({}, GATE),
    "gate bias": ({"gate_bias": True}, GATE),
    "first layer": ({"gate_depth": "first"}, GATE),
    "first layer, gate bias": ({"gate_depth": "first", "gate_bias": True}, GATE),
    "gate scale": ({"gate_scale": 4.0}, GATE),
    "gate without layers": ({}, ()),
    "one layer": ({"layers": (), "auxiliary": ()}, GATE),
}
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


def small(name: str) -> tuple[STAROptions, tuple[int, ...] | None]:
    changes, gate_layers = OPTIONS[name]
    return STAROptions(**{"layers": (5, 4), "auxiliary": (3,)} | changes), gate_layers


def drawing() -> Draw:
    """Random arrays in a declaration's shapes, and the same numbers in float64."""
    generator = np.random.default_rng(20240226)

    def draw(declaration: Any) -> tuple[Any, Any]:
        drawn = jax.tree.map(
            lambda p: np.float32(0.7 * generator.normal(size=p.shape)), declaration
        )
        return jax.tree.map(jnp.asarray, drawn), jax.tree.map(np.float64, drawn)

    return draw


class Case:
    """A backbone with drawn parameters and statistics, the same in float64, and a batch."""

    def __init__(self, name: str, scenarios: int) -> None:
        draw = drawing()
        self.options, gate_layers = small(name)
        self.backbone: Backbone = star(gate_layers, self.options)
        declared = self.backbone.declare(Sizes(N, D, scenarios))
        params, exact = draw(declared.params)
        # The star's part would all but vanish beside the auxiliary network's at the same scale.
        self.params, self.exact = (
            p._replace(layers=jax.tree.map(lambda leaf: 3 * leaf, p.layers))
            for p in (params, exact)
        )
        state, exact_state = draw(declared.state)
        self.state = state._replace(variance=jnp.abs(state.variance) + 0.5)
        self.exact_state = exact_state._replace(variance=np.abs(exact_state.variance) + 0.5)
        self.x, self.x64 = draw(declare_array((B, N, D)))
        self.gradient = jax.jit(
            lambda inputs: jax.grad(self.loss, argnums=(0, 1))(self.params, inputs.x, inputs)
        )

    def loss(self, params: STARParams, x: jax.Array, inputs: Inputs) -> jax.Array:
        """A weighted sum of the real rows' logits in training."""
        output, _ = self.backbone.apply(params, self.state, inputs._replace(x=x), TRAIN)
        weight = jnp.linspace(-1.0, 2.0, len(output.logits))
        return jnp.where(inputs.mask, weight * output.logits, 0.0).sum()

    def run(self, inputs: Inputs, mode: Mode) -> tuple[Output, Moments]:
        return self.backbone.apply(self.params, self.state, inputs, mode)

    def inputs(self, scenario: np.ndarray = ALL, mask: np.ndarray = MASK) -> Inputs:
        return Inputs(self.x, jnp.asarray(scenario), jnp.asarray(mask))

    def reference(self, params: STARParams, x: np.ndarray, scenario: np.ndarray, train: bool):
        p = reference_star.Star(
            *params.norm.shared,
            *params.norm.own,
            [(layer.kernel, layer.bias) for layer in params.layers],
            [(layer.own_kernel, layer.own_bias) for layer in params.layers],
            params.scenario,
            params.auxiliary,
            None if params.gate is None else [*params.gate.hidden, params.gate.output],
            *self.exact_state,
        )
        options = self.options
        return reference_star.star(
            p,
            x,
            scenario,
            MASK,
            train,
            options.gate_scale,
            options.gate_bias,
            options.gate_depth,
        )


@cache
def case(name: str = "gate bias", scenarios: int = S) -> Case:
    """Made, and its gradient compiled, once for all tests."""
    return Case(name, scenarios)


CASES = [*((name, True) for name in OPTIONS), ("gate bias", False)]
"""Each option in training; evaluation differs by the statistics alone."""


@pytest.mark.parametrize(("name", "train"), CASES)
def test_values(name: str, train: bool) -> None:
    model = case(name)
    output, state = model.run(model.inputs(), Mode(train=train))
    logits, gates, mean, var = model.reference(model.exact, model.x64, ALL, train)
    assert output.attention is None
    close(output.logits, logits)
    close(state.mean, mean)
    close(state.variance, var)
    if gates is None:
        assert output.gate is None
    else:
        close(output.gate, gates)


def test_the_states_of_training_and_evaluation_differ() -> None:
    model = case()
    _, trained = model.run(model.inputs(), TRAIN)
    _, kept = model.run(model.inputs(), EVALUATION)
    jax.tree.map(np.testing.assert_array_equal, kept, model.state)
    assert np.abs(trained.mean - model.state.mean).min() > 1e-4


def test_gradients_are_the_slopes_of_the_reference() -> None:
    model = case()
    gradient = model.gradient(model.inputs())
    weight = np.linspace(-1, 2, B) * MASK
    leaves, structure = jax.tree.flatten((model.exact, model.x64))
    generator = np.random.default_rng(1)
    for position, (ours, leaf) in enumerate(zip(jax.tree.leaves(gradient), leaves, strict=True)):
        direction = generator.normal(size=np.shape(leaf))

        def along(step: np.ndarray, position: int = position, d: np.ndarray = direction) -> float:
            moved = [*leaves]
            moved[position] = moved[position] + step * d
            params, x = jax.tree.unflatten(structure, moved)
            return float(weight @ model.reference(params, x, ALL, True)[0])

        slope = reference.numeric_gradient(along, np.zeros(()))
        np.testing.assert_allclose((ours * direction).sum(), slope, rtol=2e-3, atol=5e-4)


def own_leaves(params: STARParams) -> list[jax.Array]:
    """Everything that is stacked over scenarios."""
    layers = [leaf for layer in params.layers for leaf in (layer.own_kernel, layer.own_bias)]
    return [*params.norm.own, *layers, params.scenario]


def test_an_absent_scenario_is_left_alone() -> None:
    model = case()
    by_params, by_x = model.gradient(model.inputs(TWO))
    for leaf in own_leaves(by_params):
        np.testing.assert_array_equal(leaf[1], np.zeros_like(leaf[1]))
        assert np.abs(leaf[0]).max() > 0
        assert np.abs(leaf[2]).max() > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_params, by_x)))
    output, state = model.run(model.inputs(TWO), TRAIN)
    assert np.isfinite(output.logits).all()
    for new, old in zip(state, model.state, strict=True):
        np.testing.assert_array_equal(new[1], old[1])
        assert np.abs(new[0] - old[0]).max() > 1e-3


def test_a_lone_row_is_normalised_by_the_running_moments() -> None:
    model = case()
    trained, state = model.run(model.inputs(LONE), TRAIN)
    evaluated, _ = model.run(model.inputs(LONE), EVALUATION)
    close(trained.logits[4], evaluated.logits[4])
    assert np.abs(trained.logits - evaluated.logits)[LONE == 0].max() > 1e-2
    np.testing.assert_array_equal(state.mean[1], model.state.mean[1])
    close(trained.logits, model.reference(model.exact, model.x64, LONE, True)[0])


def test_one_scenario_and_a_batch_of_one() -> None:
    model = case("gate bias", 1)
    row = Inputs(model.x[:1], jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    output, state = model.run(row, TRAIN)
    expected = model.reference(model.exact, model.x64[:1], np.zeros(1, int), False)
    close(output.logits, expected[0])
    jax.tree.map(np.testing.assert_array_equal, state, model.state)


def without_own(params: STARParams) -> STARParams:
    """Every scenario as the first one."""

    def first(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf[:1], leaf.shape)

    return params._replace(
        norm=params.norm._replace(own=jax.tree.map(first, params.norm.own)),
        layers=tuple(
            layer._replace(own_kernel=first(layer.own_kernel), own_bias=first(layer.own_bias))
            for layer in params.layers
        ),
        scenario=first(params.scenario),
    )


@pytest.mark.parametrize("part", ["none", "moments", "norm", "layers", "scenario"])
def test_scenarios_answer_a_row_differently(part: str) -> None:
    """Through each place in which a scenario has something of its own, and through no other."""
    model = case()
    params, state = without_own(model.params), Moments(*(jnp.ones((S, N * D)),) * 2)
    if part == "moments":
        state = model.state
    elif part == "norm":
        params = params._replace(norm=model.params.norm)
    elif part == "layers":
        params = params._replace(layers=model.params.layers)
    elif part == "scenario":
        params = params._replace(scenario=model.params.scenario)
    rows = Inputs(jnp.repeat(model.x[:1], S, 0), jnp.arange(S), jnp.ones(S, bool))
    logits = np.sort(model.backbone.apply(params, state, rows, EVALUATION)[0].logits)
    if part == "none":
        assert np.ptp(logits) < 1e-6
    else:
        assert np.diff(logits).min() > 1e-3


def test_with_neutral_scenarios_it_is_batch_norm_mlp_and_auxiliary() -> None:
    model = case("plain")
    p = model.params
    neutral = p._replace(
        norm=p.norm._replace(own=BatchNorm(jnp.ones((S, N * D)), jnp.zeros((S, N * D)))),
        layers=tuple(
            layer._replace(
                own_kernel=jnp.ones_like(layer.own_kernel),
                own_bias=jnp.zeros_like(layer.own_bias),
            )
            for layer in p.layers
        ),
    )
    ordinary = jax.tree.map(lambda moment: moment[2], model.state)
    one = model.inputs(np.full(B, 2, np.int32))
    output, state = model.backbone.apply(neutral, model.state, one, TRAIN)
    normed, moments = batch_norm(p.norm.shared, ordinary, one.flat, one.mask, TRAIN)
    centre = [(layer.kernel, layer.bias) for layer in model.exact.layers]
    main = reference.mlp_linear_last(centre, np.float64(normed))
    side = jnp.concatenate([one.flat, jnp.tile(p.scenario[2:], (B, 1))], axis=1)
    side = dense(p.auxiliary[-1], mlp(p.auxiliary[:-1], side))
    close(output.logits[MASK], (main + side)[MASK, 0])
    close(state.mean[2], moments.mean)
    close(state.variance[2], moments.variance)


def test_partitioned_norm_of_one_scenario_is_batch_norm() -> None:
    model = case()
    p, inputs = model.params.norm, model.inputs(np.full(B, 1, np.int32))
    groups = group_rows(inputs.scenario, S)
    blocks = spread(groups, inputs.flat)
    ours, _ = partitioned_norm(p, model.state, blocks, groups, inputs.mask, TRAIN)
    affine = BatchNorm(p.shared.scale * p.own.scale[1], p.shared.offset + p.own.offset[1])
    ordinary = jax.tree.map(lambda moment: moment[1], model.state)
    theirs, _ = batch_norm(affine, ordinary, inputs.flat, inputs.mask, TRAIN)
    close(collect(groups, ours)[MASK], theirs[MASK])


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_gated_layer_is_the_ungated_one_times_both_gates_before_the_bias(
    scale: float, draw: Draw
) -> None:
    params, _ = draw(declare_star_dense(S, 5, 4))
    hidden, _ = draw(declare_array((B, 5)))
    own = jax.random.uniform(jax.random.key(0), (B, 1))
    gate = jnp.concatenate([own, 1 - own], axis=1)
    groups = group_rows(jnp.asarray(ALL), S)
    blocks, gates = spread(groups, hidden), spread(groups, gate)
    bias = params.own_bias[jnp.asarray(ALL)] + params.bias[None]
    ungated = collect(groups, star_blocks(params, blocks, groups)) - bias
    gated = collect(groups, star_blocks(params, blocks, groups, gates, gate_scale=scale)) - bias
    close(gated, scale * own * (1 - own) * ungated)


def test_an_even_gate_scaled_by_four_is_neutral() -> None:
    model = case("gate scale")
    groups = group_rows(jnp.asarray(ALL), S)
    blocks = spread(groups, model.inputs().flat)
    even = jnp.full((*blocks.shape[:2], 2), 0.5)
    gated, plain = (
        star_network(model.params.layers, blocks, groups, gate, model.options)
        for gate in (even, None)
    )
    close(collect(groups, gated), collect(groups, plain))


def test_both_gate_values_learn_and_the_auxiliary_network_is_ungated() -> None:
    model = case()
    silent = jax.tree.map(jnp.zeros_like, model.params.layers)
    logits = model.backbone.apply(
        model.params._replace(layers=silent), model.state, model.inputs(), TRAIN
    )[0]
    plain = case("plain")
    params = model.params._replace(layers=silent, gate=None)
    ungated = plain.backbone.apply(params, model.state, model.inputs(), TRAIN)[0]
    np.testing.assert_array_equal(logits.logits, ungated.logits)
    by_params, _ = model.gradient(model.inputs())
    assert min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(by_params.gate)) > 1e-5


@pytest.mark.parametrize("gate_layers", [None, (64, 16)])
@pytest.mark.parametrize(("n", "s"), [(7, 3), (23, 1)])
def test_shapes_and_parameter_count(n: int, s: int, gate_layers: tuple[int, ...] | None) -> None:
    declared = star(gate_layers, STAROptions()).declare(Sizes(n, 16, s))
    f = n * 16
    star_shapes = [
        shape
        for i, o in [(f, 128), (128, 64), (64, 32), (32, 1)]
        for shape in [(i, o), (o,), (s, i, o), (s, o)]
    ]
    norm = [(f,), (f,), (s, f), (s, f)]
    auxiliary = [(s, 16), (f + 16, 32), (32,), (32, 1), (1,)]
    gate = [] if gate_layers is None else [(f, 64), (64,), (64, 16), (16,), (16, 2), (2,)]
    shapes = [leaf.shape for leaf in jax.tree.leaves(declared.params)]
    assert shapes == [*norm, *star_shapes, *auxiliary, *gate]
    assert [leaf.shape for leaf in declared.state] == [(s, f), (s, f)]
    expected = reference_star.parameter_count(f, 16, s, (128, 64, 32), (32,), gate_layers)
    assert count(declared.params) == expected


def test_initial_values(key: jax.Array) -> None:
    declared = star(None, STAROptions(layers=(128,))).declare(Sizes(7, 16, 3))
    params, state = initialize((declared.params, declared.state), key)
    for norm in params.norm:
        np.testing.assert_array_equal(norm.scale, np.ones_like(norm.scale))
        np.testing.assert_array_equal(norm.offset, np.zeros_like(norm.offset))
    for layer in params.layers:
        assert not layer.bias.any()
        assert not layer.own_bias.any()
    first = params.layers[0]
    limit = np.sqrt(6 / (112 + 128))
    assert 0.98 * limit < np.abs(first.kernel).max() <= limit
    assert first.own_kernel.mean() == pytest.approx(1.0, abs=1e-3)
    assert first.own_kernel.std() == pytest.approx(0.01, rel=0.02)
    assert params.scenario.std() == pytest.approx(0.05, rel=0.4)
    np.testing.assert_array_equal(state.mean, np.zeros((3, 112)))
    np.testing.assert_array_equal(state.variance, np.ones((3, 112)))


def test_scenario_kernels_may_start_as_glorot(key: jax.Array) -> None:
    backbone = star(None, STAROptions(layers=(128,), scenario_init="glorot"))
    first = initialize(backbone.declare(Sizes(7, 16, 3)).params, key).layers[0]
    limit = np.sqrt(6 / (112 + 128))
    assert 0.98 * limit < np.abs(first.own_kernel).max() <= limit
    assert abs(first.own_kernel.mean()) < 0.01
    assert np.abs(first.own_kernel[0] - first.own_kernel[1]).max() > 0.1

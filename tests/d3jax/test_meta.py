from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.base import EVALUATION, Inputs, Sizes
from d3jax.generation import generate_weights
from d3jax.heads import GeneratedHeadParams, dense_head, generated
from d3jax.meta import MetaParams, declare_scenarios, meta_generator
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference
from tests.d3jax.backbones import reference_m2m

B, N, D, S, KNOWN = 6, 3, 4, 3, 5
SITES = ((4, 2), (2, 3))
SCENARIO = np.array([2, 0, 0, 2, 2, 0], np.int32)
GENERATOR = meta_generator(KNOWN)


def drawn(
    draw: Draw, scenarios: int = S
) -> tuple[MetaParams, MetaParams, Inputs, jax.Array, np.ndarray]:
    params, exact = draw(GENERATOR.declare(Sizes(N, D, scenarios), SITES))
    x, _ = draw(declare_array((B, N, D)))
    values, exact_values = draw(declare_array((B, SITES[0][0])))
    inputs = Inputs(x, jnp.asarray(SCENARIO % scenarios), jnp.ones(B, bool))
    return params, exact, inputs, values, exact_values


def sites(exact: MetaParams, scenario: np.ndarray) -> list[reference_m2m.Site]:
    """Every row's kernels and biases by the reference."""
    generators = [
        ((p.kernel.reshape(len(p.kernel), -1), p.kernel_offset.ravel()), p.bias)
        for p in exact.layers
    ]
    inputs = [width for width, _ in SITES]
    return reference_m2m.meta_sites(exact.scenario, exact.knowledge, generators, inputs, scenario)


@pytest.mark.parametrize("scenarios", [S, 1])
def test_each_site_has_the_layer_of_the_rows_scenario(scenarios: int, draw: Draw) -> None:
    params, exact, inputs, h, h64 = drawn(draw, scenarios)
    made = GENERATOR.generate(params, inputs, EVALUATION)
    assert made.attention is made.gate is None
    for index, (kernels, biases) in enumerate(sites(exact, inputs.scenario)):
        h64 = reference.layer(h64, kernels, biases, reference.identity)
        h = made.layer(index, h)
        np.testing.assert_allclose(h, h64, rtol=1e-4, atol=1e-4)


def test_gathering_by_scenario_equals_generating_for_every_row(draw: Draw) -> None:
    params, _, inputs, h, _ = drawn(draw)
    rows = params.scenario[inputs.scenario]
    knowledge = jax.nn.leaky_relu(rows @ params.knowledge.kernel + params.knowledge.bias[None])
    kernel, bias = generate_weights(params.layers[0], knowledge)
    ours = GENERATOR.generate(params, inputs, EVALUATION).layer(0, h)
    np.testing.assert_allclose(ours, jnp.einsum("bi,bio->bo", h, kernel) + bias, rtol=1e-5)


def test_neither_the_fields_nor_the_neighbours_matter(draw: Draw) -> None:
    params, _, inputs, h, _ = drawn(draw)
    together = GENERATOR.generate(params, inputs, EVALUATION).layer(0, h)
    other = inputs._replace(x=inputs.x + 1.0)
    np.testing.assert_array_equal(
        GENERATOR.generate(params, other, EVALUATION).layer(0, h), together
    )
    row = jax.tree.map(lambda leaf: leaf[3:4], inputs)
    alone = GENERATOR.generate(params, row, EVALUATION).layer(0, h[3:4])
    np.testing.assert_allclose(alone[0], together[3], rtol=1e-5)


def test_gradients_are_the_slopes_of_the_reference(draw: Draw) -> None:
    params, exact, inputs, h, h64 = drawn(draw)
    weight = np.linspace(-1, 1, B)

    def loss(params: MetaParams) -> jax.Array:
        made = GENERATOR.generate(params, inputs, EVALUATION)
        return (jnp.float32(weight)[:, None] * made.layer(1, made.layer(0, h))).sum()

    def loss64(params: MetaParams) -> float:
        values = h64
        for kernels, biases in sites(params, SCENARIO):
            values = reference.layer(values, kernels, biases, reference.identity)
        return float((weight[:, None] * values).sum())

    leaves, structure = jax.tree.flatten(exact)
    for position, ours in enumerate(jax.tree.leaves(jax.jit(jax.grad(loss))(params))):
        direction = np.random.default_rng(position).normal(size=ours.shape)

        def along(step: np.ndarray, position: int = position, d: np.ndarray = direction) -> float:
            moved = [*leaves]
            moved[position] = moved[position] + step * d
            return loss64(jax.tree.unflatten(structure, moved))

        slope = reference.numeric_gradient(along, np.zeros(()))
        np.testing.assert_allclose((ours * direction).sum(), slope, rtol=2e-3, atol=2e-4)


def test_an_absent_scenarios_embedding_has_no_gradient(draw: Draw) -> None:
    params, _, inputs, h, _ = drawn(draw)

    def loss(params: MetaParams) -> jax.Array:
        return GENERATOR.generate(params, inputs, EVALUATION).layer(0, h).sum()

    table = jax.grad(loss)(params).scenario
    np.testing.assert_array_equal(table[1], np.zeros(D))
    assert np.abs(table[0]).max() > 0
    assert np.abs(table[2]).max() > 0


def test_shapes_and_initial_values(key: jax.Array) -> None:
    generator = meta_generator(64)
    declared = generator.declare(Sizes(7, 16, 30), [(112, 128)])
    assert [leaf.shape for leaf in jax.tree.leaves(declared)] == [
        (30, 16),
        (16, 64),
        (64,),
        (64, 112, 128),
        (112, 128),
        (64, 128),
        (128,),
    ]
    params = jax.jit(lambda key: initialize(declared, key))(key)
    assert params.scenario.std() == pytest.approx(0.05, rel=0.1)
    layer = params.layers[0]
    for kernel, limit in (
        (params.knowledge.kernel, np.sqrt(6 / 80)),
        (layer.kernel, 0.1 * np.sqrt(6 / 192)),
        (layer.kernel_offset, np.sqrt(6 / 240)),
        (layer.bias.kernel, np.sqrt(6 / 192)),
    ):
        assert 0.98 * limit < np.abs(kernel).max() < 1.0001 * limit
    for bias in (params.knowledge.bias, layer.bias.bias):
        np.testing.assert_array_equal(bias, np.zeros_like(bias))


def test_a_scenario_table_is_as_wide_as_an_embedding() -> None:
    assert declare_scenarios(Sizes(7, 16, 3)).shape == (3, 16)


def test_m2m_weights_as_a_head(draw: Draw) -> None:
    """M2M-WG: the generated layer, its activation, and a dense layer to the logit."""
    head = generated(GENERATOR, 3, dense_head())
    params, exact = draw(head.declare(Sizes(N, D, S), 4).params)
    (x, _), (u, u64) = draw(declare_array((B, N, D))), draw(declare_array((B, 4)))
    inputs = Inputs(x, jnp.asarray(SCENARIO), jnp.ones(B, bool))
    output, state = head.apply(params, (), u, inputs, EVALUATION)
    assert (output.attention, output.gate, state) == (None, None, ())
    assert isinstance(exact, GeneratedHeadParams)
    generator = exact.generator.layers[0]
    flat = (generator.kernel.reshape(KNOWN, -1), generator.kernel_offset.ravel())
    known = exact.generator
    kernels, biases = reference_m2m.meta_sites(
        known.scenario, known.knowledge, [(flat, generator.bias)], [4], SCENARIO
    )[0]
    hidden = reference.layer(u64, kernels, biases)
    expected = reference.mlp_linear_last(exact.tail, hidden)[:, 0]
    np.testing.assert_allclose(output.logits, expected, rtol=1e-4, atol=1e-4)
    assert count(params) == S * D + (D + 1) * KNOWN + (KNOWN + 1) * (4 * 3 + 3) + 3 + 1

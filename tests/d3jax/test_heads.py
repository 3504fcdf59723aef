from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.base import EVALUATION, Inputs, Sizes
from d3jax.heads import D3Options, GeneratedHeadParams, d3, towers
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

B, N, D, S, I = 6, 4, 3, 3, 5  # noqa: E741
SIZES = Sizes(N, D, S)
SMALL = D3Options(field_hidden=2, width=6, gate_layers=(7, 3))
OPTIONS: dict[str, dict[str, Any]] = {
    "text": {},
    "d2": {"parts": "d2"},
    "d1": {"parts": "d1"},
    "official values": {"attention_value": "official"},
    "danet values": {"attention_value": "danet"},
    "by row": {"attention_value": "row"},
    "scaled": {"attention_scaled": True},
    "raw gate": {"gate_input": "raw"},
    "no gate layers": {"gate_layers": ()},
    "additive kernel": {"kernel_fusion": "additive"},
    "additive bias": {"bias_fusion": "additive"},
    "specific bias": {"bias_fusion": "specific"},
    "additive kernel, specific bias": {"kernel_fusion": "additive", "bias_fusion": "specific"},
    "no outer activation": {"outer_activation": False},
    "no layer activation": {"layer_activation": False},
    "head layers": {"head_layers": (5, 4)},
    "detached": {"detach_generator": True},
    "separate bias": {"separate_bias": True},
}
options = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())


def rows(draw: Draw) -> tuple[tuple[jax.Array, Inputs], tuple[np.ndarray, np.ndarray]]:
    (x, x64), (u, u64) = draw(declare_array((B, N, D))), draw(declare_array((B, I)))
    scenario = jnp.array([2, 0, 0, 2, 2, 0])
    return (u, Inputs(x, scenario, jnp.ones(B, bool))), (u64, x64)


def expected(
    config: D3Options, p: GeneratedHeadParams, u: np.ndarray, x: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The head by the reference: logits, attention logits, gate."""
    attention, generator = p.generator.attention, p.generator.layers[0].generator
    logits = reference.attention_logits(attention.query, attention.key, x, config.attention_scaled)
    if config.attention_value == "row":
        selected, logits = reference.selected_by_row(
            attention.query, attention.key, x, config.attention_scaled
        )
    elif config.attention_value == "text":
        selected = reference.selected_text(logits, x)
    elif config.attention_value == "official":
        selected = reference.selected_official(logits, x, attention.value)
    else:
        selected = reference.selected_danet(logits, x, attention.value, attention.gain)
    hidden = reference.generator_hidden(*p.generator.hidden, selected, config.outer_activation)
    weight = (generator.kernel.reshape(len(generator.kernel), -1), generator.kernel_offset.ravel())
    kernels, biases = reference.specific_parts(weight, generator.bias, hidden, I)
    if p.generator.bias_hidden is not None:
        own = reference.generator_hidden(
            *p.generator.bias_hidden, selected, config.outer_activation
        )
        _, biases = reference.specific_parts(weight, generator.bias, own, I)
    gate = None
    if config.parts != "d1":
        source = x if config.gate_input == "raw" else selected
        gate = reference.gate([*p.generator.gate.hidden, p.generator.gate.output], source)
        kernels = reference.fuse(
            gate, kernels, p.generator.layers[0].shared.kernel, config.kernel_fusion
        )
        biases = reference.fuse(gate, biases, p.generator.layers[0].shared.bias, config.bias_fusion)
    activation = reference.relu if config.layer_activation else reference.identity
    out = reference.layer(u, kernels, biases, activation)
    return reference.mlp_linear_last(p.tail, out)[:, 0], logits, gate


@options
def test_d3_values(option: dict[str, Any], draw: Draw) -> None:
    config = replace(SMALL, **option)
    head = d3(config)
    params, exact = draw(head.declare(SIZES, I).params)
    (u, inputs), exact_rows = rows(draw)
    output, state = head.apply(params, (), u, inputs, EVALUATION)
    assert state == ()
    logits, attention, gate = expected(config, exact, *exact_rows)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(output.attention, attention, rtol=1e-4, atol=1e-5)
    if gate is None:
        assert output.gate is None
    else:
        np.testing.assert_allclose(output.gate, gate, rtol=1e-4, atol=1e-5)


def gradients(config: D3Options, draw: Draw) -> tuple[Any, Any, Any, Any]:
    """Of the weighted sum of logits: by parameters and x, and the exact function's arguments."""
    head = d3(config)
    params, exact = draw(head.declare(SIZES, I).params)
    (u, inputs), (u64, x64) = rows(draw)
    weight = jnp.linspace(-1.0, 1.0, B)

    def loss(params: GeneratedHeadParams, x: jax.Array) -> jax.Array:
        output, _ = head.apply(params, (), u, inputs._replace(x=x), EVALUATION)
        return (weight * output.logits).sum()

    by_params, by_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, inputs.x)
    return by_params, by_x, exact, (u64, x64)


@pytest.mark.parametrize(
    "name",
    ["text", "d1", "official values", "by row", "raw gate", "additive kernel, specific bias"],
)
def test_d3_gradients(name: str, draw: Draw) -> None:
    config = replace(SMALL, **OPTIONS[name])
    by_params, by_x, exact, (u, x) = gradients(config, draw)
    weight = np.linspace(-1, 1, B)

    def loss(params: GeneratedHeadParams, x: np.ndarray) -> float:
        return float(weight @ expected(config, params, u, x)[0])

    leaves, structure = jax.tree.flatten((exact, x))
    ours = jax.tree.leaves((by_params, by_x))
    generator = np.random.default_rng(1)
    for position, leaf in enumerate(leaves):
        direction = generator.normal(size=np.shape(leaf))

        def along(step: np.ndarray, position: int = position, d: np.ndarray = direction) -> float:
            moved = [*leaves]
            moved[position] = moved[position] + step * d
            return loss(*jax.tree.unflatten(structure, moved))

        slope = reference.numeric_gradient(along, np.zeros(()))
        np.testing.assert_allclose((ours[position] * direction).sum(), slope, rtol=2e-3, atol=2e-4)


def largest(tree: Any) -> float:
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("parts", ["d1", "d2"])
def test_attached_generator_teaches_the_attention(parts: Any, draw: Draw) -> None:
    config = replace(SMALL, parts=parts, gate_input="raw")
    assert largest(gradients(config, draw)[0].generator.attention) > 1e-3


@pytest.mark.parametrize("form", ["text", "official", "danet", "row"])
def test_detached_generator_and_raw_gate_leave_the_attention_untaught(
    form: Any, draw: Draw
) -> None:
    config = replace(SMALL, detach_generator=True, gate_input="raw", attention_value=form)
    by_params, by_x, _, _ = gradients(config, draw)
    assert largest(by_params.generator.attention) == 0
    assert largest(by_params.generator.hidden) > 0
    assert largest(by_x) > 0


def test_detached_d1_has_no_gradient_to_the_embeddings(draw: Draw) -> None:
    config = replace(SMALL, parts="d1", detach_generator=True)
    by_params, by_x, _, _ = gradients(config, draw)
    assert largest(by_params.generator.attention) == largest(by_x) == 0


def test_the_gate_teaches_the_attention_past_a_detached_generator(draw: Draw) -> None:
    config = replace(SMALL, detach_generator=True)
    assert largest(gradients(config, draw)[0].generator.attention) > 1e-5


def test_parameter_shapes() -> None:
    p = d3(D3Options(field_hidden=64, width=32)).declare(Sizes(5, 16, 3), 24).params
    shapes = [leaf.shape for leaf in jax.tree.leaves(p)]
    m = 5 * 64
    attention = [(16, 16), (16, 16)]
    generator = [(5, 16, 64), (5, 64), (m, m), (m,)]
    gate = [(80, 64), (64,), (64, 16), (16,), (16, 2), (2,)]
    layer = [(m, 24, 32), (24, 32), (m, 32), (32,), (24, 32), (32,)]
    assert shapes == [*attention, *generator, *gate, *layer, (32, 1), (1,)]


@pytest.mark.parametrize(("n", "d", "h", "i", "o"), [(5, 16, 64, 24, 32), (23, 16, 64, 368, 128)])
def test_parameter_count_is_the_closed_formula(n: int, d: int, h: int, i: int, o: int) -> None:
    declared = d3(D3Options(field_hidden=h, width=o)).declare(Sizes(n, d, 3), i)
    assert count(declared.params) == reference.d3_parameter_count(n, d, h, i, o)


def test_d1_has_neither_gate_nor_shared_weights_and_starts_as_a_layer(key: jax.Array) -> None:
    config = D3Options(parts="d1", field_hidden=2, width=40)
    params = initialize(d3(config).declare(SIZES, 50).params, key)
    assert params.generator.gate is None
    assert params.generator.layers[0].shared is None
    limit = np.sqrt(6 / 90)
    assert 0.98 * limit < np.abs(params.generator.layers[0].generator.kernel_offset).max() <= limit


@pytest.mark.parametrize("layers", [(), (4,), (5, 4)])
def test_towers_answer_for_their_own_scenario(layers: tuple[int, ...], draw: Draw) -> None:
    head = towers(layers)
    params, exact = draw(head.declare(SIZES, I).params)
    (u, inputs), (u64, _) = rows(draw)
    output, state = head.apply(params, (), u, inputs, EVALUATION)
    assert (output.attention, output.gate, state) == (None, None, ())
    each = [[(p.kernel[s], p.bias[s]) for p in exact] for s in range(S)]
    logits = reference.towers([p[:-1] for p in each], [p[-1] for p in each], u64, inputs.scenario)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-5)


def test_towers_of_one_row_differ(draw: Draw) -> None:
    head = towers((4,))
    params, _ = draw(head.declare(SIZES, I).params)
    (u, inputs), _ = rows(draw)
    answers = []
    for scenario in range(S):
        row = Inputs(inputs.x[:1], jnp.array([scenario]), inputs.mask[:1])
        answers.append(float(head.apply(params, (), u[:1], row, EVALUATION)[0].logits[0]))
    assert len({round(answer, 4) for answer in answers}) == S


def test_a_tower_without_rows_has_exactly_zero_gradient(draw: Draw) -> None:
    head = towers((4,))
    params, _ = draw(head.declare(SIZES, I).params)
    (u, inputs), _ = rows(draw)

    def loss(params: Any) -> jax.Array:
        return head.apply(params, (), u, inputs, EVALUATION)[0].logits.sum()

    gradient = jax.grad(loss)(params)
    for leaf in jax.tree.leaves(gradient):
        assert np.abs(leaf[1]).max() == 0
        assert np.abs(leaf[0]).max() > 0
        assert np.abs(leaf[2]).max() > 0

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.backbones.m3oe import M3oEOptions, M3oEParams, m3oe
from d3jax.base import EVALUATION, Inputs, Mode, Output, Sizes
from d3jax.heads import D3Options, d3, dense_head
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference

B, N, D, S = 9, 3, 4, 3
SMALL = M3oEOptions(star_width=6, width=5, experts=2, layers=(5, 4))
HEADS = {"dense": dense_head(()), "d3": d3(D3Options(field_hidden=2, width=5))}
TRAIN = Mode(train=True)


def make(
    draw: Draw, head: str = "dense", scenarios: int = S, rows: int = B
) -> tuple[Any, M3oEParams, Inputs, M3oEParams, np.ndarray]:
    """Backbone, drawn parameters and rows of every scenario, and both in float64."""
    backbone = m3oe(HEADS[head], SMALL)
    params, exact = draw(backbone.declare(Sizes(N, D, scenarios)).params)
    x, x64 = draw(declare_array((rows, N, D)))
    inputs = Inputs(x, jnp.arange(rows) * 2 % scenarios, jnp.ones(rows, bool))
    return backbone, params, inputs, exact, x64.reshape(rows, -1)


def run(backbone: Any, params: M3oEParams, inputs: Inputs, mode: Mode = EVALUATION) -> Output:
    output, state = jax.jit(backbone.apply, static_argnums=3)(params, (), inputs, mode)
    assert state == ()
    return output


def fused(exact: M3oEParams, row: np.ndarray, s: int) -> np.ndarray:
    """One row from its embeddings to what the head reads."""
    star = exact.extractor.star
    own = row @ (star.kernel * star.own_kernel[s]) + star.bias + star.own_bias[s]
    h = reference.relu(reference.dense(exact.extractor.over, own))
    h = h + reference.relu(reference.dense(exact.extractor.past, row))

    def expert(layers: Any, e: int) -> np.ndarray:
        return reference.mlp([(layer.kernel[e], layer.bias[e]) for layer in layers], h)

    scores = h @ exact.gates.kernel[s] + exact.gates.bias[s]
    total = sum(q * expert(exact.shared, e) for e, q in enumerate(reference.softmax(scores)))
    balance, domain, task = (reference.sigmoid(weight) for weight in exact.fusion)
    scenarios = len(exact.gates.kernel)
    part = balance * expert(exact.domain, s)
    for other in range(scenarios):
        if other != s:
            part = part + (1 - balance) / (scenarios - 1) * expert(exact.domain, other)
    return total + domain * part + task * reference.mlp(exact.task, h)


@pytest.mark.parametrize(
    ("scenarios", "rows", "mode"),
    [(3, 9, EVALUATION), (3, 9, TRAIN), (1, 4, EVALUATION), (3, 1, TRAIN), (2, 4, EVALUATION)],
)
def test_values(scenarios: int, rows: int, mode: Mode, draw: Draw) -> None:
    backbone, params, inputs, exact, flat = make(draw, scenarios=scenarios, rows=rows)
    pairs = zip(flat, np.asarray(inputs.scenario), strict=True)
    hidden = np.array([fused(exact, row, s) for row, s in pairs])
    logits = reference.mlp_linear_last(exact.head, hidden)[:, 0]
    assert np.ptp(logits) > 0.1 or rows == 1
    output = run(backbone, params, inputs, mode)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)


def gradient_of(backbone: Any) -> Callable[[M3oEParams, Inputs], M3oEParams]:
    """By the parameters, of a sum of real rows' logits that weighs each row differently."""

    def loss(params: M3oEParams, inputs: Inputs) -> jax.Array:
        output, _ = backbone.apply(params, (), inputs, TRAIN)
        return jnp.where(inputs.mask, output.logits * jnp.cos(jnp.arange(1.0 * B)), 0.0).sum()

    return jax.jit(jax.grad(loss))


def test_d3_as_the_head_gives_its_attention_and_gate(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw, head="d3")
    output, _ = jax.eval_shape(lambda x: backbone.apply(params, (), x, TRAIN), inputs)
    assert (output.attention.shape, output.gate.shape) == ((B, N, N), (B, 2))


def test_absent_scenario_learns_through_its_expert_alone(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw)
    learnt = gradient_of(backbone)(params, inputs._replace(scenario=jnp.arange(B) % 2))
    star = learnt.extractor.star
    for leaf in (*learnt.gates, star.own_kernel, star.own_bias):
        assert np.abs(leaf[:2]).max() > 0
        np.testing.assert_array_equal(leaf[2], np.zeros_like(leaf[2]))
    assert np.abs(learnt.domain[0].kernel[2]).max() > 0


def test_the_gate_teaches_nothing_to_what_it_reads(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw)
    silent = jax.tree.map(jnp.zeros_like, (params.shared[-1].kernel, params.domain, params.task))
    constant = params.shared[-1]._replace(kernel=silent[0], bias=jnp.abs(params.shared[-1].bias))
    params = params._replace(
        shared=(*params.shared[:-1], constant), domain=silent[1], task=silent[2]
    )
    learnt = gradient_of(backbone)(params, inputs)
    assert np.abs(learnt.gates.kernel).max() > 0
    for leaf in jax.tree.leaves(learnt.extractor):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_scenarios_differ(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw)
    same = inputs._replace(x=jnp.broadcast_to(inputs.x[:1], inputs.x.shape))
    assert len(set(np.asarray(run(backbone, params, same).logits[:S]).round(4).tolist())) == S


def test_it_starts_with_even_weights_and_nearly_one_first_layer(key: jax.Array) -> None:
    params = m3oe(dense_head(()), SMALL).declare(Sizes(N, D, S)).params
    fusion, kernel = initialize((params.fusion, params.extractor.star.own_kernel), key)
    np.testing.assert_array_equal(jax.nn.sigmoid(jnp.stack(fusion)), [0.5, 0.5, 0.5])
    np.testing.assert_allclose(kernel, 1.0, atol=0.06)
    assert np.std(kernel) > 0.005


@pytest.mark.parametrize("scenarios", [1, 3])
def test_parameter_count(scenarios: int) -> None:
    declared = m3oe(dense_head(()), M3oEOptions(9, 8, 4, (10, 7))).declare(Sizes(N, D, scenarios))
    extractor = (1 + scenarios) * (12 * 9 + 9) + (9 * 8 + 8) + (12 * 8 + 8)
    experts = (4 + scenarios + 1) * (8 * 10 + 10 + 10 * 7 + 7)
    assert count(declared.params) == extractor + experts + scenarios * (8 * 4 + 4) + 3 + 8

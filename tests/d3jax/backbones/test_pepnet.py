from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.backbones.pepnet import PEPNetOptions, pepnet_backbone
from d3jax.base import EVALUATION, Backbone, Inputs, Mode, Sizes
from d3jax.errors import ConfigError
from d3jax.heads import D3Options, d3, towers
from d3jax.layers.prior_gates import (
    GateUnit,
    PersonalizedParams,
    declare_gate_unit,
    gate_unit,
    pepnet,
)
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference
from tests.d3jax.backbones import reference_pepnet

B, N, D, S, I = 7, 4, 3, 3, 5  # noqa: E741
PRIOR = (2, 0)
SIZES = Sizes(N, D, S)
SCENARIO = np.array([2, 0, 0, 2, 1, 0, 1], np.int32)
WEIGHT = np.linspace(-1.0, 2.0, B)
TRAIN = Mode(train=True)
ONLY = pytest.mark.parametrize("epnet_only", [False, True])
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


class Rows:
    """What a head and a backbone read, and the same in float64."""

    def __init__(self, draw: Draw, rows: int = B, scenarios: int = S) -> None:
        x, self.x = draw(declare_array((rows, N, D)))
        self.hidden, self.u = draw(declare_array((rows, I)))
        self.scenario = SCENARIO[:rows] % scenarios
        self.inputs = Inputs(x, jnp.asarray(self.scenario), jnp.ones(rows, bool))
        self.prior = np.array([np.concatenate([row[field] for field in PRIOR]) for row in self.x])
        self.flat = np.array([np.concatenate(row) for row in self.x])


def by_reference(exact: Any, rows: Rows, seen: Any = None) -> np.ndarray:
    """The head's logits."""
    body = reference_pepnet.PEPNet(*exact.body)
    h = reference_pepnet.hidden(body, rows.u, rows.scenario, rows.prior, seen)
    return reference.dense(exact.output, h)[:, 0]


@ONLY
@pytest.mark.parametrize(("rows", "scenarios"), [(B, S), (B, 1), (1, S)])
def test_head_values(epnet_only: bool, rows: int, scenarios: int, draw: Draw) -> None:
    head = pepnet(PRIOR, 6, epnet_only)
    params, exact = draw(head.declare(Sizes(N, D, scenarios), I).params)
    data = Rows(draw, rows, scenarios)
    for mode in (EVALUATION, TRAIN):
        output, state = head.apply(params, (), data.hidden, data.inputs, mode)
        assert (output.attention, output.gate, state) == (None, None, ())
        close(output.logits, by_reference(exact, data))


@pytest.mark.parametrize(
    ("options", "rows", "scenarios"),
    [
        (PEPNetOptions((6, 5)), B, S),
        (PEPNetOptions((6, 5)), 1, S),
        (PEPNetOptions((6, 5)), 3, 1),
        (PEPNetOptions((6,), epnet_only=True), B, S),
    ],
    ids=["gated", "one row", "one scenario", "embeddings alone"],
)
def test_backbone_values(options: PEPNetOptions, rows: int, scenarios: int, draw: Draw) -> None:
    backbone = pepnet_backbone(towers((4,)), PRIOR, options)
    params, exact = draw(backbone.declare(Sizes(N, D, scenarios)).params)
    data = Rows(draw, rows, scenarios)
    body = reference_pepnet.PEPNet(*exact.body)
    h = reference_pepnet.hidden(body, data.flat, data.scenario, data.prior)
    each = [[(p.kernel[s], p.bias[s]) for p in exact.head] for s in range(scenarios)]
    expected = reference.towers([p[:-1] for p in each], [p[-1] for p in each], h, data.scenario)
    for mode in (EVALUATION, TRAIN):
        output, state = backbone.apply(params, (), data.inputs, mode)
        assert state == ()
        close(output.logits, expected)


@ONLY
def test_gradients_stop_at_the_gates(epnet_only: bool, draw: Draw) -> None:
    """They are the slopes of the reference whose gates read fixed copies of u and of EPNet's
    output; the prior's embeddings, and u itself, are reached."""
    head = pepnet(PRIOR, 6, epnet_only)
    params, exact = draw(head.declare(SIZES, I).params)
    rows = Rows(draw)

    def loss(params: Any, hidden: jax.Array, x: jax.Array) -> jax.Array:
        inputs = rows.inputs._replace(x=x)
        return jnp.float32(WEIGHT) @ head.apply(params, (), hidden, inputs, EVALUATION)[0].logits

    ours = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, rows.hidden, rows.inputs.x)
    body = reference_pepnet.PEPNet(*exact.body)
    seen = (rows.u, reference_pepnet.gated_embeddings(body, rows.u, SCENARIO, rows.u))
    leaves, structure = jax.tree.flatten((exact, rows.u, rows.x))
    for position, gradient in enumerate(jax.tree.leaves(ours)):
        direction = np.random.default_rng(position).normal(size=gradient.shape)

        def along(step: np.ndarray, position: int = position, d: np.ndarray = direction) -> float:
            moved = [*leaves]
            moved[position] = moved[position] + step * d
            params, u, x = jax.tree.unflatten(structure, moved)
            prior = np.concatenate([x[:, field] for field in PRIOR], axis=1)
            body = reference_pepnet.PEPNet(*params.body)
            h = reference_pepnet.hidden(body, u, SCENARIO, prior, seen)
            return float(WEIGHT @ reference.dense(params.output, h)[:, 0])

        slope = reference.numeric_gradient(along, np.zeros(()))
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-3, atol=3e-4)
    by_x = np.asarray(ours[2])
    assert (np.abs(by_x[:, list(PRIOR)]).max() > 1e-4) != epnet_only
    np.testing.assert_array_equal(by_x[:, [1, 3]], np.zeros((B, 2, D)))


def test_a_gate_is_twice_a_sigmoid(draw: Draw) -> None:
    unit, exact = draw(declare_gate_unit(7, 5))
    prior, prior64 = draw(declare_array((B, 7)))
    gate = gate_unit(unit, prior)
    rows = [reference_pepnet.gate(exact, row[:3], row[3:]) for row in prior64]
    close(gate, np.array(rows))
    assert gate.min() > 0
    assert 1 < gate.max() < 2


def silenced(params: PersonalizedParams) -> PersonalizedParams:
    """Gates whose last layer is zero."""

    def zero(unit: GateUnit) -> GateUnit:
        return unit._replace(output=jax.tree.map(jnp.zeros_like, unit.output))

    return params._replace(
        embedding_gate=zero(params.embedding_gate),
        layer_gates=tuple(map(zero, params.layer_gates)),
    )


@ONLY
def test_gates_with_a_zero_last_layer_leave_a_plain_network(epnet_only: bool, draw: Draw) -> None:
    head = pepnet(PRIOR, 6, epnet_only)
    params, exact = draw(head.declare(SIZES, I).params)
    rows = Rows(draw)
    params = params._replace(body=silenced(params.body))
    output, _ = head.apply(params, (), rows.hidden, rows.inputs, EVALUATION)
    plain = reference.mlp_linear_last([*exact.body.layers, exact.output], rows.u)
    close(output.logits, plain[:, 0])


def test_no_gradient_reaches_the_input_through_a_gate(draw: Draw) -> None:
    """Gates that read u, with everything else cut off from it: nothing is left."""
    head = pepnet(PRIOR, 6)
    params, _ = draw(head.declare(SIZES, I).params)
    rows = Rows(draw)
    nowhere = jnp.zeros_like(params.body.layers[0].kernel)
    layer = params.body.layers[0]._replace(kernel=nowhere)
    cut = params._replace(body=params.body._replace(layers=(layer,)))

    def logits(hidden: jax.Array) -> jax.Array:
        return head.apply(cut, (), hidden, rows.inputs, EVALUATION)[0].logits

    assert np.abs(logits(rows.hidden) - logits(rows.hidden + 1)).max() > 1e-4
    gradient = jax.grad(lambda hidden: logits(hidden).sum())(rows.hidden)
    np.testing.assert_array_equal(gradient, np.zeros((B, I)))


def gradient_of(backbone: Backbone) -> Callable[[Any, Inputs], Any]:
    """By the parameters, of a sum of real rows' logits that weighs each row differently."""

    def loss(params: Any, inputs: Inputs) -> jax.Array:
        output, _ = backbone.apply(params, (), inputs, TRAIN)
        return jnp.where(inputs.mask, jnp.float32(WEIGHT) * output.logits, 0.0).sum()

    return jax.jit(jax.grad(loss))


def test_d3_as_the_head_gives_its_attention_and_gate(draw: Draw) -> None:
    backbone = pepnet_backbone(d3(D3Options(field_hidden=2, width=5)), PRIOR, PEPNetOptions((6, 5)))
    params, _ = draw(backbone.declare(SIZES).params)
    rows = Rows(draw)
    output, _ = jax.eval_shape(lambda x: backbone.apply(params, (), x, EVALUATION), rows.inputs)
    assert (output.attention.shape, output.gate.shape) == ((B, N, N), (B, 2))


def test_an_absent_scenario_is_left_alone(draw: Draw) -> None:
    backbone = pepnet_backbone(towers((4,)), PRIOR, PEPNetOptions((6, 5)))
    params, _ = draw(backbone.declare(SIZES).params)
    inputs = Rows(draw).inputs._replace(scenario=jnp.arange(B) % 2)
    learnt = gradient_of(backbone)(params, inputs)
    for leaf in (learnt.body.scenario, *jax.tree.leaves(learnt.head)):
        np.testing.assert_array_equal(leaf[2], np.zeros_like(leaf[2]))
        assert np.abs(leaf[0]).max() > 0
        assert np.abs(leaf[1]).max() > 0


def test_scenarios_answer_a_row_differently(draw: Draw) -> None:
    head = pepnet(PRIOR, 6)
    params, _ = draw(head.declare(SIZES, I).params)
    rows = Rows(draw)
    same = Inputs(jnp.repeat(rows.inputs.x[:1], S, 0), jnp.arange(S), jnp.ones(S, bool))
    output, _ = head.apply(params, (), jnp.repeat(rows.hidden[:1], S, 0), same, EVALUATION)
    assert np.diff(np.sort(output.logits)).min() > 1e-4


@pytest.mark.parametrize("n", [7, 23])
def test_shapes_and_parameter_count(n: int) -> None:
    f = n * 16
    sizes = Sizes(n, 16, 3)
    params = pepnet((0, 1)).declare(sizes, f).params
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [
        (3, 16),
        *[(16 + f, f), (f,), (f, f), (f,)],
        *[(f, 128), (128,)],
        *[(32 + f, 128), (128,), (128, 128), (128,)],
        *[(128, 1), (1,)],
    ]
    counted = reference_pepnet.parameter_count(f, 16, 3, 2, [128])
    assert count(params) == counted + 129
    assert count(pepnet((0, 1), epnet_only=True).declare(sizes, f).params) == (
        reference_pepnet.parameter_count(f, 16, 3, 2, [128], gated=False) + 129
    )
    backbone = pepnet_backbone(towers((32,)), (0, 1), PEPNetOptions())
    tower = 3 * (64 * 32 + 32 + 33)
    assert count(backbone.declare(sizes).params) == (
        reference_pepnet.parameter_count(f, 16, 3, 2, [128, 64]) + tower
    )


def test_gates_start_near_one(key: jax.Array, draw: Draw) -> None:
    declared = pepnet((0, 1)).declare(Sizes(7, 16, 3), 112).params
    params = jax.jit(lambda key: initialize(declared, key))(key).body
    for unit, fans in ((params.embedding_gate, 224), (params.layer_gates[0], 256)):
        assert 0.98 * np.sqrt(6 / fans) < np.abs(unit.output.kernel).max() <= np.sqrt(6 / fans)
        assert not unit.output.bias.any()
    prior, _ = draw(declare_array((B, 128)), 0.05)
    gate = gate_unit(params.embedding_gate, prior)
    assert gate.mean() == pytest.approx(1.0, abs=0.02)
    assert np.abs(gate - 1).max() < 0.2


def test_prior_fields_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"prior field 9 is outside \[0, 4\)"):
        pepnet((2, 9)).declare(SIZES, I)
    with pytest.raises(ConfigError, match="PPNet's gates need a prior field; name one, or use"):
        pepnet(()).declare(SIZES, I)


def test_epnet_alone_needs_no_prior_field(draw: Draw) -> None:
    head = pepnet((), 6, epnet_only=True)
    params, exact = draw(head.declare(SIZES, I).params)
    data = Rows(draw)
    output, _ = head.apply(params, (), data.hidden, data.inputs, EVALUATION)
    data.prior = np.zeros((B, 0))
    close(output.logits, by_reference(exact, data))

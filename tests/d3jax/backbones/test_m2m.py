from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.backbones.m2m import M2MHeadParams, M2MOptions, M2MParams, m2m, m2m_head
from d3jax.base import EVALUATION, Backbone, Generator, Inputs, Mode, Output, Sizes
from d3jax.heads import D3Options, D3Params, d3, d3_generator, towers
from d3jax.meta import MetaParams, meta_generator
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference
from tests.d3jax.backbones import reference_m2m

B, N, D, S, K = 7, 3, 4, 3, 2
SMALL = M2MOptions(experts=K, width=3, knowledge=5, layers=(5,))
DEEP = replace(SMALL, meta_layers=2, tower_blocks=2)
D3 = D3Options(field_hidden=2, gate_layers=(6,))
META = meta_generator(SMALL.knowledge)
SCENARIO = np.array([2, 0, 0, 2, 1, 0, 1], np.int32)
WEIGHT = np.linspace(-1.0, 2.0, B)
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=5e-5)


class Case:
    """Backbone, drawn parameters and rows, and both in float64."""

    def __init__(self, draw: Draw, backbone: Backbone, rows: int = B, scenarios: int = S) -> None:
        self.backbone = backbone
        self.params, self.exact = draw(backbone.declare(Sizes(N, D, scenarios)).params)
        x, self.x = draw(declare_array((rows, N, D)))
        self.scenario = SCENARIO[:rows] % scenarios
        self.inputs = Inputs(x, jnp.asarray(self.scenario), jnp.ones(rows, bool))

    def run(self, inputs: Inputs, mode: Mode = EVALUATION) -> Output:
        output, state = self.backbone.apply(self.params, (), inputs, mode)
        assert state == ()
        return output

    @property
    def gradient(self) -> Callable[[Inputs], Any]:
        """By the parameters, of a sum of real rows' logits that weighs each row differently."""

        def loss(params: Any, inputs: Inputs) -> jax.Array:
            logits = self.backbone.apply(params, (), inputs, Mode(train=True))[0].logits
            return jnp.where(inputs.mask, jnp.float32(WEIGHT) * logits, 0.0).sum()

        return partial(jax.jit(jax.grad(loss)), self.params)


def meta_sites(p: MetaParams, scenario: np.ndarray) -> list[reference_m2m.Site]:
    """Every row's layers from its scenario."""
    generators = [
        ((g.kernel.reshape(len(g.kernel), -1), g.kernel_offset.ravel()), g.bias) for g in p.layers
    ]
    inputs = [g.kernel.shape[1] for g in p.layers]
    return reference_m2m.meta_sites(p.scenario, p.knowledge, generators, inputs, scenario)


def d3_sites(
    p: D3Params, x: np.ndarray
) -> tuple[list[reference_m2m.Site], np.ndarray, np.ndarray | None]:
    """Every row's layers from its selected fields, the attention's logits and the gate."""
    logits = reference.attention_logits(p.attention.query, p.attention.key, x)
    selected = reference.selected_text(logits, x)
    hidden = reference.generator_hidden(*p.hidden, selected)
    gate = p.gate and reference.gate([*p.gate.hidden, p.gate.output], selected)
    sites = []
    for layer in p.layers:
        own = layer.generator
        weight = own.kernel.reshape(len(own.kernel), -1), own.kernel_offset.ravel()
        parts = reference.specific_parts(weight, own.bias, hidden, own.kernel.shape[1])
        if gate is not None:
            shared = layer.shared
            parts = tuple(
                reference.fuse(gate, part, common, "multiplicative")
                for part, common in zip(parts, (shared.kernel, shared.bias), strict=True)
            )
        sites.append(parts)
    return sites, logits, gate


def expected(
    p: M2MParams, x: np.ndarray, sites: list[reference_m2m.Site], options: M2MOptions
) -> np.ndarray:
    """The logits with the given generated layers."""
    depth = options.meta_layers
    units = [sites[first : first + depth] for first in range(0, len(sites), depth)]
    fixed = reference_m2m.M2M(
        experts=list(zip(*p.experts, strict=True)),
        task=p.task,
        view=p.view,
        score=p.score.kernel[:, 0],
        head=p.tail,
    )
    return reference_m2m.m2m(fixed, x, units[0], units[1:], options.inner_activation)


@pytest.mark.parametrize(
    ("options", "rows", "scenarios"),
    [
        (SMALL, B, S),
        (DEEP, B, S),
        (replace(SMALL, inner_activation=True), B, S),
        (replace(DEEP, inner_activation=True, layers=()), B, S),
        (DEEP, B, 1),
        (DEEP, 1, S),
    ],
    ids=["default", "deep", "inner activation", "deep, inner", "one scenario", "one row"],
)
def test_values(options: M2MOptions, rows: int, scenarios: int, draw: Draw) -> None:
    case = Case(draw, m2m(META, options), rows, scenarios)
    sites = meta_sites(case.exact.generator, case.scenario)
    logits = expected(case.exact, case.x, sites, options)
    for mode in (EVALUATION, Mode(train=True)):
        output = case.run(case.inputs, mode)
        close(output.logits, logits)
        assert output.attention is output.gate is None
    assert rows == 1 or np.ptp(logits) > 0.1


@pytest.mark.parametrize("parts", ["d1", "d2"])
@pytest.mark.parametrize("options", [SMALL, DEEP], ids=["one layer", "deep"])
def test_values_with_layers_that_d3_generates(parts: Any, options: M2MOptions, draw: Draw) -> None:
    case = Case(draw, m2m(d3_generator(replace(D3, parts=parts)), options))
    output = case.run(case.inputs)
    sites, attention, gate = d3_sites(case.exact.generator, case.x)
    close(output.logits, expected(case.exact, case.x, sites, options))
    close(output.attention, attention)
    if parts == "d1":
        assert output.gate is None
    else:
        close(output.gate, gate)


def test_values_of_the_plain_attention(draw: Draw) -> None:
    case = Case(draw, m2m_head(towers((4,)), SMALL))
    p = case.exact
    mixed = reference_m2m.plain_attention(
        list(zip(*p.experts, strict=True)), p.score.kernel[:, 0], case.x
    )
    each = [[(q.kernel[s], q.bias[s]) for q in p.head] for s in range(S)]
    logits = reference.towers([q[:-1] for q in each], [q[-1] for q in each], mixed, SCENARIO)
    close(case.run(case.inputs).logits, logits)


def test_the_plain_attention_knows_no_scenario(draw: Draw) -> None:
    """With D3 as its head, a row is the same in every scenario but for its fields."""
    case = Case(draw, m2m_head(d3(D3), SMALL))
    assert isinstance(case.params, M2MHeadParams)
    output = case.run(case.inputs)
    moved = case.inputs._replace(scenario=(case.inputs.scenario + 1) % S)
    np.testing.assert_array_equal(case.run(moved).logits, output.logits)
    assert output.attention is not None
    assert output.gate is not None
    assert (output.attention.shape, output.gate.shape) == ((B, N, N), (B, 2))


def test_gradients_are_the_slopes_of_the_reference(draw: Draw) -> None:
    case = Case(draw, m2m(META, DEEP))
    leaves, structure = jax.tree.flatten(case.exact)
    for position, ours in enumerate(jax.tree.leaves(case.gradient(case.inputs))):
        direction = np.random.default_rng(position).normal(size=ours.shape)

        def along(step: np.ndarray, position: int = position, d: np.ndarray = direction) -> float:
            moved = [*leaves]
            moved[position] = moved[position] + step * d
            p = jax.tree.unflatten(structure, moved)
            sites = meta_sites(p.generator, case.scenario)
            return float(WEIGHT @ expected(p, case.x, sites, DEEP))

        slope = reference.numeric_gradient(along, np.zeros(()))
        np.testing.assert_allclose((ours * direction).sum(), slope, rtol=3e-3, atol=1e-3)


BACKBONES: dict[str, tuple[Generator | None, D3Options]] = {
    "d2 sites": (d3_generator(D3), D3),
    "d2 head": (None, replace(D3, width=4)),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_learns(name: str, draw: Draw) -> None:
    generator, config = BACKBONES[name]
    backbone = m2m_head(d3(config), SMALL) if generator is None else m2m(generator, SMALL)
    case = Case(draw, backbone)
    for path, leaf in jax.tree.leaves_with_path(case.gradient(case.inputs)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_an_absent_scenario_is_left_alone(draw: Draw) -> None:
    case = Case(draw, m2m(META, SMALL))
    table = case.gradient(case.inputs._replace(scenario=jnp.arange(B) % 2)).generator.scenario
    np.testing.assert_array_equal(table[2], np.zeros(D))
    assert np.abs(table[:2]).max(axis=1).min() > 0


def test_scenarios_answer_a_row_differently(draw: Draw) -> None:
    case = Case(draw, m2m(META, SMALL))
    rows = Inputs(jnp.repeat(case.inputs.x[:1], S, 0), jnp.arange(S), jnp.ones(S, bool))
    assert np.diff(np.sort(case.run(rows).logits)).min() > 1e-3


def test_shapes_and_parameter_count() -> None:
    params = m2m(meta_generator(16), M2MOptions()).declare(Sizes(7, 16, 3)).params
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [
        *[(4, 112, 16), (4, 16)],
        *[(16,), (16, 16), (16,)],
        *[(3, 16), (16, 16), (16,)],
        *[(16, 32, 32), (32, 32), (16, 32), (32,)],
        *[(16, 16, 16), (16, 16), (16, 16), (16,)],
        (32, 1),
        *[(16, 64), (64,), (64, 32), (32,), (32, 1), (1,)],
    ]
    counted = reference_m2m.parameter_count(112, 16, 3, 4, 16, 16, 1, 1, (64, 32))
    assert count(params) == counted
    deep = M2MOptions(3, 8, 10, meta_layers=3, tower_blocks=2, layers=(7,))
    declared = m2m(meta_generator(10), deep).declare(Sizes(23, 8, 1))
    counted = reference_m2m.parameter_count(184, 8, 1, 3, 8, 10, 3, 2, (7,))
    assert count(declared.params) == counted


def test_initial_values(key: jax.Array) -> None:
    declared = m2m(META, M2MOptions(width=40)).declare(Sizes(7, 100, 3)).params
    params = jax.jit(lambda key: initialize(declared, key))(key)
    assert params.task.std() == pytest.approx(0.05, rel=0.2)
    for layer, fans in ((params.experts, 740), (params.view, 140), (params.score, 81)):
        assert 0.9 * np.sqrt(6 / fans) < np.abs(layer.kernel).max() < 1.0001 * np.sqrt(6 / fans)
    assert params.score.bias is None
    for bias in (params.experts.bias, params.view.bias):
        np.testing.assert_array_equal(bias, np.zeros_like(bias))

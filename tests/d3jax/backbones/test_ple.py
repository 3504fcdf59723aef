from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.backbones.ple import LevelParams, PLEOptions, PLEParams, ple
from d3jax.base import EVALUATION, Inputs, Mode, Output, Sizes
from d3jax.heads import D3Options, d3, dense_head
from d3jax.parameters import count, declare_array
from tests.conftest import Draw
from tests.d3jax import reference

B, N, D, S = 9, 3, 4, 3
SMALL = PLEOptions(levels=2, own_experts=2, shared_experts=3, layers=(5, 4))
HEADS = {"dense": dense_head(()), "d3": d3(D3Options(field_hidden=2, width=5))}
TRAIN = Mode(train=True)


def make(
    draw: Draw,
    options: PLEOptions = SMALL,
    *,
    head: str = "dense",
    scenarios: int = S,
    rows: int = B,
) -> tuple[Any, PLEParams, Inputs, PLEParams, np.ndarray]:
    """Backbone, drawn parameters and rows of every scenario, and both in float64."""
    backbone = ple(HEADS[head], options)
    params, exact = draw(backbone.declare(Sizes(N, D, scenarios)).params)
    x, x64 = draw(declare_array((rows, N, D)))
    inputs = Inputs(x, jnp.arange(rows) * 2 % scenarios, jnp.ones(rows, bool))
    return backbone, params, inputs, exact, x64.reshape(rows, -1)


def run(backbone: Any, params: PLEParams, inputs: Inputs, mode: Mode = EVALUATION) -> Output:
    output, state = jax.jit(backbone.apply, static_argnums=3)(params, (), inputs, mode)
    assert state == ()
    return output


def expert(layers: Any, index: int, h: np.ndarray) -> np.ndarray:
    return reference.mlp([(layer.kernel[index], layer.bias[index]) for layer in layers], h)


def level(
    p: LevelParams, own: list[np.ndarray], shared: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Customised gate control for one row: a path per scenario and the shared one."""
    each = len(p.own[0].kernel) // len(own)
    mine = [[expert(p.own, s * each + e, h) for e in range(each)] for s, h in enumerate(own)]
    common = [expert(p.shared, e, shared) for e in range(len(p.shared[0].kernel))]
    up = [
        reference.softmax(h @ p.gates.kernel[s]) @ np.array(mine[s] + common)
        for s, h in enumerate(own)
    ]
    if p.shared_gate is None:
        return up, None
    everyone = np.array([output for experts in mine for output in experts] + common)
    return up, reference.softmax(shared @ p.shared_gate.kernel) @ everyone


def expected(exact: PLEParams, flat: np.ndarray, scenario: np.ndarray) -> np.ndarray:
    hidden = []
    for row, s in zip(flat, scenario, strict=True):
        own, shared = [row] * len(exact.levels[0].gates.kernel), row
        for params in exact.levels:
            own, shared = level(params, own, shared)
        hidden.append(own[s])
    return reference.mlp_linear_last(exact.head, np.array(hidden))[:, 0]


@pytest.mark.parametrize(
    ("levels", "scenarios", "rows", "mode"),
    [
        (1, 3, 9, EVALUATION),
        (2, 3, 9, TRAIN),
        (3, 3, 9, EVALUATION),
        (2, 1, 4, TRAIN),
        (2, 3, 1, EVALUATION),
    ],
)
def test_values(levels: int, scenarios: int, rows: int, mode: Mode, draw: Draw) -> None:
    options = replace(SMALL, levels=levels)
    backbone, params, inputs, exact, flat = make(draw, options, scenarios=scenarios, rows=rows)
    logits = expected(exact, flat, np.asarray(inputs.scenario))
    assert np.ptp(logits) > 0.1 or rows == 1
    output = run(backbone, params, inputs, mode)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)


def gradient_of(backbone: Any) -> Callable[[PLEParams, Inputs], PLEParams]:
    """By the parameters, of a sum of real rows' logits that weighs each row differently."""

    def loss(params: PLEParams, inputs: Inputs) -> jax.Array:
        output, _ = backbone.apply(params, (), inputs, TRAIN)
        return jnp.where(inputs.mask, output.logits * jnp.cos(jnp.arange(1.0 * B)), 0.0).sum()

    return jax.jit(jax.grad(loss))


def test_d3_as_the_head_gives_its_attention_and_gate(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw, head="d3")
    output, _ = jax.eval_shape(lambda x: backbone.apply(params, (), x, TRAIN), inputs)
    assert (output.attention.shape, output.gate.shape) == ((B, N, N), (B, 2))


def test_absent_scenario_learns_below_the_last_level_alone(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw)
    inputs = inputs._replace(scenario=jnp.arange(B) % 2)
    first, last = gradient_of(backbone)(params, inputs).levels
    for kernel in (first.gates.kernel, last.gates.kernel, last.own[0].kernel, last.own[1].bias):
        each = len(kernel) // S
        assert np.abs(kernel[: 2 * each]).max() > 0
        np.testing.assert_array_equal(kernel[2 * each :], np.zeros_like(kernel[2 * each :]))
    assert np.abs(first.own[0].kernel[4:]).max() > 0


def test_scenarios_differ(draw: Draw) -> None:
    backbone, params, inputs, _, _ = make(draw)
    same = inputs._replace(x=jnp.broadcast_to(inputs.x[:1], inputs.x.shape))
    assert len(set(np.asarray(run(backbone, params, same).logits[:S]).round(4).tolist())) == S


@pytest.mark.parametrize("scenarios", [1, 3])
def test_parameter_count(scenarios: int) -> None:
    backbone = ple(dense_head(()), PLEOptions(2, 3, 2, (10, 7)))
    experts = 3 * scenarios + 2
    first = experts * (12 * 10 + 10 + 10 * 7 + 7) + scenarios * 12 * 5 + 12 * experts
    last = experts * (7 * 10 + 10 + 10 * 7 + 7) + scenarios * 7 * 5
    assert count(backbone.declare(Sizes(N, D, scenarios)).params) == first + last + 8

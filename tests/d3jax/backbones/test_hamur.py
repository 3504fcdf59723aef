from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.backbones.hamur import HAMUROptions, HAMURParams, HAMURState, LowRank, hamur
from d3jax.base import EVALUATION, Inputs, Mode, Output, Sizes
from d3jax.errors import ConfigError
from d3jax.heads import D3Options, d3, dense_head
from d3jax.parameters import count, declare_array
from tests.conftest import Draw
from tests.d3jax import reference

B, N, D, S = 8, 3, 4, 3
SMALL = HAMUROptions((6, 5), adapters=1, adapter_width=4, rank=2, hyper_layers=(3,))
HEADS = {"dense": dense_head(()), "d3": d3(D3Options(field_hidden=2, width=5))}
TRAIN = Mode(train=True)
MASK = np.array([True, True, True, True, True, True, False, True])
SCENARIO = np.array([0, 2, 0, 0, 2, 2, 2, 1])


class Case:
    """Backbone, drawn parameters, state and rows, and all of them in float64."""

    def __init__(
        self,
        draw: Draw,
        options: HAMUROptions = SMALL,
        head: str = "dense",
        scenarios: int = S,
        rows: int = B,
    ) -> None:
        self.backbone = hamur(HEADS[head], options)
        declared = self.backbone.declare(Sizes(N, D, scenarios))
        self.params, self.exact = draw(declared.params)
        self.state = jax.tree.map(lambda leaf: abs(leaf) + 0.3, draw(declared.state)[0])
        self.moments = jax.tree.map(np.float64, self.state.moments)
        x, x64 = draw(declare_array((rows, N, D)))
        self.scenario, self.mask = SCENARIO[:rows] % scenarios, MASK[:rows]
        self.inputs = Inputs(x, jnp.asarray(self.scenario), jnp.asarray(self.mask))
        self.flat = x64.reshape(rows, -1)
        self.gradient = jax.jit(jax.grad(self.loss))

    def run(self, inputs: Inputs, mode: Mode = EVALUATION) -> tuple[Output, HAMURState]:
        apply = jax.jit(self.backbone.apply, static_argnums=3)
        return apply(self.params, self.state, inputs, mode)

    def loss(self, params: HAMURParams, inputs: Inputs) -> jax.Array:
        """A sum of real rows' logits that weighs each row differently."""
        output, _ = self.backbone.apply(params, self.state, inputs, TRAIN)
        return jnp.where(inputs.mask, output.logits * jnp.cos(jnp.arange(1.0 * B)), 0.0).sum()


def low_rank(p: LowRank, core: np.ndarray, h: np.ndarray, s: int) -> np.ndarray:
    """One row through the kernel U G V, formed in full."""
    s = s % len(p.left.kernel)
    return h @ (p.left.kernel[s] @ core @ p.right.kernel[s]) + p.right.bias[s]


def domain_norm(
    norm: Any, moments: Any, change: np.ndarray, case: Case, train: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows normalised scenario by scenario, and the running moments afterwards."""
    mean, var = moments.mean.copy(), moments.variance.copy()
    new_mean, new_var = mean.copy(), var.copy()
    for s in range(len(mean)):
        member = (case.scenario == s) & case.mask
        if train and member.sum() >= 2:
            mean[s], var[s] = change[member].mean(0), change[member].var(0)
            new_mean[s] = 0.9 * new_mean[s] + 0.1 * mean[s]
            new_var[s] = 0.9 * new_var[s] + 0.1 * var[s]
    s = case.scenario
    out = reference.normalise(change, mean[s], var[s], norm.scale[s], norm.offset[s])
    return out, new_mean, new_var


def expected(case: Case, train: bool) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    exact, rank = case.exact, case.exact.adapters[0].down.left.kernel.shape[-1]
    cores = reference.mlp_linear_last(exact.hyper, case.flat).reshape(-1, rank, rank)
    h, moments = case.flat, []
    for place, layer in enumerate(exact.layers):
        rows = zip(h, case.scenario, strict=True)
        h = np.array([reference.relu(r @ layer.kernel[s] + layer.bias[s]) for r, s in rows])
        number = place - (len(exact.layers) - len(exact.adapters))
        if number < 0:
            continue
        adapter, change = exact.adapters[number], []
        for row, core, s in zip(h, cores, case.scenario, strict=True):
            narrow = reference.sigmoid(low_rank(adapter.down, core, row, s))
            change.append(low_rank(adapter.up, core, narrow, s))
        normed, *new = domain_norm(
            adapter.norm, case.moments[number], np.array(change), case, train
        )
        h = h + normed
        moments.append(tuple(new))
    return reference.mlp_linear_last(exact.head, h)[:, 0], moments


@pytest.mark.parametrize(
    ("options", "scenarios", "rows"),
    [
        (SMALL, 3, 8),
        (replace(SMALL, adapters=2), 3, 8),
        (replace(SMALL, shared_factors=True), 3, 8),
        (SMALL, 1, 4),
        (SMALL, 3, 1),
    ],
    ids=["one adapter", "two adapters", "shared factors", "one scenario", "one row"],
)
def test_values_and_moments(options: HAMUROptions, scenarios: int, rows: int, draw: Draw) -> None:
    case = Case(draw, options, scenarios=scenarios, rows=rows)
    for mode in (EVALUATION, TRAIN):
        logits, moments = expected(case, mode.train)
        output, state = case.run(case.inputs, mode)
        real = case.mask
        np.testing.assert_allclose(output.logits[real], logits[real], rtol=1e-3, atol=1e-4)
        for ours, theirs in zip(state.moments, moments, strict=True):
            np.testing.assert_allclose(ours.mean, theirs[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(ours.variance, theirs[1], rtol=1e-4, atol=1e-5)


def test_d3_as_the_head_gives_its_attention_and_gate(draw: Draw) -> None:
    case = Case(draw, head="d3")
    output, _ = jax.eval_shape(lambda x: case.run(x, TRAIN), case.inputs)
    assert (output.attention.shape, output.gate.shape) == ((B, N, N), (B, 2))


def test_absent_scenario_is_left_alone(draw: Draw) -> None:
    case = Case(draw)
    inputs = case.inputs._replace(scenario=jnp.asarray(case.scenario % 2))
    learnt = case.gradient(case.params, inputs)
    for leaf in jax.tree.leaves((learnt.layers, learnt.adapters)):
        assert np.abs(leaf[:2]).max() > 0
        np.testing.assert_array_equal(leaf[2], np.zeros_like(leaf[2]))
    _, state = case.run(inputs, TRAIN)
    for new, old in zip(state.moments[0], case.state.moments[0], strict=True):
        np.testing.assert_array_equal(new[2], old[2])
        assert np.abs(new[0] - old[0]).max() > 1e-3


def test_eight_devices_equal_one(draw: Draw) -> None:
    case = Case(draw)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mode = Mode(True, "data")
    many = jax.shard_map(
        lambda inputs: case.backbone.apply(case.params, case.state, inputs, mode),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=(P("data"), P()),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.jit(many)(case.inputs),
        case.run(case.inputs, TRAIN),
    )


def test_scenarios_differ(draw: Draw) -> None:
    case = Case(draw)
    same = jnp.broadcast_to(case.inputs.x[:1], (B, N, D))
    inputs = Inputs(same, jnp.arange(B) % S, jnp.ones(B, bool))
    assert len(set(np.asarray(case.run(inputs)[0].logits).round(4).tolist())) == S


@pytest.mark.parametrize(("scenarios", "shared"), [(1, False), (3, False), (3, True)])
def test_parameter_count(scenarios: int, shared: bool) -> None:
    options = HAMUROptions((10, 7), 2, 6, 3, (5,), shared)
    declared = hamur(dense_head(()), options).declare(Sizes(N, D, scenarios))
    network = scenarios * (12 * 10 + 10 + 10 * 7 + 7)
    factors = sum((w * 3 + 3 * 6 + 6) + (6 * 3 + 3 * w + w) for w in (10, 7))
    norms = scenarios * 2 * (10 + 7)
    hyper = 12 * 5 + 5 + 5 * 9 + 9
    total = network + (1 if shared else scenarios) * factors + norms + hyper + 8
    assert count(declared.params) == total
    assert count(declared.state) == norms


def test_more_adapters_than_layers_are_refused() -> None:
    message = r"hamur.adapters is 3, but hamur.layers has only 2; use fewer adapters or more layers"
    with pytest.raises(ConfigError, match=message):
        hamur(dense_head(()), HAMUROptions((8, 8), adapters=3))

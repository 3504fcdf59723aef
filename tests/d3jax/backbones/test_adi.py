from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.backbones.adi import (
    ADIOptions,
    ADIParams,
    InterestParams,
    adi,
    forward_head,
    interest_networks,
)
from d3jax.backbones.star import StarDense
from d3jax.base import EVALUATION, Head, Inputs, Mode, Sizes
from d3jax.heads import D3Options, d3, d3_generator
from d3jax.layers.normalization import Moments
from d3jax.parameters import count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference
from tests.d3jax.backbones import reference_adi
from tests.d3jax.backbones.test_m2m import d3_sites

B, N, D, S = 12, 3, 4, 3
TRAIN = Mode(train=True)
SMALL = ADIOptions(layers=(6, 5), forward_width=8, head_layers=(5,))
RICH = replace(SMALL, norm="per_layer", shared_networks=2, mixture="ratio", forward="star")
OPTIONS: dict[str, ADIOptions] = {
    "default": SMALL,
    "sigmoid": replace(SMALL, excitation="sigmoid"),
    "twice the sigmoid": replace(SMALL, excitation="2sigmoid"),
    "norm per layer": replace(SMALL, norm="per_layer"),
    "three shared": replace(SMALL, shared_networks=3),
    "star": replace(SMALL, forward="star"),
    "one layer, no head layers": replace(SMALL, layers=(5,), head_layers=()),
    "rich": RICH,
}
D3 = D3Options(field_hidden=2, width=5, gate_layers=(6,))
HEADS: dict[str, Head] = {"d1": d3(replace(D3, parts="d1")), "d2": d3(D3)}
MASK = np.array([True] * 9 + [False] * 3)
ALL = np.array([2, 0, 0, 2, 1, 0, 2, 1, 1, 0, 1, 2], np.int32)
TWO = np.array([2, 0, 0, 2, 2, 0, 2, 0, 0, 0, 0, 2], np.int32)
LONE = np.array([2, 0, 0, 2, 1, 0, 2, 0, 0, 0, 1, 2], np.int32)
close = partial(np.testing.assert_allclose, rtol=2e-4, atol=5e-5)


class Case:
    """A backbone with drawn parameters and statistics, the same in float64, and a batch."""

    def __init__(self, name: str, head: str, scenarios: int, raw: bool) -> None:
        generator = np.random.default_rng(20240226)

        def draw(declaration: Any) -> Any:
            return jax.tree.map(
                lambda p: np.float32(0.7 * generator.normal(size=p.shape)), declaration
            )

        def positive(state: Any) -> Any:
            return jax.tree.map(
                lambda moments: Moments(moments.mean, abs(moments.variance) + 0.3),
                state,
                is_leaf=lambda node: isinstance(node, Moments),
            )

        self.options = replace(OPTIONS[name], d3_reads="raw" if raw else "adapted")
        own = interest_networks(self.options)
        self.backbone = adi(HEADS.get(head, own), self.options)
        declared = self.backbone.declare(Sizes(N, D, scenarios))
        drawn = draw(declared.params), positive(draw(declared.state)), draw(shape(B, N, D))
        self.params, self.state, self.x = jax.tree.map(jnp.asarray, drawn)
        self.exact, self.exact_state, self.x64 = jax.tree.map(np.float64, drawn)
        self.run = jax.jit(partial(self.backbone.apply, self.params, self.state), static_argnums=1)
        self.gradient = jax.jit(
            lambda inputs: jax.grad(self.loss, argnums=(0, 1))(self.params, inputs.x, inputs)
        )

    def loss(self, params: ADIParams, x: jax.Array, inputs: Inputs) -> jax.Array:
        """A weighted sum of the real rows' logits in training."""
        output, _ = self.backbone.apply(params, self.state, inputs._replace(x=x), TRAIN)
        weight = jnp.linspace(-1.0, 2.0, len(output.logits))
        return jnp.where(inputs.mask, weight * output.logits, 0.0).sum()

    def inputs(self, scenario: np.ndarray = ALL, mask: np.ndarray = MASK) -> Inputs:
        return Inputs(self.x, jnp.asarray(scenario), jnp.asarray(mask))

    def adapted(self, p: ADIParams, x: np.ndarray, scenario: np.ndarray, train: bool) -> Any:
        """The adapted embeddings by the reference, and the input's moments afterwards."""
        adaptation = reference_adi.Adaptation(
            norm=reference_adi.Norm(*p.norm, *self.exact_state.norm),
            squeeze=list(zip(*p.squeeze, strict=True)),
            excite=list(zip(*p.excite, strict=True)),
        )
        return reference_adi.adapted(
            adaptation, x, scenario, MASK[: len(x)], train, self.options.excitation
        )

    def reference(self, p: ADIParams, x: np.ndarray, scenario: np.ndarray, train: bool) -> Any:
        """Logits and moments of ADI with its own networks."""
        x, moments = self.adapted(p, x, scenario, train)
        networks = interest(p.head, self.exact_state.head)
        logits, shared, own = reference_adi.interest(
            networks, x.reshape(len(x), -1), scenario, MASK[: len(x)], train, self.options.mixture
        )
        return logits, moments, shared, own


def shape(*sizes: int) -> Any:
    return declare_array(sizes)


def interest(p: InterestParams, state: Any) -> reference_adi.Interest:
    """The networks one by one; a shared one's norms are its share of the joint norm."""
    copies = len(p.shared[0].kernel)

    def part(arrays: Any, copy: int) -> reference_adi.Norm:
        return reference_adi.Norm(*(np.split(leaf, copies, axis=1)[copy] for leaf in arrays))

    norms = [
        ((*shared, *moments[0]), (*own, *moments[1]))
        for (shared, own), moments in zip(p.norms, state, strict=True)
    ]
    star = isinstance(p.forward, StarDense)
    own_forward = p.forward[2:] if star else p.forward
    return reference_adi.Interest(
        table=p.scenario,
        shared=[
            reference_adi.Network(
                [(layer.kernel[k], layer.bias[k]) for layer in p.shared],
                [part(joint, k) for joint, _ in norms],
            )
            for k in range(copies)
        ],
        mixer=p.mixture,
        own=[[(layer.kernel[s], layer.bias[s]) for layer in p.own] for s in range(len(p.scenario))],
        own_norms=[reference_adi.Norm(*own) for _, own in norms],
        for_own=p.own_scale,
        for_shared=p.shared_scale,
        forward=list(zip(*own_forward, strict=True)),
        shared_forward=p.forward[:2] if star else None,
        head=p.tail,
    )


@cache
def case(name: str = "rich", head: str = "own", scenarios: int = S, raw: bool = False) -> Case:
    """Made, and its functions compiled, once for all tests."""
    return Case(name, head, scenarios, raw)


CASES = [*((name, True) for name in OPTIONS), ("default", False), ("rich", False)]
"""Each option in training; evaluation differs by the statistics alone."""


@pytest.mark.parametrize(("name", "train"), CASES)
def test_values_and_moments(name: str, train: bool) -> None:
    model = case(name)
    output, state = model.run(model.inputs(), Mode(train=train))
    logits, moments, shared, own = model.reference(model.exact, model.x64, ALL, train)
    assert output.attention is output.gate is None
    assert np.ptp(logits) > 0.1
    close(output.logits, logits)
    jax.tree.map(close, tuple(state.norm), moments)
    assert len(state.head) == len(own) == (0 if model.options.norm == "input" else 2)
    for index, (ours_shared, ours_own) in enumerate(state.head):
        side_by_side = np.concatenate([network[index] for network in shared], axis=2)
        close(np.stack(ours_shared), side_by_side)
        jax.tree.map(close, tuple(ours_own), own[index])


@pytest.mark.parametrize(("parts", "raw"), [("d1", False), ("d2", True)])
def test_values_with_d3_as_the_head(parts: Any, raw: bool) -> None:
    model = case("default", parts, raw=raw)
    output, state = model.run(model.inputs(), TRAIN)
    adapted, moments = model.adapted(model.exact, model.x64, ALL, True)
    p = model.exact.head
    sites, attention, gate = d3_sites(p.generator, model.x64 if raw else adapted)
    outputs = reference.layer(adapted.reshape(B, -1), *sites[0])
    logits = reference.mlp_linear_last(p.tail, outputs)[:, 0]
    close(output.logits, logits)
    close(output.attention, attention)
    assert (output.gate is None) == (gate is None)
    if gate is not None:
        close(output.gate, gate)
    jax.tree.map(close, tuple(state.norm), moments)


def test_evaluation_keeps_the_state_and_training_moves_it() -> None:
    model = case()
    _, kept = model.run(model.inputs(), EVALUATION)
    jax.tree.map(np.testing.assert_array_equal, kept, model.state)
    _, trained = model.run(model.inputs(), TRAIN)
    for new, old in zip(jax.tree.leaves(trained), jax.tree.leaves(model.state), strict=True):
        assert np.abs(new - old).max() > 1e-3


@pytest.mark.slow
def test_gradients_are_the_slopes_of_the_reference() -> None:
    model = case()
    gradient = model.gradient(model.inputs())
    weight = np.linspace(-1, 2, B) * MASK
    leaves, structure = jax.tree.flatten((model.exact, model.x64))
    for position, ours in enumerate(jax.tree.leaves(gradient)):
        direction = np.random.default_rng(position).normal(size=ours.shape)

        def along(step: np.ndarray, position: int = position, d: np.ndarray = direction) -> float:
            moved = [*leaves]
            moved[position] = moved[position] + step * d
            params, x = jax.tree.unflatten(structure, moved)
            return float(weight @ model.reference(params, x, ALL, True)[0])

        slope = reference.numeric_gradient(along, np.zeros(()))
        np.testing.assert_allclose((ours * direction).sum(), slope, rtol=3e-3, atol=1e-3)


def own_leaves(p: ADIParams) -> list[jax.Array]:
    """Everything that is stacked over scenarios, with ADI's own networks as the head."""
    forward = p.head.forward[2:] if isinstance(p.head.forward, StarDense) else p.head.forward
    networks = [p.head.scenario, p.head.own, p.head.own_scale, p.head.shared_scale, forward]
    return jax.tree.leaves((p.norm, p.squeeze, p.excite, networks, p.head.norms))


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
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(model.state), strict=True):
        np.testing.assert_array_equal(new[1], old[1])
        assert np.abs(new[0] - old[0]).max() > 1e-3


def test_a_lone_row_is_normalised_by_its_scenarios_running_moments() -> None:
    model = case()
    trained, state = model.run(model.inputs(LONE), TRAIN)
    close(trained.logits, model.reference(model.exact, model.x64, LONE, True)[0])
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(model.state), strict=True):
        np.testing.assert_array_equal(new[1], old[1])


def test_one_scenario_and_a_batch_of_one() -> None:
    model = case("rich", scenarios=1)
    row = Inputs(model.x[:1], jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    output, state = model.run(row, TRAIN)
    logits = model.reference(model.exact, model.x64[:1], np.zeros(1, int), False)[0]
    close(output.logits, logits)
    jax.tree.map(np.testing.assert_array_equal, state, model.state)


@pytest.mark.parametrize("head", ["own", "d2"])
def test_scenarios_answer_a_row_differently(head: str) -> None:
    model = case("default", head)
    rows = Inputs(jnp.repeat(model.x[:1], S, 0), jnp.arange(S), jnp.ones(S, bool))
    assert np.diff(np.sort(model.run(rows, EVALUATION)[0].logits)).min() > 1e-3


@pytest.mark.parametrize(("n", "s"), [(7, 3), (23, 1)])
def test_shapes_and_parameter_count(n: int, s: int) -> None:
    declared = adi(interest_networks(ADIOptions()), ADIOptions()).declare(Sizes(n, 16, s))
    f, r = n * 16, (4 if n == 7 else 12)
    assert [leaf.shape for leaf in jax.tree.leaves(declared.params)] == [
        *[(s, f), (s, f)],
        *[(s, n, r), (s, r), (s, r, n), (s, n)],
        (s, 16),
        *[(1, f, 64), (1, 64), (1, 64, 32), (1, 32)],
        *[(s, f, 64), (s, 64), (s, 64, 32), (s, 32)],
        *[(s, 16), (s, 16)],
        *[(s, 96, 32), (s, 32)],
        *[(32, 64), (64,), (64, 16), (16,), (16, 1), (1,)],
    ]
    assert [leaf.shape for leaf in jax.tree.leaves(declared.state)] == [(s, f), (s, f)]
    counted = reference_adi.parameter_count(n, 16, s, (64, 32), 32, (64, 16))
    assert count(declared.params) == counted


def test_parameter_count_of_the_options() -> None:
    options = ADIOptions(shared_networks=3, norm="per_layer", forward="star")
    declared = adi(interest_networks(options), options).declare(Sizes(7, 16, 2))
    counted = reference_adi.parameter_count(7, 16, 2, (64, 32), 32, (64, 16), shared=3)
    star, norms = 96 * 32 + 32, 2 * 2 * (3 + 1) * (64 + 32)
    assert count(declared.params) == counted + star + norms
    assert count(declared.state) == 2 * 2 * 112 + norms


def test_the_adaptation_starts_near_one(key: jax.Array) -> None:
    declared = adi(interest_networks(ADIOptions()), ADIOptions()).declare(Sizes(7, 16, 3))
    params, state = jax.jit(lambda key: initialize(tuple(declared), key))(key)
    np.testing.assert_array_equal(params.excite.bias, np.ones((3, 7)))
    np.testing.assert_array_equal(params.norm.scale, np.ones((3, 112)))
    np.testing.assert_array_equal(params.norm.offset, np.zeros((3, 112)))
    np.testing.assert_array_equal(state.norm.mean, np.zeros((3, 112)))
    np.testing.assert_array_equal(state.norm.variance, np.ones((3, 112)))
    assert params.head.scenario.std() == pytest.approx(0.05, rel=0.3)
    own, shared = params.head.own_scale, params.head.shared_scale
    assert not np.array_equal(own, shared)
    for leaf, fans in ((own, 17), (shared, 17), (params.head.own[0].kernel, 176)):
        assert 0.9 * np.sqrt(6 / fans) < np.abs(leaf).max() < 1.0001 * np.sqrt(6 / fans)


@pytest.mark.parametrize("form", ["own", "star"])
@pytest.mark.slow
def test_a_kept_forward_network_reads_the_generated_layer(form: str, draw: Draw) -> None:
    options = ADIOptions(forward=form, forward_width=4, head_layers=(3,), keep_forward=True)
    with_forward = d3(D3, forward_head(options))
    sizes = Sizes(3, 4, 2)
    params, _ = draw(with_forward.declare(sizes, 6).params)
    (hidden, _), (x, _) = draw(declare_array((5, 6))), draw(declare_array((5, 3, 4)))
    inputs = Inputs(x, jnp.array([0, 1, 1, 0, 1]), jnp.ones(5, bool))
    ours, _ = with_forward.apply(params, (), hidden, inputs, EVALUATION)
    made = d3_generator(D3).generate(params.generator, inputs, EVALUATION)
    layer = np.maximum(np.asarray(made.layer(0, hidden), np.float64), 0)
    forward, (first, last) = params.tail.forward, params.tail.tail
    for row, scenario in enumerate(np.asarray(inputs.scenario)):
        if form == "own":
            kernel, bias = forward.kernel[scenario], forward.bias[scenario]
        else:
            kernel = forward.own_kernel[scenario] * forward.kernel
            bias = forward.own_bias[scenario] + forward.bias
        value = np.maximum(layer[row] @ np.asarray(kernel) + np.asarray(bias), 0)
        value = np.maximum(value @ np.asarray(first.kernel) + np.asarray(first.bias), 0)
        value = value @ np.asarray(last.kernel) + np.asarray(last.bias)
        np.testing.assert_allclose(ours.logits[row], value[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours.gate, made.gate)

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.backbones.sar_net import (
    ExpertMoments,
    SARNetOptions,
    SARNetParams,
    mixture,
    sar_net,
)
from d3jax.backbones.star import StarDense
from d3jax.base import EVALUATION, Backbone, Inputs, Mode, Output, Sizes
from d3jax.layers.normalization import Moments
from d3jax.parameters import Tree, count, declare_array, initialize
from tests.conftest import Draw
from tests.d3jax import reference
from tests.d3jax.backbones import reference_sar_net

B, N, D, S = 12, 3, 4, 3
TRAIN = Mode(train=True)
GATE = (6, 4)
MASK = np.array([True] * 9 + [False] * 3)
ALL = np.array([2, 0, 0, 2, 1, 0, 2, 1, 1, 0, 1, 2], np.int32)
TWO = np.array([2, 0, 0, 2, 2, 0, 2, 0, 0, 0, 0, 2], np.int32)
LONE = np.array([2, 0, 0, 2, 1, 0, 2, 0, 0, 0, 1, 2], np.int32)
OPTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None]] = {
    "plain": ({}, None),
    "group": ({}, GATE),
    "transform": ({"d3_place": "transform"}, GATE),
    "place without gate": ({"d3_place": "transform"}, None),
    "linear": ({"expert": "bn_linear"}, None),
    "linear, transform": ({"expert": "bn_linear", "d3_place": "transform"}, GATE),
    "scenario gate": ({"scenario_gate": True}, None),
    "linear, scenario gate, group": ({"expert": "bn_linear", "scenario_gate": True}, GATE),
    "one expert each": ({"shared_experts": 1, "own_experts": 1, "layers": ()}, ()),
}
RICH = "linear, scenario gate, group"
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5)


def small(name: str) -> tuple[SARNetOptions, tuple[int, ...] | None]:
    changes, gate_layers = OPTIONS[name]
    sizes = {"shared_experts": 3, "own_experts": 2, "width": 4, "layers": (5, 3)}
    return SARNetOptions(**sizes | changes), gate_layers


def drawing() -> Draw:
    """Random arrays in a declaration's shapes, and the same numbers in float64."""
    generator = np.random.default_rng(20240226)

    def draw(declaration: Any) -> tuple[Any, Any]:
        drawn = jax.tree.map(
            lambda p: np.float32(0.7 * generator.normal(size=p.shape)), declaration
        )
        return jax.tree.map(jnp.asarray, drawn), jax.tree.map(np.float64, drawn)

    return draw


def expert(layer: Any, norm: Any, moments: Any) -> reference_sar_net.Expert:
    return reference_sar_net.Expert(layer, *(norm or ()), *(moments or ()))


def row_of(tree: Any, *index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


class Case:
    """A backbone with drawn parameters and statistics, the same in float64, and a batch."""

    def __init__(self, name: str, scenarios: int) -> None:
        draw = drawing()
        self.options, gate_layers = small(name)
        self.backbone: Backbone = sar_net(gate_layers, self.options)
        declared = self.backbone.declare(Sizes(N, D, scenarios))
        self.params, self.exact = draw(declared.params)
        self.state, self.exact_state = map(positive, draw(declared.state))
        self.x, self.x64 = draw(declare_array((B, N, D)))
        self.gradient = jax.jit(
            lambda inputs: jax.grad(self.loss, argnums=(0, 1))(self.params, inputs.x, inputs)
        )

    def loss(self, params: SARNetParams, x: jax.Array, inputs: Inputs) -> jax.Array:
        """A weighted sum of the real rows' logits in training."""
        output, _ = self.backbone.apply(params, self.state, inputs._replace(x=x), TRAIN)
        weight = jnp.linspace(-1.0, 2.0, len(output.logits))
        return jnp.where(inputs.mask, weight * output.logits, 0.0).sum()

    def run(self, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        return self.backbone.apply(self.params, self.state, inputs, mode)

    def inputs(self, scenario: np.ndarray = ALL, mask: np.ndarray = MASK) -> Inputs:
        return Inputs(self.x, jnp.asarray(scenario), jnp.asarray(mask))

    def reference(self, params: SARNetParams, x: np.ndarray, scenario: np.ndarray, train: bool):
        transform: Any = params.transform
        if isinstance(transform, StarDense):
            transform = reference_sar_net.StarTransform(transform[:2], transform[2:])
        norms, moments, experts = params.norms, self.exact_state, params.experts
        scenarios = len(experts.own.kernel)
        p = reference_sar_net.SARNet(
            transform=transform,
            shared=[
                expert(
                    row_of(experts.shared, e), norms and norms.shared, moments and moments.shared
                )
                for e in range(self.options.shared_experts)
            ],
            own=[
                [
                    expert(
                        row_of(experts.own, s, e),
                        norms and row_of(norms.own, s),
                        moments and row_of(moments.own, s),
                    )
                    for e in range(self.options.own_experts)
                ]
                for s in range(scenarios)
            ],
            mixer=params.mixer,
            head=params.head,
            gate=None if params.gate is None else [*params.gate.hidden, params.gate.output],
        )
        return reference_sar_net.sar_net(p, x, scenario, MASK[: len(x)], train)


def positive(state: Any) -> Any:
    """Variances made positive; `()` of experts without a norm stays as it is."""
    return tuple(state) and ExpertMoments(
        *(Moments(moments.mean, abs(moments.variance) + 0.5) for moments in state)
    )


@cache
def case(name: str = RICH, scenarios: int = S) -> Case:
    """Made, and its gradient compiled, once for all tests."""
    return Case(name, scenarios)


CASES = [*((name, True) for name in OPTIONS), ("plain", False), (RICH, False)]
"""Each option in training; evaluation differs by the statistics alone."""


@pytest.mark.parametrize(("name", "train"), CASES)
def test_values(name: str, train: bool) -> None:
    model = case(name)
    output, state = model.run(model.inputs(), Mode(train=train))
    logits, gates, shared, own = model.reference(model.exact, model.x64, ALL, train)
    assert output.attention is None
    close(output.logits, logits)
    assert (output.gate is None) == (gates is None)
    if gates is not None:
        close(output.gate, gates)
    if model.options.expert == "relu":
        assert state == ()
        return
    for moments in shared:
        jax.tree.map(close, tuple(state.shared), moments)
    for scenario, experts in enumerate(own):
        for moments in experts:
            jax.tree.map(close, tuple(row_of(state.own, scenario)), moments)


def test_the_states_of_training_and_evaluation_differ() -> None:
    model = case()
    _, trained = model.run(model.inputs(), TRAIN)
    _, kept = model.run(model.inputs(), EVALUATION)
    jax.tree.map(np.testing.assert_array_equal, kept, model.state)
    assert np.abs(trained.shared.mean - model.state.shared.mean).min() > 1e-4
    assert np.abs(trained.own.mean - model.state.own.mean).min() > 1e-4


@pytest.mark.parametrize("name", ["linear, transform", RICH])
def test_gradients_are_the_slopes_of_the_reference(name: str) -> None:
    model = case(name)
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


def own_leaves(params: SARNetParams) -> list[jax.Array]:
    """Everything that is stacked over scenarios."""
    own = [*params.experts.own]
    own += params.transform[2:] if isinstance(params.transform, StarDense) else params.transform
    own += [] if params.norms is None else params.norms.own
    return own + (list(params.mixer) if params.mixer.kernel.ndim == 3 else [])


@pytest.mark.parametrize("name", ["linear, transform", RICH])
def test_an_absent_scenario_is_left_alone(name: str) -> None:
    model = case(name)
    by_params, by_x = model.gradient(model.inputs(TWO))
    for leaf in own_leaves(by_params):
        np.testing.assert_array_equal(leaf[1], np.zeros_like(leaf[1]))
        assert np.abs(leaf[0]).max() > 0
        assert np.abs(leaf[2]).max() > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_params, by_x)))
    output, state = model.run(model.inputs(TWO), TRAIN)
    assert np.isfinite(output.logits).all()
    assert (state == ()) == (name == "transform")
    for new, old in zip(*(getattr(each, "own", ()) for each in (state, model.state)), strict=True):
        np.testing.assert_array_equal(new[1], old[1])
        assert np.abs(new[0] - old[0]).max() > 1e-3


def test_a_lone_row_is_normalised_by_its_scenarios_running_moments() -> None:
    model = case()
    trained, state = model.run(model.inputs(LONE), TRAIN)
    close(trained.logits, model.reference(model.exact, model.x64, LONE, True)[0])
    np.testing.assert_array_equal(state.own.mean[1], model.state.own.mean[1])
    np.testing.assert_array_equal(state.own.variance[1], model.state.own.variance[1])


def test_one_scenario_and_a_batch_of_one() -> None:
    model = case(RICH, 1)
    row = Inputs(model.x[:1], jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    output, state = model.run(row, TRAIN)
    expected = model.reference(model.exact, model.x64[:1], np.zeros(1, int), False)
    close(output.logits, expected[0])
    jax.tree.map(np.testing.assert_array_equal, state, model.state)


def without_own(params: SARNetParams) -> SARNetParams:
    """Every scenario as the first one."""

    def first(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf[:1], leaf.shape)

    assert params.norms is not None
    return params._replace(
        transform=jax.tree.map(first, params.transform),
        norms=params.norms._replace(own=jax.tree.map(first, params.norms.own)),
        experts=params.experts._replace(own=jax.tree.map(first, params.experts.own)),
        mixer=jax.tree.map(first, params.mixer),
    )


@pytest.mark.parametrize("part", ["none", "moments", "transform", "norms", "experts", "mixer"])
def test_scenarios_answer_a_row_differently(part: str) -> None:
    """Through each place in which a scenario has something of its own, and through no other."""
    model = case()
    params = without_own(model.params)
    if part in params._fields:
        params = params._replace(**{part: model.params._asdict()[part]})
    state = model.state
    if part != "moments":
        one = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), state.own)
        state = state._replace(own=one)
    rows = Inputs(jnp.repeat(model.x[:1], S, 0), jnp.arange(S), jnp.ones(S, bool))
    logits = np.sort(model.backbone.apply(params, state, rows, EVALUATION)[0].logits)
    if part == "none":
        assert np.ptp(logits) < 1e-6
    else:
        assert np.diff(logits).min() > 1e-4


def test_an_even_gate_halves_the_plain_mixture(draw: Draw) -> None:
    shared, shared64 = draw(declare_array((B, 3, 4)))
    own, own64 = draw(declare_array((B, 2, 4)))
    weights = jax.nn.softmax(draw(declare_array((B, 5)))[0])
    plain = mixture(weights, shared, own)
    expected = np.einsum("be,bew->bw", weights, np.concatenate([shared64, own64], axis=1))
    close(plain, expected)
    close(mixture(weights, shared, own, jnp.full((B, 2), 0.5)), plain / 2)


def test_the_gates_first_value_is_for_the_own_experts(draw: Draw) -> None:
    shared, _ = draw(declare_array((B, 3, 4)))
    own, own64 = draw(declare_array((B, 2, 4)))
    weights = jnp.full((B, 5), 0.2)
    specific = jnp.tile(jnp.array([[1.0, 0.0]]), (B, 1))
    close(mixture(weights, shared, own, specific), 0.2 * own64.sum(1))


@pytest.mark.parametrize("name", [RICH, "transform"])
def test_the_gate_learns(name: str) -> None:
    by_params, _ = case(name).gradient(case(name).inputs())
    assert min(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(by_params.gate)) > 1e-5


def test_neutral_transform_reads_the_features_as_they_are() -> None:
    """At the start every scenario's transform is the identity."""
    model = case("plain")
    p = model.params._replace(
        transform=initialize(
            model.backbone.declare(Sizes(N, D, S)).params.transform, jax.random.key(0)
        )
    )
    exact = model.exact._replace(transform=(np.ones((S, N * D)), np.zeros((S, N * D))))
    output, _ = model.backbone.apply(p, (), model.inputs(), TRAIN)
    close(output.logits, model.reference(exact, model.x64, ALL, True)[0])


@pytest.mark.parametrize("gate_layers", [None, (64, 16)])
@pytest.mark.parametrize(("n", "s"), [(7, 3), (23, 1)])
def test_shapes_and_parameter_count(n: int, s: int, gate_layers: tuple[int, ...] | None) -> None:
    declared = sar_net(gate_layers, SARNetOptions()).declare(Sizes(n, 16, s))
    f = n * 16
    transform = [(s, f), (s, f)]
    experts = [(8, f, 16), (8, 16), (s, 2, f, 16), (s, 2, 16)]
    mixer_and_head = [(f, 10), (10,), (16, 32), (32,), (32, 32), (32,), (32, 1), (1,)]
    gate = [] if gate_layers is None else [(f, 64), (64,), (64, 16), (16,), (16, 2), (2,)]
    shapes = [leaf.shape for leaf in jax.tree.leaves(declared.params)]
    assert shapes == [*transform, *experts, *mixer_and_head, *gate]
    assert declared.state == ()
    expected = reference_sar_net.parameter_count(f, s, 8, 2, 16, (32, 32), gate_layers)
    assert count(declared.params) == expected


def test_parameter_count_of_the_options() -> None:
    options = SARNetOptions(expert="bn_linear", scenario_gate=True, d3_place="transform")
    declared = sar_net((64, 16), options).declare(Sizes(7, 16, 3))
    expected = reference_sar_net.parameter_count(
        112,
        3,
        8,
        2,
        16,
        (32, 32),
        (64, 16),
        star_width=64,
        scenario_mixer=True,
        norms=True,
    )
    assert count(declared.params) == expected
    shapes = [leaf.shape for leaf in jax.tree.leaves(declared.state)]
    assert shapes == [(64,), (64,), (3, 64), (3, 64)]


def test_initial_values(key: jax.Array) -> None:
    options = SARNetOptions(expert="bn_linear", layers=())
    declared = sar_net(None, options).declare(Sizes(7, 16, 3))
    params, state = initialize((declared.params, declared.state), key)
    for neutral in (params.transform, params.norms.shared, params.norms.own):
        np.testing.assert_array_equal(neutral.scale, np.ones_like(neutral.scale))
        np.testing.assert_array_equal(neutral.offset, np.zeros_like(neutral.offset))
    for moments in state:
        np.testing.assert_array_equal(moments.mean, np.zeros_like(moments.mean))
        np.testing.assert_array_equal(moments.variance, np.ones_like(moments.variance))
    for layer, fans in (
        (params.experts.shared, 128),
        (params.experts.own, 128),
        (params.mixer, 122),
    ):
        assert 0.98 * np.sqrt(6 / fans) < np.abs(layer.kernel).max() <= np.sqrt(6 / fans)
        assert not layer.bias.any()


def test_the_star_shaped_transform_starts_near_its_shared_kernel(key: jax.Array) -> None:
    options = SARNetOptions(d3_place="transform", shared_experts=1, own_experts=1, layers=())
    declared = sar_net((), options).declare(Sizes(7, 16, 3))
    layer = initialize(declared.params, key).transform
    assert np.abs(layer.kernel).max() == pytest.approx(np.sqrt(6 / (112 + 64)), rel=0.02)
    assert layer.own_kernel.mean() == pytest.approx(1.0, abs=1e-3)
    assert layer.own_kernel.std() == pytest.approx(0.01, rel=0.02)


@pytest.mark.slow
def test_eight_devices_equal_one(draw: Draw) -> None:
    model = case()
    x, _ = draw(declare_array((16, N, D)))
    scenario = jnp.asarray(np.resize(LONE, 16))
    inputs = Inputs(x, scenario, jnp.arange(16) < 13)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    mode = Mode(train=True, axis_name="data")

    def loss(params: SARNetParams, state: Tree, inputs: Inputs, mode: Mode):
        output, state = model.backbone.apply(params, state, inputs, mode)
        logits = jnp.where(inputs.mask, output.logits, 0.0)
        return (jnp.sin(logits)).sum(), (output, state)

    def device(params: SARNetParams, state: Tree, inputs: Inputs):
        params = jax.lax.pcast(params, "data", to="varying")
        gradient, (output, state) = jax.grad(loss, has_aux=True)(params, state, inputs, mode)
        return jax.lax.psum(gradient, "data"), output, state

    mapped = jax.shard_map(
        device,
        mesh=mesh,
        in_specs=(P(), P(), P("data")),
        out_specs=(P(), P("data"), P()),
    )
    eight = jax.jit(mapped)(model.params, model.state, inputs)
    gradient, (output, state) = jax.jit(jax.grad(loss, has_aux=True), static_argnums=3)(
        model.params, model.state, inputs, TRAIN
    )
    close(eight[1].logits, output.logits)
    close(eight[1].gate, output.gate)
    jax.tree.map(close, eight[2], state)
    for ours, theirs in zip(jax.tree.leaves(eight[0]), jax.tree.leaves(gradient), strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(scale, 1.0))

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from d3jax.backbones.adaptdhm import (
    AdaptDHMOptions,
    AdaptDHMParams,
    AdaptDHMState,
    adaptdhm,
    follow,
    unit,
)
from d3jax.base import EVALUATION, Inputs, Mode, Output, Sizes
from d3jax.heads import D3Options, d3, dense_head, towers
from d3jax.parameters import count, declare_array, initialize
from d3jax.training.checkpoint.checkpoints import Checkpoints
from tests.conftest import Draw
from tests.d3jax import reference

B, N, D, S, C = 16, 3, 4, 3, 4
SMALL = AdaptDHMOptions(clusters=C, layers=(6, 5), rounds=3, decay=0.8, sharpness=4.0)
D3 = D3Options(field_hidden=2, width=5)
HEADS = {"dense": dense_head(()), "towers": towers((3,)), "d3": d3(D3)}
TRAIN = Mode(train=True)
MASK = np.arange(B) % 5 != 3


class Case:
    """Backbone, drawn parameters, centres and rows, and all of them in float64."""

    def __init__(self, draw: Draw, head: str = "dense", scenarios: int = S, rows: int = B) -> None:
        self.backbone = adaptdhm(HEADS[head], SMALL)
        declared = self.backbone.declare(Sizes(N, D, scenarios))
        self.params, self.exact = draw(declared.params)
        self.centres = length_one(draw(declared.state.centres)[1])
        self.state = AdaptDHMState(jnp.asarray(self.centres, jnp.float32), ())
        x, x64 = draw(declare_array((rows, N, D)))
        self.mask = MASK[:rows]
        self.inputs = Inputs(x, jnp.arange(rows) % scenarios, jnp.asarray(self.mask))
        self.flat = x64.reshape(rows, -1)
        self.slope = jax.jit(jax.grad(self.loss, argnums=(0, 1)), static_argnums=4)

    def run(self, inputs: Inputs, mode: Mode = EVALUATION) -> tuple[Output, AdaptDHMState]:
        apply = jax.jit(self.backbone.apply, static_argnums=3)
        return apply(self.params, self.state, inputs, mode)

    def loss(
        self, params: AdaptDHMParams, x: jax.Array, state: AdaptDHMState, inputs: Inputs, mode: Mode
    ) -> jax.Array:
        """A sum of real rows' logits that weighs each row differently."""
        output, _ = self.backbone.apply(params, state, inputs._replace(x=x), mode)
        return jnp.where(inputs.mask, output.logits * jnp.cos(jnp.arange(1.0 * B)), 0.0).sum()

    def gradient(self, inputs: Inputs, mode: Mode = TRAIN) -> tuple[AdaptDHMParams, jax.Array]:
        """By the parameters and by the embeddings."""
        return self.slope(self.params, inputs.x, self.state, inputs, mode)


def length_one(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def moved(centres: np.ndarray, flat: np.ndarray, options: AdaptDHMOptions = SMALL) -> np.ndarray:
    """The routing rounds over real rows, one cluster at a time."""
    directions = length_one(flat)
    for _ in range(options.rounds):
        shares = reference.softmax(options.sharpness * directions @ centres.T)
        new = []
        for j, centre in enumerate(centres):
            mean = np.average(directions, axis=0, weights=shares[:, j])
            new.append(options.decay * centre + (1 - options.decay) * mean)
        centres = length_one(np.array(new))
    return centres


def expected(case: Case, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and each row's cluster."""
    clusters = np.array([np.argmax(centres @ row / np.linalg.norm(row)) for row in case.flat])
    hidden = []
    for h, c in zip(case.flat, clusters, strict=True):
        for p in case.exact.layers:
            h = reference.relu(h @ (p.kernel * p.own_kernel[c]) + p.bias + p.own_bias[c])
        hidden.append(h)
    return reference.mlp_linear_last(case.exact.head, np.array(hidden))[:, 0], clusters


@pytest.mark.parametrize(("scenarios", "rows"), [(3, 16), (1, 4), (3, 1)])
def test_values_and_centres(scenarios: int, rows: int, draw: Draw) -> None:
    case = Case(draw, scenarios=scenarios, rows=rows)
    logits, clusters = expected(case, case.centres)
    output, state = case.run(case.inputs)
    np.testing.assert_allclose(output.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(state.centres, case.state.centres)
    centres = moved(case.centres, case.flat[case.mask])
    output, state = case.run(case.inputs, TRAIN)
    np.testing.assert_allclose(state.centres, centres, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output.logits, expected(case, centres)[0], rtol=1e-4, atol=1e-4)
    if rows == B:
        assert set(clusters) == set(range(C))
        assert np.abs(centres - case.centres).max() > 0.05


def test_d3_as_the_head_gives_its_attention_and_gate(draw: Draw) -> None:
    case = Case(draw, head="d3")
    output, _ = jax.eval_shape(lambda x: case.run(x, TRAIN), case.inputs)
    assert (output.attention.shape, output.gate.shape) == ((B, N, N), (B, 2))


def test_routing_teaches_nothing(draw: Draw) -> None:
    """In training the gradient is that of the network with every row's cluster given."""
    case = Case(draw)
    _, state = case.run(case.inputs, TRAIN)
    _, by_rows = case.gradient(case.inputs)
    case.state = state
    np.testing.assert_allclose(by_rows, case.gradient(case.inputs, EVALUATION)[1], rtol=1e-5)
    by_centres = jax.grad(lambda x: case.run(case.inputs._replace(x=x), TRAIN)[1].centres[0, 0])
    np.testing.assert_array_equal(by_centres(case.inputs.x), np.zeros((B, N, D)))


def test_a_cluster_without_rows_has_exactly_zero_gradient(draw: Draw) -> None:
    case = Case(draw)
    _, clusters = expected(case, moved(case.centres, case.flat[case.mask]))
    inputs = case.inputs._replace(mask=jnp.asarray(case.mask & (clusters != 1)))
    case.state = case.run(case.inputs, TRAIN)[1]
    learnt, _ = case.gradient(inputs, EVALUATION)
    for layer in learnt.layers:
        np.testing.assert_array_equal(layer.own_kernel[1], np.zeros_like(layer.own_kernel[1]))
        assert np.abs(layer.own_kernel[0]).max() > 0


def test_a_batch_of_padding_leaves_the_centres_alone(draw: Draw) -> None:
    case = Case(draw)
    _, state = case.run(case.inputs._replace(mask=jnp.zeros(B, bool)), TRAIN)
    np.testing.assert_array_equal(state.centres, case.state.centres)


def test_a_row_of_zeros_has_no_direction_and_does_no_harm(draw: Draw) -> None:
    case = Case(draw)
    inputs = case.inputs._replace(x=case.inputs.x.at[0].set(0.0))
    _, state = case.run(inputs, TRAIN)
    assert np.abs(state.centres - case.state.centres).max() > 0.05
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(case.gradient(inputs)))


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


def test_the_default_sharpness_keeps_the_centres_apart(key: jax.Array) -> None:
    """Of rows in three bundles; shares as soft as a plain cosine's pull all centres together."""
    rng = np.random.default_rng(1)
    bundles = rng.normal(size=(3, 20))
    rows = unit(jnp.asarray(bundles[np.arange(60) % 3] + rng.normal(size=(60, 20)), jnp.float32))

    def closest(sharpness: float) -> float:
        options = AdaptDHMOptions(rounds=2, sharpness=sharpness)
        move = jax.jit(lambda c: follow(c, rows, jnp.ones(60, bool), TRAIN, options))
        centres = unit(jax.random.normal(key, (3, 20)))
        for _ in range(200):
            centres = move(centres)
        return float((centres @ centres.T)[np.triu_indices(3, 1)].max())

    assert closest(1.0) > 0.99
    assert closest(AdaptDHMOptions().sharpness) < 0.9


def test_centres_start_at_length_one_and_survive_a_checkpoint(
    key: jax.Array, tmp_path: Path, draw: Draw
) -> None:
    case = Case(draw)
    start = initialize(case.backbone.declare(Sizes(N, D, S)).state, key)
    np.testing.assert_allclose(np.linalg.norm(start.centres, axis=1), 1.0, rtol=1e-5)
    assert np.abs(start.centres[0] - start.centres[1]).max() > 0.1
    _, trained = case.run(case.inputs, TRAIN)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, trained, {})
    restored = checkpoints.restore(start).state
    checkpoints.close()
    np.testing.assert_array_equal(restored.centres, trained.centres)


def test_scenarios_differ_through_their_towers(draw: Draw) -> None:
    case = Case(draw, "towers")
    same = case.inputs._replace(x=jnp.broadcast_to(case.inputs.x[:1], case.inputs.x.shape))
    assert len(set(np.asarray(case.run(same)[0].logits[:S]).round(4).tolist())) == S


def test_parameter_count() -> None:
    options = AdaptDHMOptions(clusters=4, layers=(10, 7))
    declared = adaptdhm(dense_head(()), options).declare(Sizes(N, D, S))
    assert count(declared.params) == (1 + 4) * (12 * 10 + 10 + 10 * 7 + 7) + 8
    assert count(declared.state) == 4 * 12

"""The Flax door: a module is the function, and its weights are a checkpoint's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from d3jax.balance import row_weights
from d3jax.base import EVALUATION, Inputs, Sizes
from d3jax.batch import Field, Schema
from d3jax.config import Config, ModelConfig
from d3jax.errors import ConfigError, ShapeError
from d3jax.heads import D3Options, d3, d3_generator
from d3jax.nnx import D3Head, D3Layer
from d3jax.parameters import initialize, named_leaves
from d3jax.parts import build_model, build_trainer
from d3jax.training.checkpoint.checkpoints import Checkpoints

N, D, INPUTS, OUTPUTS, B = 5, 4, 7, 3, 6
SIZES = {"fields": N, "dim": D, "inputs": INPUTS}
GENERATOR = {"field_hidden": 2, "gate_layers": (6, 4)}
SMALL = D3Options(width=OUTPUTS, **GENERATOR)


@pytest.fixture
def rows(key):
    hidden, x = jax.random.split(key)
    return jax.random.normal(hidden, (B, INPUTS)), jax.random.normal(x, (B, N, D))


def inputs_of(x):
    return Inputs(x, jnp.zeros(B, int), jnp.ones(B, bool))


def test_a_layer_is_the_generator(rows):
    hidden, x = rows
    layer = D3Layer(**SIZES, outputs=OUTPUTS, rngs=nnx.Rngs(0), **GENERATOR)
    made = d3_generator(SMALL).generate(layer.arrays(), inputs_of(x), EVALUATION)
    np.testing.assert_array_equal(layer(hidden, x), made.layer(0, hidden))
    np.testing.assert_array_equal(layer.with_info(hidden, x)[1].gate, made.gate)
    assert layer(hidden, x).shape == (B, OUTPUTS)


def test_a_head_is_the_function(rows):
    hidden, x = rows
    head = D3Head(**SIZES, width=OUTPUTS, rngs=nnx.Rngs(1), **GENERATOR)
    expected, _ = d3(SMALL).apply(head.arrays(), (), hidden, inputs_of(x), EVALUATION)
    ours = head(hidden, x)
    for mine, theirs in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


class Click(nnx.Module):
    """A Flax model of a user's own with one D3 layer in it."""

    def __init__(self, rngs):
        self.body = nnx.Linear(N * D, INPUTS, rngs=rngs)
        self.layer = D3Layer(**SIZES, outputs=OUTPUTS, rngs=rngs, **GENERATOR)
        self.logit = nnx.Linear(OUTPUTS, 1, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.body(x.reshape(x.shape[0], -1)))
        return self.logit(nnx.relu(self.layer(hidden, x)))[:, 0]


def test_a_flax_model_with_a_d3_layer_learns(rows):
    _, x = rows
    label = jnp.arange(B) % 2
    model = Click(nnx.Rngs(0))
    graph, weights = nnx.split(model, nnx.Param)
    optimizer = optax.sgd(0.3)

    @jax.jit
    def step(weights, state):
        def loss(weights):
            logits = nnx.merge(graph, weights)(x)
            return optax.sigmoid_binary_cross_entropy(logits, label).mean()

        value, gradient = jax.value_and_grad(loss)(weights)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(weights, updates), state, value, gradient

    state, losses = optimizer.init(weights), []
    for _ in range(40):
        weights, state, value, gradient = step(weights, state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    for path, leaf in nnx.to_flat_state(gradient):
        assert jnp.abs(leaf[...]).max() > 0, path


@pytest.mark.slow
def test_weights_go_from_a_checkpoint_into_a_module_and_back(rows, tmp_path):
    hidden, x = rows
    schema = Schema(tuple(Field(f"f{i}", 6) for i in range(N)), ("a", "b"))
    config = Config(model=ModelConfig(embedding_dim=D, bottom_layers=(8, INPUTS)), d3=SMALL)
    trainer = build_trainer(schema, config, steps_per_epoch=1)
    state = trainer.init()
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(1, state, {})
    restored = checkpoints.restore(trainer.abstract).state
    checkpoints.close()
    trained = restored.params.network.head
    head = D3Head(**SIZES, width=OUTPUTS, rngs=nnx.Rngs(7), **GENERATOR)
    before = head(hidden, x).logits
    head.load(trained)
    expected, _ = d3(SMALL).apply(trained, (), hidden, inputs_of(x), EVALUATION)
    np.testing.assert_allclose(head(hidden, x).logits, expected.logits, rtol=1e-6)
    assert jnp.abs(before - expected.logits).max() > 1e-4
    jax.tree.map(np.testing.assert_array_equal, head.arrays(), trained)
    model = build_model(schema, config)
    assert named_leaves(model.declared.params.network.head).keys() == head.weights.keys()


def test_arrays_of_another_shape_are_refused():
    head = D3Head(**SIZES, width=OUTPUTS, rngs=nnx.Rngs(0), **GENERATOR)
    other = d3(SMALL).declare(Sizes(N, D, 1), INPUTS + 1).params
    weights = named_leaves(head.arrays())["generator.layers.0.generator.kernel"]
    with pytest.raises(ShapeError, match=r"parameter 'generator.layers.0.generator.kernel' is"):
        head.load(initialize(other, jax.random.key(0)))
    np.testing.assert_array_equal(
        named_leaves(head.arrays())["generator.layers.0.generator.kernel"], weights
    )


@pytest.mark.trains
@pytest.mark.slow
def test_flax_trains_a_layer_by_its_own_means(rows):
    hidden, x = rows
    target = jnp.sin(hidden[:, :OUTPUTS])
    layer = D3Layer(**SIZES, outputs=OUTPUTS, rank=2, rngs=nnx.Rngs(0), **GENERATOR)
    optimizer = nnx.Optimizer(layer, optax.sgd(0.3), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        def loss(layer):
            outputs, info = layer.with_info(hidden, x)
            return (row_weights(*info)[:, None] * (outputs - target) ** 2).mean()

        value, gradient = nnx.value_and_grad(loss)(layer)
        optimizer.update(layer, gradient)
        return value

    before = jax.tree.map(jnp.copy, layer.arrays())
    losses = [float(step(layer, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    for old, new in zip(*map(jax.tree.leaves, (before, layer.arrays())), strict=True):
        assert jnp.abs(old - new).max() > 0


def test_misuse_names_the_argument(rows):
    hidden, x = rows
    layer = D3Layer(**SIZES, outputs=OUTPUTS, rngs=nnx.Rngs(0), **GENERATOR)
    head = D3Head(**SIZES, width=OUTPUTS, rngs=nnx.Rngs(0), **GENERATOR)
    for module in (layer, head):
        with pytest.raises(ShapeError, match=r"x has the shape \(6, 4, 4\), whose fields is 4"):
            module(hidden, x[:, 1:])
    with pytest.raises(ConfigError, match="dim is 0; it must be an integer of at least 1"):
        D3Head(**{**SIZES, "dim": 0}, rngs=nnx.Rngs(0))
    with pytest.raises(ConfigError, match="form is a setting of a whole"):
        D3Layer(**SIZES, outputs=OUTPUTS, form="official", rngs=nnx.Rngs(0))

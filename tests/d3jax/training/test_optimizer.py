"""AdamW with two decays against the published algorithm in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config import OptimizerConfig
from d3jax.training.optimizer import adamw

CONFIG = OptimizerConfig(
    learning_rate=0.03, weight_decay=0.7, embedding_decay=0.2, b1=0.8, b2=0.95, epsilon=1e-3
)
SHAPES = {"table": (5, 4), "kernel": (4, 3), "bias": (3,)}


def draw(rng):
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def reference(params, gradients, config):
    """Algorithm 2 of Loshchilov and Hutter (2019), their schedule multiplier being the rate."""
    mean = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    square = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for time, gradient in enumerate(gradients, start=1):
        for name, g in gradient.items():
            decay = config.embedding_decay if name == "table" else config.weight_decay
            mean[name] = config.b1 * mean[name] + (1 - config.b1) * g
            square[name] = config.b2 * square[name] + (1 - config.b2) * g**2
            unbiased = mean[name] / (1 - config.b1**time)
            spread = np.sqrt(square[name] / (1 - config.b2**time))
            change = unbiased / (spread + config.epsilon) + decay * params[name]
            params = {**params, name: params[name] - config.learning_rate * change}
    return params


def run(params, gradients, config):
    """The arrays after steps of the network's optimizer and of the table's dense update."""
    transforms = {
        name: adamw(config, config.embedding_decay if name == "table" else config.weight_decay)
        for name in SHAPES
    }
    params = {name: jnp.asarray(array, jnp.float32) for name, array in params.items()}
    states = {name: transforms[name].init(params[name]) for name in SHAPES}
    for gradient in gradients:
        for name, transform in transforms.items():
            update, states[name] = transform.update(
                jnp.asarray(gradient[name], jnp.float32), states[name], params[name]
            )
            params[name] = optax.apply_updates(params[name], update)
    return params


def test_several_steps_are_those_of_the_reference():
    rng = np.random.default_rng(0)
    start, gradients = draw(rng), [draw(rng) for _ in range(7)]
    ours, theirs = run(start, gradients, CONFIG), reference(start, gradients, CONFIG)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=2e-6, err_msg=name)
        assert np.abs(theirs[name] - start[name]).max() > 0.05, "the steps must be large enough"


@pytest.mark.parametrize(
    ("decay", "decayed"), [("embedding_decay", {"table"}), ("weight_decay", {"kernel", "bias"})]
)
def test_each_decay_reaches_its_own_parameters_only(decay, decayed):
    start = draw(np.random.default_rng(1))
    still = jax.tree.map(np.zeros_like, start)
    decays = {"embedding_decay": 0.0, "weight_decay": 0.0} | {decay: 0.5}
    config = OptimizerConfig(learning_rate=0.1, **decays)
    after = run(start, [still], config)
    for name in SHAPES:
        factor = 1 - 0.1 * 0.5 if name in decayed else 1.0
        np.testing.assert_allclose(after[name], factor * start[name], rtol=1e-6, err_msg=name)

"""AdamW with two decays against the published algorithm in float64 NumPy, and the schedules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config import OptimizerConfig
from d3jax.errors import ConfigError
from d3jax.training.optimizer import adamw, learning_rate, optimizer

CONFIG = OptimizerConfig(learning_rate=0.03, weight_decay=0.7, embedding_decay=0.2)
B1, B2, EPSILON = 0.9, 0.999, 1e-8
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
            mean[name] = B1 * mean[name] + (1 - B1) * g
            square[name] = B2 * square[name] + (1 - B2) * g**2
            unbiased = mean[name] / (1 - B1**time)
            spread = np.sqrt(square[name] / (1 - B2**time))
            change = unbiased / (spread + EPSILON) + decay * params[name]
            params = {**params, name: params[name] - config.learning_rate * change}
    return params


def run(params, gradients, config):
    """The arrays after steps of the network's optimizer and of the table's dense update."""
    transforms = {
        name: adamw(
            config.learning_rate,
            config.embedding_decay if name == "table" else config.weight_decay,
        )
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
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=5e-6, err_msg=name)
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


def rates(steps=100, **changes):
    """The learning rate of each step of a run, whose highest is 2."""
    rate = learning_rate(OptimizerConfig(learning_rate=2.0, **changes), steps)
    return np.array([rate(jnp.int32(step)) for step in range(steps)])


def test_a_rate_without_schedule_is_a_number():
    assert learning_rate(OptimizerConfig(learning_rate=2.0), 100) == 2.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_warming_up_rises_evenly_from_nothing(schedule):
    found = rates(schedule=schedule, warmup=0.1)
    np.testing.assert_allclose(found[:11], 0.2 * np.arange(11), rtol=1e-6)
    assert found.max() == pytest.approx(2.0)


def test_cosine_falls_to_nothing_over_the_rest_of_the_run():
    expected = [1 + math.cos(math.pi * step / 90) for step in range(90)]
    np.testing.assert_allclose(rates(schedule="cosine", warmup=0.1)[10:], expected, atol=1e-6)
    expected = [1 + math.cos(math.pi * step / 100) for step in range(100)]
    np.testing.assert_allclose(rates(schedule="cosine"), expected, atol=1e-6)


def test_warm_up_stable_decay_stays_and_then_falls_evenly():
    found = rates(schedule="wsd", warmup=0.1, cooldown=0.25)
    np.testing.assert_allclose(found[10:75], 2.0)
    np.testing.assert_allclose(found[75:], 2 * (1 - np.arange(25) / 25), rtol=1e-5)
    np.testing.assert_allclose(rates(schedule="wsd", cooldown=0.0), 2.0)
    np.testing.assert_allclose(rates(schedule="constant", warmup=0.1)[10:], 2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_norm": -1.0}, r"^clip_norm is -1.0; it must be between 0 and 1e\+30$"),
        ({"average": 1.0}, r"^average is 1.0; it must be between 0 and 1$"),
    ],
)
def test_an_optimizer_of_ones_own_is_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        optimizer(optax.sgd(1.0), **settings)

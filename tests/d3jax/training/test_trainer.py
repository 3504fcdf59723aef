"""A trainer made of parts: one's own loop, any optax optimizer, and models side by side."""

import warnings

import jax
import numpy as np
import optax
import pytest

from d3jax.adapters.d3 import d3_balance
from d3jax.errors import ConfigError
from d3jax.parts import build_model
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.optimizer import optimizer
from d3jax.training.sharding import make_mesh, place_batch
from d3jax.training.trainer import LEVEL, RUNS_ONCE, trainer
from tests.cases import cases
from tests.d3jax.training.world import make_batch


@pytest.fixture(scope="module")
def model(schema, config):
    return build_model(schema, config)


def two():
    return make_mesh(jax.devices()[:2])


def test_a_loop_of_ones_own_lowers_the_loss_and_gives_the_old_state_away(schema, model):
    ours = trainer(model, optax.adamw(0.01), mesh=two())
    state, batch = ours.init(seed=3), make_batch(schema, 64, seed=0)
    losses = []
    for step in range(30):
        old = state
        state, info = ours.step(state, batch if step % 2 else place_batch(ours.mesh, batch))
        losses.append(float(info.loss))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    assert losses[-1] < 0.8 * losses[0]
    assert ours.train_step._cache_size() == 1
    scored = ours.score(state, batch)
    probability = 1 / (1 + np.exp(-np.asarray(scored.logits)))
    assert probability[batch.label == 1].mean() > 0.2 + probability[batch.label == 0].mean()


@pytest.mark.slow
def test_what_runs_once_is_compiled_quickly_to_the_usual_bits(model):
    lowered = trainer(model, optax.adamw(0.01), mesh=two()).create.lower(np.int32(5))
    quick, usual = (
        jax.tree.leaves(lowered.compile(compiler_options=options)(np.int32(5)))
        for options in (RUNS_ONCE, {LEVEL: 3})
    )
    for ours, theirs in zip(quick, usual, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize(("flags", "options"), [("", RUNS_ONCE), (f"--{LEVEL}=1", None)])
def test_a_level_of_the_users_own_stands(model, monkeypatch, flags, options):
    asked, jit = [], jax.jit

    def noted(function, **given):
        asked.append(given)
        return jit(function, **given)

    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "jit", noted)
    trainer(model, optax.adamw(0.01), mesh=two())
    [create] = [given for given in asked if "out_shardings" in given]
    assert create["compiler_options"] == options


OPTIMIZERS = {
    "schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 10)),
    "inject": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "every": lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "factored": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "schedule_free": lambda: optax.contrib.schedule_free_sgd(0.1),
    "noise": lambda: optax.noisy_sgd(0.1, key=1),
}


QUICK = ("noise",)
"""The others are of the same kind."""


@pytest.mark.parametrize(
    "name",
    cases(OPTIMIZERS, QUICK),
)
def test_any_optax_optimizer_is_checkpointed_and_goes_on_exactly(name, schema, model, tmp_path):
    ours = trainer(model, optimizer(OPTIMIZERS[name](), clip_norm=1.0, average=0.9), mesh=two())
    state = ours.init()
    for seed in range(2):
        state, _ = ours.step(state, make_batch(schema, 64, seed))
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(2, state, {})
        restored = checkpoints.restore(ours.abstract).state
    futures = [ours.step(each, make_batch(schema, 64, 2))[0] for each in (state, restored)]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, futures))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), futures[0].params, ours.init().params)
    assert min(jax.tree.leaves(moved.embedding)) > 0


def test_a_batch_that_devices_cannot_share_is_refused(schema, model):
    ours = trainer(model, optax.sgd(0.1), mesh=two())
    with pytest.raises(ConfigError, match=r"^batch_size is 63, which 2 devices can't share"):
        ours.step(ours.init(), make_batch(schema, 63, seed=0))


@pytest.mark.slow
def test_a_balance_starts_after_its_share_of_the_steps(schema, model):
    batch, mesh = make_batch(schema, 64, seed=0), two()

    def weighed(ours):
        """For each of four steps, whether rows were weighed in it."""
        state, found = ours.init(), []
        for _ in range(4):
            state, info = ours.step(state, batch)
            found.append(abs(float(info.loss - info.cross_entropy)) > 1e-6)
        return found

    half = trainer(model, optax.sgd(0.0), d3_balance(start=0.5), mesh=mesh, steps=4)
    assert weighed(half) == [False, False, True, True]
    assert half.score(half.init(), batch).weight is not None
    never = trainer(model, optax.sgd(0.0), d3_balance(start=1.0), mesh=mesh)
    assert weighed(never) == [False] * 4
    assert never.score(never.init(), batch).weight is None
    unknown = trainer(model, optax.sgd(0.0), d3_balance(start=0.5), mesh=mesh)
    message = r"weighs them from the first step on; pass steps=\.\.\. to trainer$"
    with pytest.warns(UserWarning, match=message):
        assert weighed(unknown) == [True] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weighed(unknown.with_steps(4)) == [False, False, True, True]


def test_a_balance_checks_its_settings():
    with pytest.raises(ConfigError, match=r"^start_ratio is 2.0; it must be between 0 and 1$"):
        d3_balance(start=2.0)


def test_models_side_by_side_are_those_that_each_seed_gives_alone(schema, model):
    rate = optax.adamw(0.01)
    many, alone = trainer(model, rate, mesh=two(), models=2), trainer(model, rate, mesh=two())
    state, single = many.init(seed=4), alone.init(seed=5)
    for seed in range(3):
        batches = [make_batch(schema, 64, seed), make_batch(schema, 64, 10 + seed)]
        state, info = many.step(state, batches)
        single, theirs = alone.step(single, batches[1])
        assert float(info.loss[1]) == pytest.approx(float(theirs.loss), abs=1e-5)
    ours = many.score(state, batches[0]).logits
    assert ours.shape == (64, 2)
    np.testing.assert_allclose(ours[:, 1], alone.score(single, batches[0]).logits, atol=1e-3)
    assert np.abs(ours[:, 0] - ours[:, 1]).max() > 0.01
    parts = [many.one(state, index) for index in range(2)]
    jax.tree.map(np.testing.assert_array_equal, many.together(parts), state)

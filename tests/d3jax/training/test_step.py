"""One step on one device and on eight, against a plain gradient of the whole batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from d3jax import generation
from d3jax.adapters.d3 import (
    BalanceOptions,
    binary_cross_entropy,
    unweighted,
    weigh_rows,
)
from d3jax.base import Mode
from d3jax.batch import Batch
from d3jax.config import OptimizerConfig
from d3jax.parameters import DATA_AXIS
from d3jax.parts import build_model, build_trainer
from d3jax.training.optimizer import build_optimizer
from d3jax.training.optimizer import optimizer as optimizer_of
from d3jax.training.sharding import make_mesh, place_batch, replicate
from d3jax.training.step import StepOptions, init_state, make_score_step, make_train_step
from d3jax.training.table.updates import TableUpdate
from tests.cases import cases
from tests.d3jax.training.world import largest_difference, make_batch, moments

DECAYS = OptimizerConfig(weight_decay=1e-2, embedding_decay=0.5)


def adamw_for(model):
    return build_optimizer(DECAYS, model, steps=10)


def after_steps(model, adapter, devices, batches, optimizer_for=adamw_for):
    """State and last info after a step per batch on the first `devices` devices."""
    mesh, optimizer = make_mesh(jax.devices()[:devices]), optimizer_for(model)
    state = replicate(mesh, init_state(model, adapter, optimizer, seed=3))
    step = make_train_step(model, adapter, optimizer, mesh)
    for batch in batches:
        state, info = step(state, place_batch(mesh, batch))
    return jax.device_get(state), jax.device_get(info), step


def gradient_descent(model):
    """With a step size of 1 the parameters' change is minus the gradient."""
    return optimizer_of(optax.sgd(1.0))


def reference(model, adapter, batch: Batch):
    """Loss and gradient of the batch's real rows alone, without mesh, masks or embedding rows."""
    state = init_state(model, adapter, gradient_descent(model), seed=3)
    real = jax.tree.map(lambda array: jnp.asarray(array[np.asarray(batch.mask)]), batch)

    def loss(params):
        output, _ = model.apply(params, state.model_state, real, Mode(train=True))
        losses = binary_cross_entropy(output.logits, real.label)
        weights = adapter.row_weights((), output, real, jnp.int32(0), Mode(train=True))
        return (weights * losses).mean()

    return jax.jit(jax.value_and_grad(loss))(state.params), state.params


HEADS = {
    "d3": {},
    "d1": {"parts": "d1"},
    "official": {"form": "official", "head_layers": (4,), "detach_generator": True},
    "factored": {"rank": 2},
}


@pytest.mark.parametrize(
    ("head", "devices"),
    cases(
        [("d3", 1), ("d3", 8), ("d1", 1), ("official", 8), ("factored", 8)],
        quick=[("factored", 8)],
    ),
)
def test_loss_and_gradient_are_those_of_the_real_rows(
    schema, config, batch, head, devices, monkeypatch
):
    # So that a device's rows are several of the factored generator's blocks.
    monkeypatch.setattr(generation, "BLOCK", 2)
    d3 = dataclasses.replace(config.d3, **HEADS[head])
    model = build_model(schema, dataclasses.replace(config, d3=d3))
    adapter = weigh_rows(BalanceOptions(), start_step=0)
    (loss, gradient), before = reference(model, adapter, batch)
    state, info, _ = after_steps(model, adapter, devices, [batch], gradient_descent)
    stepped = jax.tree.map(lambda old, new: old - new, before, state.params)
    assert info.loss == pytest.approx(float(loss), abs=1e-6)
    assert info.gradient_norm == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(stepped), jax.tree.leaves(gradient), strict=True):
        # old - new loses digits of the gradient that are below the parameter's last one.
        scale = max(float(jnp.abs(theirs).max()), 0.01)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale + 2e-7)


def row_wise_descent():
    """Gradient descent on the batch's rows alone."""

    def apply(table, state, sums, step):
        return sums.put(table, sums.at(table) - sums.gradient), state

    return TableUpdate(lambda table: (), apply, row_wise=True)


@pytest.mark.parametrize(
    ("table", "layout", "devices"),
    [
        pytest.param(None, "replicated", 1, id="dense", marks=pytest.mark.slow),
        pytest.param(row_wise_descent(), "sharded", 8, id="row_wise"),
    ],
)
def test_clipping_is_that_of_optax_on_the_whole_gradient(
    schema, config, batch, table, layout, devices
):
    changed = dataclasses.replace(config.model, table_layout=layout, head="own")
    model = build_model(schema, dataclasses.replace(config, model=changed))
    (_, gradient), before = reference(model, unweighted(), batch)
    norm = float(optax.tree.norm(gradient))
    for clip_norm in (0.3 * norm, 2 * norm):
        optimizer = optimizer_of(optax.sgd(1.0), table, clip_norm=clip_norm)
        state, info, _ = after_steps(
            model, unweighted(), devices, [batch], lambda _, o=optimizer: o
        )
        clip = optax.clip_by_global_norm(clip_norm)
        expected, _ = clip.update(gradient, clip.init(gradient))
        assert info.gradient_norm == pytest.approx(norm, rel=1e-5)
        assert float(optax.tree.norm(expected)) == pytest.approx(min(clip_norm, norm), rel=1e-5)
        stepped = jax.tree.map(lambda old, new: old - new, before, state.params)
        for ours, theirs in zip(jax.tree.leaves(stepped), jax.tree.leaves(expected), strict=True):
            scale = max(float(jnp.abs(theirs).max()), 0.01)
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale + 2e-7)


def test_eight_devices_equal_one_over_several_steps(schema, config):
    model = build_model(schema, config)
    adapter = weigh_rows(BalanceOptions(), start_step=2)
    batches = [make_batch(schema, 64, seed, padding=5 * seed) for seed in range(4)]
    one, info_one, _ = after_steps(model, adapter, 1, batches)
    eight, info_eight, _ = after_steps(model, adapter, 8, batches)
    assert info_eight.loss == pytest.approx(info_one.loss, abs=1e-6)
    assert largest_difference(moments(eight), moments(one)) < 1e-5
    assert one.step == eight.step == 4


def sliced(model, adapter, batch, devices, slices):
    """State and info after one step that computes its batch in slices."""
    mesh, optimizer = make_mesh(jax.devices()[:devices]), adamw_for(model)
    state = replicate(mesh, init_state(model, adapter, optimizer, seed=3))
    step = make_train_step(model, adapter, optimizer, mesh, StepOptions(slices=slices))
    state, info = step(state, place_batch(mesh, batch))
    return jax.device_get(state), jax.device_get(info)


@pytest.mark.parametrize(("devices", "slices"), [(1, 4), (8, 2)])
@pytest.mark.slow
def test_a_batch_in_slices_has_the_gradient_of_the_whole(schema, config, batch, devices, slices):
    model = build_model(schema, config)
    whole, info_whole, _ = after_steps(model, unweighted(), 1, [batch])
    parts, info_parts = sliced(model, unweighted(), batch, devices, slices)
    assert info_parts.loss == pytest.approx(info_whole.loss, abs=1e-6)
    assert info_parts.cross_entropy == pytest.approx(info_whole.cross_entropy, abs=1e-6)
    assert info_parts.gradient_norm == pytest.approx(info_whole.gradient_norm, rel=1e-5)
    # Relative to the largest entry of each array, some of which are all but zero.
    assert largest_difference(moments(parts), moments(whole)) < 5e-4


@pytest.mark.slow
def test_slices_are_the_same_rows_on_any_number_of_devices(schema, config, batch):
    """D3's weights are normalised within a slice, so that slices of other rows would show."""
    model_config = dataclasses.replace(config.model, embedding_dropout=0.3)
    model = build_model(schema, dataclasses.replace(config, model=model_config))
    adapter = weigh_rows(BalanceOptions(), start_step=0)
    one, info_one = sliced(model, adapter, batch, 1, 4)
    eight, info_eight = sliced(model, adapter, batch, 8, 4)
    assert info_eight.loss == pytest.approx(info_one.loss, abs=1e-6)
    assert largest_difference(moments(eight), moments(one)) < 1e-4
    _, info_whole = sliced(model, adapter, batch, 1, 1)
    assert abs(info_whole.loss - info_one.loss) > 1e-5


def test_the_step_compiles_once_and_donates_the_old_state(schema, config, batch):
    model = build_model(schema, config)
    mesh = make_mesh()
    state = replicate(mesh, init_state(model, unweighted(), adamw_for(model), seed=0))
    step = make_train_step(model, unweighted(), adamw_for(model), mesh)
    for seed in range(3):
        old = state
        state, _ = step(state, place_batch(mesh, make_batch(schema, 64, seed)))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
    assert step._cache_size() == 1


@pytest.mark.slow
def test_a_weight_schedule_changes_nothing_before_it_starts(schema, config, batch):
    model = build_model(schema, config)
    batches = [batch] * 4
    plain, _, _ = after_steps(model, unweighted(), 8, batches)
    later, _, _ = after_steps(model, weigh_rows(BalanceOptions(), 4), 8, batches)
    earlier, _, _ = after_steps(model, weigh_rows(BalanceOptions(), 3), 8, batches)
    assert largest_difference(moments(plain), moments(later)) < 1e-4
    assert largest_difference(moments(plain), moments(earlier)) > 1e-2


@pytest.mark.slow
def test_neutral_weights_make_d3_equal_d2(schema, config, batch):
    neutral = BalanceOptions(
        complexity_shift=1, complexity_scale=0, specificity_shift=1, specificity_scale=0
    )
    model = build_model(schema, config)
    d2, _, _ = after_steps(model, unweighted(), 8, [batch] * 3)
    d3, _, _ = after_steps(model, weigh_rows(neutral, 0), 8, [batch] * 3)
    assert largest_difference(moments(d2), moments(d3)) < 1e-4


@pytest.mark.slow
def test_dropout_is_the_same_on_any_number_of_devices(schema, config, batch):
    model_config = dataclasses.replace(config.model, embedding_dropout=0.4)
    model = build_model(schema, dataclasses.replace(config, model=model_config))
    one, info_one, _ = after_steps(model, unweighted(), 1, [batch])
    eight, info_eight, _ = after_steps(model, unweighted(), 8, [batch])
    _, info_without, _ = after_steps(build_model(schema, config), unweighted(), 1, [batch])
    assert info_eight.loss == pytest.approx(info_one.loss, abs=1e-6)
    assert largest_difference(moments(eight), moments(one)) < 1e-4
    assert info_without.loss != info_one.loss


def test_padding_and_its_contents_change_nothing(schema, config, batch):
    model = build_model(schema, config)
    noise = make_batch(schema, 64, seed=9)
    other = jax.tree.map(
        lambda real, fake: np.where(batch.mask.reshape(-1, *[1] * (real.ndim - 1)), real, fake),
        batch,
        noise,
    )._replace(mask=batch.mask)
    adapter = weigh_rows(BalanceOptions(), 0)
    ours, _, _ = after_steps(model, adapter, 8, [batch])
    theirs, _, _ = after_steps(model, adapter, 8, [other])
    assert largest_difference(moments(ours), moments(theirs)) < 1e-6


def test_scores_are_those_of_the_model_and_ignore_neighbours(schema, config, batch):
    d3 = dataclasses.replace(config.d3, form="official", head_layers=(4,))
    model = build_model(schema, dataclasses.replace(config, d3=d3))
    mesh = make_mesh()
    state = init_state(model, unweighted(), adamw_for(model), seed=0)
    score = make_score_step(model, mesh)
    placed = replicate(mesh, state)
    scored = score(placed.params, placed.model_state, place_batch(mesh, batch))
    output, _ = jax.jit(model.apply)(state.params, state.model_state, batch)
    np.testing.assert_allclose(scored.logits, output.logits, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scored.attention.sum(-1), 1.0, rtol=1e-5)
    order = np.random.default_rng(0).permutation(64)
    shuffled = jax.tree.map(lambda array: array[order], batch)
    again = score(placed.params, placed.model_state, place_batch(mesh, shuffled))
    np.testing.assert_allclose(again.logits, np.asarray(scored.logits)[order], atol=1e-6)


def test_scores_are_weighed_as_the_balance_weighs_the_batch(schema, config, batch):
    model = build_model(schema, config)
    mesh, balance = make_mesh(), weigh_rows(BalanceOptions(), 0)
    state = init_state(model, balance, adamw_for(model), seed=0)
    placed = replicate(mesh, state)
    score = make_score_step(model, mesh, balance)
    scored = score(placed.params, placed.model_state, place_batch(mesh, batch))
    output, _ = jax.jit(model.apply)(state.params, state.model_state, batch)
    batch = jax.tree.map(jnp.asarray, batch)
    expected = balance.row_weights((), output, batch, jnp.int32(0), Mode())
    np.testing.assert_allclose(scored.weight, expected, rtol=1e-3)
    assert float(np.ptp(expected)) > 0.1
    plain = make_score_step(model, mesh)(
        placed.params, placed.model_state, place_batch(mesh, batch)
    )
    assert plain.weight is None


def test_why_parameters_are_made_varying_before_the_gradient():
    """The trap the step avoids: gradients of replicated parameters arrive already summed, so
    averaging or summing them again is wrong; made varying first, they are each device's own."""
    mesh = make_mesh()
    weights, rows = jnp.ones(3), jnp.arange(24.0).reshape(8, 3)
    truth = jax.grad(lambda w: (rows @ w).mean())(weights)

    def gradient(cast):
        def program(w, x):
            w = lax.pcast(w, DATA_AXIS, to="varying") if cast else w
            return lax.pmean(jax.grad(lambda v: (x @ v).mean())(w), DATA_AXIS)

        return jax.shard_map(program, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=P())(
            weights, rows
        )

    np.testing.assert_allclose(gradient(cast=True), truth, rtol=1e-6)
    np.testing.assert_allclose(gradient(cast=False), 8 * truth, rtol=1e-6)


@pytest.mark.slow
def test_a_gpu_is_told_to_add_in_one_order_when_asked(schema, config, monkeypatch):
    told = []
    compiled = jax.jit

    def jit(*arguments, compiler_options=None, **options):
        told.append(compiler_options)
        return compiled(*arguments, compiler_options=compiler_options, **options)

    monkeypatch.setattr(jax, "jit", jit)
    for asked, expected in ((False, None), (True, {"xla_gpu_deterministic_ops": True})):
        told.clear()
        train = dataclasses.replace(config.train, deterministic=asked, batch_size=64)
        trainer = build_trainer(schema, dataclasses.replace(config, train=train), 1)
        assert told.count(expected) >= 2, "the training and the scoring step"
    state, _ = trainer.train_step(
        trainer.init(), place_batch(trainer.mesh, make_batch(schema, 64, seed=0))
    )
    assert state.step == 1

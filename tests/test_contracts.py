"""What every model must do, whatever backbone, head, parts and loss adapter it is made of.

A new backbone gets all of this by its line in the registry.
"""

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.adapters.d3 import binary_cross_entropy
from d3jax.adapters.dtp import DTPOptions
from d3jax.adapters.dwa import DWAOptions
from d3jax.balance import weighted_loss
from d3jax.base import EVALUATION, Mode, Model
from d3jax.batch import Batch, Field, Schema
from d3jax.config import AdapterConfig, Config, ModelConfig, OptimizerConfig
from d3jax.errors import ConfigError, DataError
from d3jax.heads import D3Options
from d3jax.parameters import initialize, named_leaves
from d3jax.parts import build_model, build_trainer, refusal
from d3jax.registry import BACKBONES
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.sharding import make_mesh, place_batch
from tests.cases import cases
from tests.d3jax.training.world import moments

SCHEMA = Schema(
    (Field("user", 30), Field("item", 20), Field("tags", 6, slots=2), Field("place", 4)),
    ("home", "detail", "slot"),
    scenario_field="place",
    user_field="user",
    item_field="item",
)
ONE_SCENARIO = dataclasses.replace(SCHEMA, scenarios=("only",))
TRAIN = Mode(train=True)
ROWS, REAL = 32, 27


def config_of(backbone: str, head: str, parts: str) -> Config:
    base = Config()
    return dataclasses.replace(
        base,
        model=ModelConfig(
            backbone, head, 4, embedding_init="normal", embedding_scale=0.5, bottom_layers=(8, 6)
        ),
        d3=D3Options(parts=parts, field_hidden=3, width=5, gate_layers=(6, 4)),
        balance=dataclasses.replace(base.balance, start_ratio=0.0),
        train=dataclasses.replace(base.train, batch_size=ROWS),
    )


def sensible() -> dict[str, Config]:
    """Every backbone, head and parts that go together; parts only vary with the D3 head."""
    heads = [("own", "d2"), ("m2m_wg", "d2"), ("pepnet_wg", "d2")]
    heads += [("d3", parts) for parts in ("d1", "d2", "d3")]
    configs = {
        f"{backbone}-{head}" + (f"-{parts}" if head == "d3" else ""): config_of(
            backbone, head, parts
        )
        for backbone, (head, parts) in itertools.product(BACKBONES.names(), heads)
    }
    for name, wide in itertools.product(
        ("plain-own", "shared_bottom-d3-d3"), ("residual", "crosses")
    ):
        config = configs[name]
        configs[f"{name}-{wide}"] = dataclasses.replace(
            config, model=dataclasses.replace(config.model, wide=wide)
        )
    for name in ("plain-d3-d1", "plain-d3-d2", "plain-d3-d3", "shared_bottom-d3-d3"):
        config = configs[name]
        configs[f"{name}-adaptive"] = dataclasses.replace(
            config, d3=dataclasses.replace(config.d3, form="adaptive", head_layers=(4,))
        )
    return {name: config for name, config in configs.items() if refusal(SCHEMA, config) is None}


SENSIBLE = sensible()
BEYOND_THE_PAPER = ("ple", "pepnet", "adasparse", "hamur", "m3oe", "adaptdhm")
QUICK = {
    name
    for name in SENSIBLE
    if name.endswith("-own" if name.startswith(BEYOND_THE_PAPER) else "-d3-d3")
} | {"shared_bottom-m2m_wg", "plain-own-crosses", "plain-d3-d3-adaptive"}
QUICK_ON_DEVICES = {"star-d3-d3"}
"""Two compilations, of programs for eight devices."""
QUICK_ALONE = {"star-d3-d3", "adi-d3-d3", "plain-own-crosses", "adasparse-own"}
"""Models with statistics or tables by scenario."""


@pytest.fixture(scope="module", params=cases(SENSIBLE, QUICK))
def name(request: pytest.FixtureRequest) -> str:
    """A model's name; as a fixture of the module it keeps the tests of one model together."""
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> "Case":
    return Case(name)


def make_batch(schema: Schema = SCHEMA, seed: int = 0, rows: int = ROWS, real: int = REAL) -> Batch:
    rng = np.random.default_rng(seed)
    sizes = np.array([field.size for field in schema.fields])[schema.slot_field]
    ids = rng.integers(0, sizes, (rows, schema.num_slots)).astype(np.int32)
    ids[::2, 3] = -1
    scenario = (ids[:, -1] % schema.num_scenarios).astype(np.int32)
    label = rng.integers(0, 2, rows).astype(np.float32)
    return Batch(ids, scenario, label, np.arange(rows) < real)


def initialized(model: Model) -> tuple[Any, Any]:
    """Parameters moved off their initial values, so that no term hides, and initial statistics."""
    draw, rng = jax.jit(partial(initialize, tuple(model.declared))), np.random.default_rng(2)
    params, state = draw(jax.random.key(1))
    noisy = jax.tree.map(lambda leaf: leaf + np.float32(rng.normal(0, 0.1, leaf.shape)), params)
    return noisy, state


def drawn(model: Model) -> tuple[Any, Any]:
    """Positive numbers for all of a model's arrays, which takes no compilation."""
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.uniform(0.1, 0.5, p.shape), p.dtype), tuple(model.declared)
    )


class Case:
    """A model with parameters and statistics, and its compiled functions."""

    def __init__(self, name: str, schema: Schema = SCHEMA, start=initialized) -> None:
        self.config = SENSIBLE[name]
        self.model: Model = build_model(schema, self.config)
        self.params, self.state = start(self.model)
        self.score = jax.jit(lambda batch: self.model.apply(self.params, self.state, batch)[0])

        self.differentiate = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

    def _loss(self, params, batch: Batch):
        output, state = self.model.apply(params, self.state, batch, TRAIN)
        losses = binary_cross_entropy(output.logits, batch.label)
        return weighted_loss(losses, jnp.ones_like(losses), batch.mask), state

    def gradient(self, batch: Batch):
        """Loss and gradient of the mean loss in training mode, with the new state, on the host."""
        (value, state), gradient = jax.device_get(
            self.differentiate(self.params, jax.device_put(batch))
        )
        return value, gradient, state


def test_one_finite_logit_a_row(model):
    logits = np.asarray(model.score(make_batch()).logits)
    assert logits.shape == (ROWS,)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 1e-3


def test_jit_changes_nothing():
    model, batch = Case("plain-d3-d3"), make_batch()
    plain, _ = model.model.apply(model.params, model.state, batch, EVALUATION)
    np.testing.assert_allclose(model.score(batch).logits, plain.logits, rtol=0, atol=2e-6)


def test_every_parameter_gets_a_finite_gradient(model):
    _, gradient, _ = model.gradient(make_batch(real=ROWS))
    for path, leaf in named_leaves(gradient).items():
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, f"{path} gets no gradient"


def test_in_evaluation_a_row_does_not_depend_on_its_neighbours(model):
    batch, others = make_batch(), make_batch(seed=5)
    together = np.asarray(model.score(batch).logits)
    order = np.random.default_rng(1).permutation(ROWS)
    shuffled = model.score(jax.tree.map(lambda column: column[order], batch)).logits
    np.testing.assert_allclose(shuffled, together[order], rtol=0, atol=2e-6)
    for other, column in zip(others, batch, strict=True):
        other[3] = column[3]
    among_others = model.score(others).logits
    np.testing.assert_allclose(among_others[3], together[3], rtol=0, atol=2e-6)


def test_padded_rows_change_nothing(model):
    batch, noise = make_batch(), make_batch(seed=5)
    filled = jax.tree.map(
        lambda real, other: np.concatenate([real[:REAL], other[REAL:]]), batch, noise
    )._replace(mask=batch.mask)
    for ours, theirs in zip(
        jax.tree.leaves(model.gradient(batch)), jax.tree.leaves(model.gradient(filled)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_scenario_missing_from_the_batch_is_left_alone(model):
    batch = make_batch(real=ROWS)
    present = batch._replace(scenario=(batch.scenario % 2).astype(np.int32))
    value, gradient, state = model.gradient(present)
    assert np.isfinite(value)
    for path, leaf in (named_leaves(gradient) | named_leaves(state)).items():
        assert np.isfinite(leaf).all(), path


@pytest.mark.parametrize("name", cases(SENSIBLE, QUICK_ALONE))
def test_one_scenario_and_one_row_work(name):
    model = Case(name, ONE_SCENARIO, drawn)
    value, gradient, _ = model.gradient(make_batch(ONE_SCENARIO, rows=1, real=1))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def two_steps(name: str, devices: int):
    """A trainer on some devices, the loss and moments of a first step, the state of a second.

    Only the first is compared between devices: Adam makes a whole step out of a gradient that
    is nothing but rounding, and devices round differently.
    """
    mesh = make_mesh(jax.devices()[:devices])
    with jax.numpy_dtype_promotion("standard"):  # optax' bias correction relies on it
        trainer = build_trainer(SCHEMA, SENSIBLE[name], 4, mesh)
        state, info = trainer.train_step(trainer.init(), place_batch(mesh, make_batch(seed=0)))
        first = jax.device_get((info.loss, moments(state)))
        state, _ = trainer.train_step(state, place_batch(mesh, make_batch(seed=1)))
    return trainer, first, state


@pytest.mark.parametrize("name", cases(SENSIBLE, QUICK_ON_DEVICES))
def test_eight_devices_equal_one_and_a_checkpoint_is_exact(name, tmp_path):
    _, (loss_one, moments_one), _ = two_steps(name, 1)
    trainer, (loss_eight, moments_eight), state = two_steps(name, 8)
    assert trainer.train_step._cache_size() == 1
    assert float(loss_eight) == pytest.approx(float(loss_one), abs=1e-6)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(moments_one))
    for ours, theirs in zip(*map(jax.tree.leaves, (moments_eight, moments_one)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(2, state, {})
    restored = checkpoints.restore(trainer.abstract).state
    checkpoints.close()
    assert_same_future(trainer, state, restored)


def assert_same_future(trainer, state, restored):
    """Both states are the same bits, and so are they after another step."""
    batch = place_batch(trainer.mesh, make_batch(seed=2))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    with jax.numpy_dtype_promotion("standard"):
        futures = [trainer.train_step(each, batch)[0] for each in (state, restored)]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, futures))


ADAPTERS = {
    "dwa": AdapterConfig("dwa", "scenario_sum"),
    "dtp": AdapterConfig("dtp"),
    "gradnorm": AdapterConfig("gradnorm", "scenario_sum"),
    "uncertainty": AdapterConfig("uncertainty", "scenario_sum"),
    "share": AdapterConfig("share"),
}
UPDATES = {
    "lazy_adamw": OptimizerConfig(embedding_update="lazy_adamw"),
    "adagrad": OptimizerConfig(embedding_update="adagrad"),
    "cosine": OptimizerConfig(schedule="cosine", warmup=0.2),
    "wsd-lazy": OptimizerConfig(schedule="wsd", embedding_update="lazy_adamw"),
    "clipped": OptimizerConfig(clip_norm=0.01),
    "averaged": OptimizerConfig(average=0.9),
    "averaged-lazy": OptimizerConfig(average=0.9, clip_norm=0.01, embedding_update="lazy_adamw"),
}


QUICK_TO_GO_ON = {"gradnorm", "averaged-lazy", "adagrad"}


@pytest.mark.parametrize(
    "name",
    cases((*ADAPTERS, *UPDATES), QUICK_TO_GO_ON),
)
def test_every_adapter_and_optimizer_goes_on_from_a_checkpoint_exactly(name, tmp_path):
    config = dataclasses.replace(
        SENSIBLE["shared_bottom-own"],
        adapter=ADAPTERS.get(name, AdapterConfig()),
        dwa=DWAOptions(period_steps=1),
        dtp=DTPOptions(period_steps=1),
        optimizer=UPDATES.get(name, OptimizerConfig()),
    )
    mesh = make_mesh(jax.devices()[:2])
    with jax.numpy_dtype_promotion("standard"):
        trainer = build_trainer(SCHEMA, config, 4, mesh)
        state = trainer.init()
        for seed in range(2):
            state, _ = trainer.train_step(state, place_batch(mesh, make_batch(seed=seed)))
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(2, state, {})
    restored = checkpoints.restore(trainer.abstract).state
    checkpoints.close()
    assert_same_future(trainer, state, restored)


def test_an_unknown_scenario_is_refused():
    batch = make_batch()
    batch.scenario[4] = 3
    with pytest.raises(DataError, match="scenario 3 in row 4 of the batch is unknown; the schema"):
        SCHEMA.check(batch.ids, batch.scenario)


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_what_makes_no_sense_is_refused_with_a_reason(backbone):
    for head, parts in itertools.product(("own", "d3", "m2m_wg", "pepnet_wg"), ("d1", "d2", "d3")):
        config = config_of(backbone, head, parts)
        reason = refusal(SCHEMA, config)
        if reason is None:
            build_model(SCHEMA, config)
            continue
        assert "use --" in reason
        with pytest.raises(ConfigError) as error:
            build_model(SCHEMA, config)
        assert str(error.value) == reason

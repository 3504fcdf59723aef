"""The terms of a scenario alone start at zero and are learnt as their equations say."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.base import EVALUATION, Inputs, Mode
from d3jax.batch import EMPTY, Batch, Field, Schema
from d3jax.config import Config, ModelConfig, OptimizerConfig
from d3jax.domains import Domains
from d3jax.embedding import padded_rows, slot_shares
from d3jax.layers import wide
from d3jax.layers.wide import ResidualParams, cross_places, residual
from d3jax.parameters import initialize
from d3jax.parts import build_model, build_trainer
from d3jax.training.sharding import make_mesh
from tests.cases import cases

SCHEMA = Schema(
    (Field("user", 9), Field("item", 7), Field("tags", 6, slots=3)), ("home", "detail", "slot")
)
ROWS = 16


def batch_of(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, [9, 7, 6, 6, 6], (ROWS, 5)).astype(np.int32)
    ids[rng.random((ROWS, 5)) < 0.3] = EMPTY
    return Batch(
        ids,
        rng.integers(0, 3, ROWS).astype(np.int32),
        rng.integers(0, 2, ROWS).astype(np.float32),
        rng.random(ROWS) < 0.8,
    )


def config_of(wide: str, **optimizer: Any) -> Config:
    model = ModelConfig("plain", "own", 4, embedding_init="normal", bottom_layers=(5,), wide=wide)
    return dataclasses.replace(
        Config(model=model, optimizer=OptimizerConfig(**optimizer)),
        train=dataclasses.replace(Config().train, batch_size=ROWS),
    )


def test_the_residual_is_linear_in_the_embeddings_by_scenario() -> None:
    rng = np.random.default_rng(0)
    x, weight, offset = rng.normal(size=(6, 3, 4)), rng.normal(size=(2, 3, 4)), rng.normal(size=2)
    scenario = np.array([0, 1, 1, 0, 1, 0], np.int32)
    inputs = Inputs(jnp.asarray(x, jnp.float32), jnp.asarray(scenario), jnp.ones(6, bool))
    params = ResidualParams(jnp.asarray(weight, jnp.float32), jnp.asarray(offset, jnp.float32))
    expected = [
        sum(x[row, f] @ weight[s, f] for f in range(3)) + offset[s]
        for row, s in enumerate(scenario)
    ]
    np.testing.assert_allclose(residual(params, inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["residual", "crosses"])
def test_a_model_begins_as_the_model_without(kind: str) -> None:
    batch, logits = batch_of(0), []
    for each in ("none", kind):
        model = build_model(SCHEMA, config_of(each))
        params, state = initialize(tuple(model.declared), jax.random.key(0))
        if kind == "residual" and each == kind:
            plain = build_model(SCHEMA, config_of("none"))
            start, _ = initialize(tuple(plain.declared), jax.random.key(0))
            network = params.network._replace(backbone=start.network)
            params = params._replace(network=network)
        logits.append(np.asarray(model.apply(params, state, batch)[0].logits))
    np.testing.assert_array_equal(logits[0], logits[1])


class Reference:
    """Crosses in float64, in dictionaries by scenario, field and value or, with `places`, by
    what hashing makes of these."""

    def __init__(self, places: dict[Any, int]) -> None:
        self.places = places
        self.weight: dict[Any, float] = {}
        self.squares: dict[Any, float] = {}

    def keys(self, batch: Batch, row: int) -> list[tuple[Any, float]]:
        ids = batch.ids[row]
        tags = [slot for slot in (2, 3, 4) if ids[slot] != EMPTY]
        shares = {0: 1.0, 1: 1.0} | {slot: 1 / len(tags) for slot in tags}
        used = [slot for slot in range(5) if ids[slot] != EMPTY]
        return [
            (self.places.get(key := (scenario, FIELD[slot], int(ids[slot])), key), shares[slot])
            for scenario in (int(batch.scenario[row]), ALL)
            for slot in used
        ]

    def logit(self, batch: Batch, row: int) -> float:
        return sum(self.weight.get(key, 0.0) * share for key, share in self.keys(batch, row))

    def learn(self, batch: Batch, other: np.ndarray) -> None:
        gradients: dict[Any, float] = {}
        for row in np.flatnonzero(batch.mask):
            error = 1 / (1 + np.exp(-other[row] - self.logit(batch, row))) - batch.label[row]
            for key, share in self.keys(batch, row):
                gradients[key] = gradients.get(key, 0.0) + error * share
        for key, gradient in gradients.items():
            total = gradient + 0.05 * self.weight.get(key, 0.0)
            self.squares[key] = self.squares.get(key, 0.0) + total**2
            step = 0.05 * total / (1 + np.sqrt(self.squares[key]))
            self.weight[key] = self.weight.get(key, 0.0) - step


FIELD = (0, 1, 2, 2, 2)
ALL = 3
"""In the place of a scenario: the weight that all of them share."""


def all_places(size: int) -> dict[Any, int]:
    """The place of each scenario, field and value, and of each value in all scenarios."""
    pairs = [(s, f, v) for s in range(3) for f in range(3) for v in range((9, 7, 6)[f])]
    ids = np.full((len(pairs), 5), EMPTY, np.int32)
    for row, (_, field, value) in enumerate(pairs):
        ids[row, field] = value
    scenario = np.array([pair[0] for pair in pairs], np.int32)
    batch = Batch(ids, scenario, np.zeros(len(pairs), np.float32), np.ones(len(pairs), bool))
    places = np.asarray(cross_places(SCHEMA, Domains(3), jax.tree.map(jnp.asarray, batch), size))
    found = dict(zip(pairs, places[:, :5].min(-1).tolist(), strict=True))
    for (_, field, value), shared in zip(pairs, places[:, 5:].min(-1).tolist(), strict=True):
        assert found.setdefault((ALL, field, value), shared) == shared
    return found


def test_each_cross_has_a_place_of_its_own_or_a_hashed_one() -> None:
    exact, hashed = all_places(4 * padded_rows(SCHEMA)), all_places(1000)
    assert len(set(exact.values())) == len(exact) == 88
    assert set(exact.values()) <= set(range(4 * padded_rows(SCHEMA)))
    assert 78 <= len(set(hashed.values())) <= 88
    # A hash in tenths of its range: 88 values of a uniform one are within 0 and 20 in each.
    tenths = np.bincount(np.array(list(hashed.values())) // 100, minlength=10)
    assert len(tenths) == 10
    assert tenths.max() <= 20


@pytest.mark.parametrize("most", [wide.MOST_CROSSES, 400])
def test_crosses_are_learnt_as_the_reference_learns(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In places of their own, and in those that hashing gives."""
    monkeypatch.setattr(wide, "MOST_CROSSES", most)
    reference = Reference(all_places(most) if most == 400 else {})
    model = build_model(SCHEMA, config_of("crosses"))
    plain = build_model(SCHEMA, config_of("none"))
    params, state = initialize(tuple(model.declared), jax.random.key(0))
    step = jax.jit(lambda state, batch: model.apply(params, state, batch, Mode(train=True)))
    for seed in range(12):
        batch = batch_of(seed)
        other = np.asarray(plain.apply(params, (), batch)[0].logits, float)
        expected = [other[row] + reference.logit(batch, row) for row in range(ROWS)]
        output, state = step(state, batch)
        np.testing.assert_allclose(
            np.asarray(output.logits)[batch.mask], np.array(expected)[batch.mask], atol=1e-5
        )
        reference.learn(batch, other)
    learnt = np.asarray(state.crosses.weight)
    assert len(learnt) == min(most, 4 * padded_rows(SCHEMA))
    assert np.count_nonzero(learnt) == len(reference.weight)
    np.testing.assert_allclose(
        np.sort(learnt[learnt != 0]), sorted(reference.weight.values()), rtol=1e-4, atol=1e-6
    )


def test_crosses_do_not_learn_in_evaluation() -> None:
    model = build_model(SCHEMA, config_of("crosses"))
    params, state = initialize(tuple(model.declared), jax.random.key(0))
    _, after = model.apply(params, state, batch_of(0), EVALUATION)
    jax.tree.map(np.testing.assert_array_equal, state, after)


def test_a_multi_valued_field_counts_once() -> None:
    ids = jnp.asarray([[1, 2, 3, 4, EMPTY], [1, EMPTY, EMPTY, EMPTY, EMPTY]], jnp.int32)
    expected = [[1, 1, 0.5, 0.5, 0], [1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(slot_shares(SCHEMA, ids), expected)


@pytest.mark.parametrize("kind", cases(["residual", "crosses"], quick=["crosses"]))
def test_eight_devices_learn_what_one_learns(kind: str) -> None:
    ends = []
    for devices in (1, 8):
        mesh = make_mesh(jax.devices()[:devices])
        with jax.numpy_dtype_promotion("standard"):
            trainer = build_trainer(SCHEMA, config_of(kind), 4, mesh)
            state = trainer.init()
            for seed in range(3):
                state, _ = trainer.step(state, batch_of(seed))
        network: Any = state.params.network
        found = network.residual if kind == "residual" else state.model_state.crosses[:2]
        ends.append(jax.device_get(found))
    for ours, theirs in zip(*ends, strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(theirs).max())


def test_the_residual_has_a_decay_of_its_own() -> None:
    """Without a real row there is no gradient, and a step multiplies by 1 - rate·decay."""
    config = config_of("residual", weight_decay=2.0, own_decay=5.0, learning_rate=0.1)
    mesh = make_mesh(jax.devices()[:1])
    with jax.numpy_dtype_promotion("standard"):
        trainer = build_trainer(SCHEMA, config, 4, mesh)
        state = trainer.init()
        big = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1000.0), state.params.network)
        state = state._replace(params=state.params._replace(network=big))
        state, _ = trainer.step(state, batch_of(0)._replace(mask=np.zeros(ROWS, bool)))
    moved: Any = jax.device_get(state.params.network)
    for leaf in jax.tree.leaves(moved.residual):
        np.testing.assert_allclose(leaf, 1000 * (1 - 0.1 * 5), rtol=1e-3)
    for leaf in jax.tree.leaves(moved.backbone):
        np.testing.assert_allclose(leaf, 1000 * (1 - 0.1 * 2), rtol=1e-3)

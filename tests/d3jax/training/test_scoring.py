"""Scores of many batches: real rows only, in the order in which they came."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.adapters.d3 import unweighted
from d3jax.base import ModelParams
from d3jax.batch import Batch
from d3jax.config import OptimizerConfig
from d3jax.embedding import EmbeddingParams
from d3jax.parts import build_model
from d3jax.training import scoring
from d3jax.training.metrics import Scores
from d3jax.training.optimizer import build_optimizer
from d3jax.training.scoring import collect_scores, gather_scores, score_batches
from d3jax.training.sharding import make_mesh
from d3jax.training.step import Scored, init_state, make_score_step
from tests.d3jax.training.world import make_batch

PADDING = (0, 5, 64, 61)


def numbered_batches(schema):
    """64 rows each, whose first id numbers them; the third batch is all padding."""
    for start, padding in enumerate(PADDING):
        batch = make_batch(schema, 64, seed=start, padding=padding)
        ids = batch.ids.copy()
        ids[:, 0] = 64 * start + np.arange(64)
        yield batch._replace(ids=ids)


NO_PARAMS = ModelParams(EmbeddingParams(jnp.zeros((1, 1))), ())


def numbers_as_logits(params, model_state, batch):
    """A scoring step that answers each row with its number."""
    return Scored(batch.ids[:, 0].astype("float32"), None, None)


def real_numbers():
    return np.concatenate([64 * start + np.arange(64 - pad) for start, pad in enumerate(PADDING)])


def test_padding_is_dropped_and_the_order_kept(schema):
    scored = score_batches(numbers_as_logits, NO_PARAMS, (), numbered_batches(schema), make_mesh())
    pairs = list(scored)
    assert [len(batch.label) for batch, _ in pairs] == [64, 59, 0, 3]
    for batch, output in pairs:
        np.testing.assert_array_equal(output.logits, batch.ids[:, 0])
    scores = collect_scores(pairs)
    batches = list(numbered_batches(schema))
    np.testing.assert_array_equal(scores.logits, real_numbers())
    for column in ("label", "scenario"):
        expected = np.concatenate([getattr(batch, column)[batch.mask] for batch in batches])
        np.testing.assert_array_equal(getattr(scores, column), expected)


def test_a_mask_with_holes_drops_just_those_rows(schema):
    batch = make_batch(schema, 64, seed=0)
    batch = batch._replace(mask=np.arange(64) % 3 != 1)
    [(real, output)] = score_batches(numbers_as_logits, NO_PARAMS, (), [batch], make_mesh())
    np.testing.assert_array_equal(output.logits, batch.ids[batch.mask, 0])
    np.testing.assert_array_equal(real.ids, batch.ids[batch.mask])
    assert real.mask.all()


def test_the_next_batch_is_under_way_while_one_is_looked_at(schema):
    begun = []

    def step(params, model_state, batch):
        begun.append(int(batch.ids[0, 0]) // 64)
        return numbers_as_logits(params, model_state, batch)

    scored = score_batches(step, NO_PARAMS, (), numbered_batches(schema), make_mesh())
    seen = [len(begun) for _ in scored]
    assert begun == [0, 1, 2, 3]
    assert seen == [2, 3, 4, 4]


def test_two_processes_scores_come_in_the_order_of_one(monkeypatch):
    def piece(*numbers):
        rows = np.array(numbers, np.int32)
        return Scores(rows.astype(np.float32), rows % 2 == 1, rows % 3, rows + 100)

    shares = [[piece(0, 1), piece(4, 5), piece(8, 9)], [piece(2, 3), piece(6, 7), piece()]]
    told = []
    for mine in shares:
        sizes = np.array([len(part.label) for part in mine])
        told.append([sizes, *Scores.merge(mine)])
    columns = zip(*told, strict=True)

    def other_process_too(mine):
        everyone = list(next(columns))
        np.testing.assert_array_equal(mine, everyone[0])
        return everyone

    monkeypatch.setattr(scoring, "gather_arrays", other_process_too)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    scores = gather_scores(shares[0])
    expected = piece(*range(10))
    for ours, theirs in zip(scores, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_models_scores_are_host_arrays_of_the_real_rows(schema, config, devices):
    model = build_model(schema, config)
    optimizer = build_optimizer(OptimizerConfig(), model, steps=1)
    state = jax.jit(lambda: init_state(model, unweighted(), optimizer, seed=0))()
    mesh = make_mesh(jax.devices()[:devices])
    batches = [make_batch(schema, 64, seed, padding=14 * seed) for seed in range(2)]
    step = make_score_step(model, mesh)
    for batch, (rows, output) in zip(
        batches, score_batches(step, state.params, state.model_state, batches, mesh), strict=True
    ):
        real = Batch(*(column[batch.mask] for column in batch))
        expected, _ = jax.jit(model.apply)(state.params, state.model_state, real)
        assert all(isinstance(array, np.ndarray) for array in jax.tree.leaves((rows, output)))
        np.testing.assert_array_equal(rows.label, real.label)
        np.testing.assert_allclose(output.logits, expected.logits, rtol=0, atol=1e-6)
        np.testing.assert_allclose(output.gate, expected.gate, rtol=0, atol=1e-6)
        assert output.attention.shape == (len(real.label), schema.num_fields)

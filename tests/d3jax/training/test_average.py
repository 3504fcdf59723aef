"""The average of the weights against its definition in float64 NumPy, row by row and whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.base import ModelParams
from d3jax.embedding import EmbeddingParams
from d3jax.training.average import averaged, follow, init_average
from d3jax.training.table.rows import RowSums

V, D, DECAY = 6, 3, 0.8


def weights_of(step, previous, row_wise):
    """The weights after a step, and the rows that it moved: none in step 4, row 5 never."""
    rng = np.random.default_rng(step)
    rows = np.flatnonzero(rng.random(V - 1) < 0.5) if step != 4 else np.zeros(0, int)
    table = np.array(previous.embedding.table)
    moved = rows if row_wise else np.arange(V)
    table[moved] += rng.normal(size=(len(moved), D)).astype(np.float32)
    kernel = np.float32(rng.normal(size=4))
    return ModelParams(EmbeddingParams(jnp.asarray(table)), jnp.asarray(kernel)), rows


def sums_of(rows):
    """What names these rows as a step does, with entries past the table's end between them."""
    named = np.full(2 * V, V, np.int32) + np.arange(2 * V, dtype=np.int32)
    named[1 : 2 * len(rows) : 2] = rows
    return RowSums(jnp.asarray(named), jnp.zeros((2 * V, D)), jnp.zeros(V, jnp.int32))


def mean_of(history):
    """Σ decay^(t-i) w_i / Σ decay^(t-i) over the weights after steps 1 to t."""
    shares = DECAY ** np.arange(len(history) - 1, -1, -1.0)
    stacked = jax.tree.map(lambda *arrays: np.stack([np.float64(a) for a in arrays]), *history)
    return jax.tree.map(lambda a: np.tensordot(shares / shares.sum(), a, 1), stacked)


@pytest.mark.parametrize("row_wise", [True, False])
def test_the_average_is_its_definition_at_every_step(row_wise):
    params = ModelParams(EmbeddingParams(jnp.full((V, D), 7.0)), jnp.full(4, 7.0))
    average, history = init_average(params, row_wise), []
    for leaf in jax.tree.leaves(averaged(average, DECAY, params, jnp.int32(0))):
        np.testing.assert_array_equal(leaf, 7.0)
    for step in range(1, 12):
        old = params.embedding.table
        params, rows = weights_of(step, params, row_wise)
        sums = sums_of(rows) if row_wise else None
        average = follow(average, DECAY, old, params, sums, jnp.int32(step))
        history.append(params)
        found = averaged(average, DECAY, params, jnp.int32(step))
        for ours, theirs in zip(*map(jax.tree.leaves, (found, mean_of(history))), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
    assert np.abs(found.embedding.table - params.embedding.table)[:5].max() > 0.1
    if row_wise:
        np.testing.assert_array_equal(found.embedding.table[5], 7.0)

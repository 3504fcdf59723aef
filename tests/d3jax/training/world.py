"""Random rows in which ids decide the click, and how far two trees are apart."""

import jax
import numpy as np

from d3jax.batch import EMPTY, Batch, Schema


def make_batch(schema: Schema, rows: int, seed: int, padding: int = 0) -> Batch:
    """`rows` random rows, of which the last `padding` are masked out."""
    rng = np.random.default_rng(seed)
    sizes = np.array([field.size for field in schema.fields])[schema.slot_field]
    ids = rng.integers(0, sizes, (rows, schema.num_slots)).astype(np.int32)
    second, third = (int(slot) for slot in np.flatnonzero(schema.slot_field == 1)[1:])
    ids[rng.random(rows) < 0.5, second] = EMPTY
    ids[:, third] = np.where(ids[:, second] == EMPTY, EMPTY, ids[:, third])
    label = (rng.random(rows) < 0.2 + 0.5 * (ids[:, 0] % 2)).astype(np.float32)
    mask = np.arange(rows) < rows - padding
    scenario = (ids[:, -1] % schema.num_scenarios).astype(np.int32)
    return Batch(ids, scenario, label, mask)


def largest_difference(ours, theirs) -> float:
    """The largest difference of two trees, relative to the largest entry of each array."""

    def relative(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)

    return max(jax.tree.leaves(jax.tree.map(relative, ours, theirs)))


def moments(state):
    """Adam's running means of the gradients of the network and of a densely updated table."""
    return state.optimizer_state.network[0].mu, state.optimizer_state.table[0].mu

"""Scoring any number of rows, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from d3jax.base import ModelParams
from d3jax.batch import Batch
from d3jax.parameters import Tree
from d3jax.training.distributed import gather_arrays
from d3jax.training.metrics import Scores
from d3jax.training.sharding import local_rows, place_batch
from d3jax.training.step import Scored, ScoreStep


def score_batches(
    score_step: ScoreStep,
    params: ModelParams,
    model_state: Tree,
    batches: Iterable[Batch],
    mesh: Mesh,
) -> Iterator[tuple[Batch, Scored]]:
    """Each batch's real rows and what the model says of them, as host arrays, in order.

    Where several processes share a batch, each gets its own rows.
    """
    for batch in batches:
        scored = score_step(params, model_state, place_batch(mesh, batch))
        real = np.asarray(batch.mask)
        yield jax.tree.map(lambda array, real=real: local_rows(array)[real], (batch, scored))


def collect_scores(scored: Iterable[tuple[Batch, Scored]], user_slot: int | None = None) -> Scores:
    """Logits, labels and scenarios of all batches, for the metrics; users where `user_slot` names
    the id slot that holds them.

    Every process gets the scores of all, so each metric is exact, AUC too, and the same whatever
    the number of processes. A row costs 4 bytes a column, of which there are three to six.
    """
    return gather_scores([scores_of(batch, out, user_slot) for batch, out in scored])


def scores_of(batch: Batch, scored: Scored, user_slot: int | None) -> Scores:
    """The scores of a batch without padding."""
    user = None if user_slot is None else batch.ids[:, user_slot]
    gate = None if scored.gate is None else np.asarray(scored.gate)[:, 0]
    weight = None if scored.weight is None else np.asarray(scored.weight)
    return Scores(np.asarray(scored.logits), batch.label, batch.scenario, user, gate, weight)


def gather_scores(pieces: Sequence[Scores]) -> Scores:
    """The scores of all processes in the order of one: by batch, and in a batch by process.

    `pieces` holds this process' share of every batch, which may be empty.
    """
    mine = Scores.merge(pieces)
    if jax.process_count() == 1:
        return mine
    sizes = gather_arrays(np.array([len(piece.label) for piece in pieces]))
    ends = [np.cumsum(size)[:-1] for size in sizes]

    def ordered(column: np.ndarray) -> np.ndarray:
        shares = [np.split(*whole) for whole in zip(gather_arrays(column), ends, strict=True)]
        return np.concatenate([part for batch in zip(*shares, strict=True) for part in batch])

    columns: list[Any] = [None if column is None else ordered(column) for column in mine]
    return Scores(*columns)

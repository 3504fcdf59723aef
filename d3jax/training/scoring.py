"""Scoring any number of rows, a batch at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from d3jax.base import ModelParams
from d3jax.batch import Batch
from d3jax.hosts.agreement import gather_arrays
from d3jax.parameters import Tree
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

    The device has the next batch before one is waited for. Where several processes share a batch,
    each gets its own rows.
    """
    waiting: deque[tuple[Batch, Scored]] = deque()
    for batch in batches:
        waiting.append((batch, score_step(params, model_state, place_batch(mesh, batch))))
        if len(waiting) > AHEAD:
            yield _real_rows(*waiting.popleft())
    while waiting:
        yield _real_rows(*waiting.popleft())


AHEAD = 1
"""Batches under way while the one before them is fetched; more were no faster."""


def _real_rows(batch: Batch, scored: Scored) -> tuple[Batch, Scored]:
    real = np.asarray(batch.mask)
    return jax.tree.map(lambda array: local_rows(array)[real], (batch, scored))


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

"""Scoring any number of rows, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from d3jax.base import ModelParams
from d3jax.batch import Batch
from d3jax.parameters import Tree
from d3jax.training.metrics import Scores
from d3jax.training.sharding import place_batch
from d3jax.training.step import Scored, ScoreStep


def score_batches(
    score_step: ScoreStep,
    params: ModelParams,
    model_state: Tree,
    batches: Iterable[Batch],
    mesh: Mesh,
) -> Iterator[tuple[Batch, Scored]]:
    """Each batch's real rows and what the model says of them, as host arrays, in order."""
    for batch in batches:
        scored = jax.device_get(score_step(params, model_state, place_batch(mesh, batch)))
        real = np.asarray(batch.mask)
        yield jax.tree.map(lambda array, real=real: np.asarray(array)[real], (batch, scored))


def collect_scores(scored: Iterable[tuple[Batch, Any]]) -> Scores:
    """Logits, labels and scenarios of all batches, for the metrics."""
    return Scores.merge(
        Scores(output.logits, batch.label, batch.scenario) for batch, output in scored
    )

"""Scores a run's rows: metrics, the planted truth beside them, and what attention saw."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from d3jax.batch import Schema
from d3jax.errors import DataError
from d3jax.training.fit import Trainer, build_trainer
from d3jax.training.metrics import Evaluation, Scores, evaluate_scores
from d3jax.training.scoring import collect_scores, score_batches
from d3jax.training.step import Scored, TrainState
from data_pipelines.columns import SPLITS, Prepared
from data_pipelines.loader import evaluation_batches, steps_per_epoch
from experiments.run import Run


class Evaluated(NamedTuple):
    """Metrics of one split; `best` is that of the planted truth where there is one; `attention`
    [S N] what each field receives on average, None for a model without."""

    metrics: Evaluation
    best: Evaluation | None
    attention: np.ndarray | None


class Loaded(NamedTuple):
    """A run's model with its best weights, ready to score."""

    trainer: Trainer
    state: TrainState
    step: int


def trainer_for(run: Run, num_rows: int | None = None) -> Trainer:
    """The trainer of a run; the number of training rows only matters for training itself."""
    steps = 1 if num_rows is None else steps_per_epoch(num_rows, run.config.train.batch_size)
    return build_trainer(run.schema, run.config, steps)


def load_best(run: Run) -> Loaded:
    """The weights of the run's best evaluation so far (the newest before there is one)."""
    trainer = trainer_for(run)
    checkpoints = run.checkpoints(writer=False)
    newest = checkpoints.restore(trainer.abstract)
    best = newest.progress["best_step"]
    if best not in (None, newest.step):
        newest = checkpoints.restore(trainer.abstract, best)
    checkpoints.close()
    return Loaded(trainer, newest.state, newest.step)


def evaluate_split(
    trainer: Trainer, state: TrainState, prepared: Prepared, split: str, batch_size: int
) -> Evaluated:
    """Metrics of `split` of a prepared directory."""
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; a prepared directory has {', '.join(SPLITS)}")
    rows = prepared.rows(split)
    scored = list(
        score_batches(
            trainer.score_step,
            state.params,
            state.model_state,
            evaluation_batches(rows, batch_size=batch_size),
            trainer.mesh,
        )
    )
    scores = collect_scores(scored)
    schema = prepared.schema
    return Evaluated(
        metrics=evaluate_scores(scores, schema.scenarios),
        best=_planted(prepared, split, scores),
        attention=mean_attention(schema, scores, [output for _, output in scored]),
    )


def mean_attention(schema: Schema, scores: Scores, scored: list[Scored]) -> np.ndarray | None:
    """[S N] the attention that each field receives, averaged over a scenario's rows."""
    if scored[0].attention is None:
        return None
    received = np.concatenate([np.asarray(output.attention) for output in scored])
    member = scores.scenario[:, None] == np.arange(schema.num_scenarios)
    with np.errstate(invalid="ignore"):
        return (member.T.astype(np.float64) @ received) / member.sum(0)[:, None]


def planted_fields(prepared: Prepared) -> np.ndarray | None:
    """[S N] the fields that the synthetic data planted as domain-sensitive; None elsewhere."""
    planted = prepared.provenance.get("planted")
    if planted is None:
        return None
    return np.array(
        [
            [field.name in planted[scenario] for field in prepared.schema.fields]
            for scenario in prepared.schema.scenarios
        ]
    )


def _planted(prepared: Prepared, split: str, scores: Scores) -> Evaluation | None:
    """What the true click probabilities, where the data has them, would score."""
    path = prepared.directory / split / "truth.npy"
    if not path.is_file():
        return None
    truth = np.load(path, mmap_mode="r", allow_pickle=False)
    logits = np.log(truth) - np.log1p(-truth)
    return evaluate_scores(scores._replace(logits=logits), prepared.schema.scenarios)


def run_evaluation(run: Run, split: str, data: Path | None) -> Evaluated:
    """What `d3jax evaluate` shows."""
    prepared = run.prepared(data)
    loaded = load_best(run)
    return evaluate_split(
        loaded.trainer, loaded.state, prepared, split, run.config.train.batch_size
    )


def device_summary() -> str:
    """The devices in words, such as "8 cpu devices"."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} {kind} device{'s' if len(devices) > 1 else ''}"

"""Scores a run's rows: metrics, the planted truth beside them, and what attention saw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from d3jax.batch import Batch
from d3jax.console.terminal import Console, styled
from d3jax.data.columns import SPLITS
from d3jax.data.loader import evaluation_batches, steps_per_epoch
from d3jax.data.prepared import Prepared
from d3jax.errors import CheckpointError, DataError
from d3jax.hosts.agreement import gather_arrays
from d3jax.parts import build_trainer
from d3jax.run import Run
from d3jax.training.checkpoint.checkpoints import Checkpoints, Restored
from d3jax.training.metrics import Evaluation, Scores, evaluate_scores
from d3jax.training.scoring import collect_scores, score_batches
from d3jax.training.step import Scored, TrainState
from d3jax.training.trainer import Trainer
from d3jax.unknown import Unknown, unknown_in

RESAMPLES = 1000
"""The number of times that rows are drawn again for the intervals of AUC."""


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

    def score(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Scored]]:
        """Yield each batch's real rows and what the model says of them (`score_batches`)."""
        trainer, state = self.trainer, self.state
        params = trainer.weights(state)
        return score_batches(trainer.score_step, params, state.model_state, batches, trainer.mesh)


def trainer_for(run: Run, debug: bool = False, models: int | None = None) -> Trainer:
    """Return the trainer of a run, or of that many side by side, of which it is the first.

    Raises `CheckpointError` for a model that no configuration describes.
    """
    if run.arrays:
        raise CheckpointError(
            f"{run.directory} holds a model of one's own, whose code d3jax doesn't have; call "
            "d3jax.fit with its trainer again, which returns the run, or d3jax.load the run, which "
            f"predicts by the program in {run.directory / EXPORTED}"
        )
    steps = steps_per_epoch(run.training_rows, run.config.train.batch_size)
    return build_trainer(run.schema, run.config, steps, debug=debug, models=models)


EXPORTED = "model"
"""The folder, in the run of a model of one's own, that holds it as `d3jax export` makes it."""


def load_best(run: Run, console: Console | None = None, own: Trainer | None = None) -> Loaded:
    """The weights of the run's best evaluation so far (the newest before there is one).

    Where its checkpoint is damaged, the best that an older checkpoint knew of, or the newest
    weights, stand in, and the console, by default standard error, says so. Raises
    `CheckpointError` when all are damaged. `own` is the trainer of a model of one's own.
    """
    trainer = own or trainer_for(run)
    with run.checkpoints(writer=False) as checkpoints:
        restored, warnings = _best_whole(checkpoints, trainer.abstract)
    console = console or Console(stderr=True)
    for warning in warnings:
        console.print(styled("damaged:", "bold red"), warning)
    return Loaded(trainer, restored.state, restored.step)


def _best_whole(checkpoints: Checkpoints, like: TrainState) -> tuple[Restored, list[str]]:
    """The checkpoint to score with, and a message for each that it stands in for."""
    newest = checkpoints.restore(like)
    warnings = list(newest.damaged)
    chosen = newest
    for step in reversed([step for step in checkpoints.steps() if step <= newest.step]):
        try:
            seen = newest if step == newest.step else checkpoints.restore(like, step)
            best = seen.progress["best_step"]
            chosen = seen if best in (None, step) else checkpoints.restore(like, best)
            break
        except CheckpointError as error:
            warnings.append(str(error))
    if len(warnings) > len(newest.damaged):
        warnings.append(f"the weights of step {chosen.step} are used instead")
    return chosen, list(dict.fromkeys(warnings))


def evaluate_split(
    trainer: Trainer, state: TrainState, prepared: Prepared, split: str, batch_size: int
) -> Evaluated:
    """Metrics of `split` of a prepared directory."""
    if split not in SPLITS:
        raise DataError(f"no split {split!r}; a prepared directory has {', '.join(SPLITS)}")
    rows = prepared.rows(split)
    batches = evaluation_batches(
        rows,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    scored = score_batches(
        trainer.score_step, trainer.weights(state), state.model_state, batches, trainer.mesh
    )
    schema = prepared.schema
    received = np.zeros((schema.num_scenarios, schema.num_fields))
    scores = collect_scores(adding_attention(received, scored), schema.user_slot)
    return Evaluated(
        metrics=evaluate_scores(scores, schema.scenarios, RESAMPLES),
        best=_planted(prepared, split, scores),
        attention=mean_attention(received, scores.scenario),
    )


def adding_attention(
    received: np.ndarray, scored: Iterable[tuple[Batch, Scored]]
) -> Iterator[tuple[Batch, Scored]]:
    """Passes scored batches on, and adds their rows' attention to the scenarios' sums [S N]."""
    for batch, output in scored:
        if output.attention is not None:
            member = batch.scenario == np.arange(len(received))[:, None]
            received += member.astype(np.float64) @ output.attention
        yield batch, output


def mean_attention(received: np.ndarray, scenario: np.ndarray) -> np.ndarray | None:
    """[S N] the attention that each field receives, averaged over a scenario's rows.

    `received` holds the sums over this process' rows, `scenario` all rows' of all processes. A
    row's attention sums to 1, so that only a model without any leaves zeros, and gets None.
    """
    total = np.stack(gather_arrays(received)).sum(0)
    if not total.any():
        return None
    rows = np.bincount(scenario, minlength=len(total))
    with np.errstate(invalid="ignore"):
        return total / rows[:, None]


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


def best_possible(prepared: Prepared, split: str) -> Evaluation | None:
    """Return the metrics of a split's true click probabilities; None where nobody knows them."""
    rows = prepared.rows(split)
    label, scenario = np.asarray(rows.label), np.asarray(rows.scenario)
    return _planted(prepared, split, Scores(np.zeros(0), label, scenario))


def _planted(prepared: Prepared, split: str, scores: Scores) -> Evaluation | None:
    """Return the metrics of the true click probabilities, where the data has them."""
    path = prepared.directory / split / "truth.npy"
    if not path.is_file():
        return None
    truth = np.load(path, mmap_mode="r", allow_pickle=False)
    logits = np.log(truth) - np.log1p(-truth)
    return evaluate_scores(scores._replace(logits=logits), prepared.schema.scenarios)


def run_evaluation(
    run: Run, split: str, data: Path | None, console: Console
) -> tuple[Evaluated, Unknown]:
    """Return what `d3jax evaluate` shows; tells the console what speaks against them."""
    prepared = run.prepared(data)
    warn_of_doubt(run, prepared, console)
    loaded = load_best(run)
    size = run.config.train.batch_size
    evaluated = evaluate_split(loaded.trainer, loaded.state, prepared, split, size)
    return evaluated, unknown_in(prepared, split, run.described)


def warn_of_doubt(run: Run, prepared: Prepared, console: Console) -> None:
    """Says on the console when the run may have been trained on rows of these data."""
    if doubt := run.doubt(prepared):
        console.print(styled("warning:", "yellow"), doubt)


def device_summary() -> str:
    """The devices in words, such as "8 cpu devices"."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} {kind} device{'s' if len(devices) > 1 else ''}"

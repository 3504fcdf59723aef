"""One cell of a comparison: a run that is trained once, resumed when it was cut short, and kept
as its evaluation."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from d3jax.config import Config
from d3jax.console.terminal import Console
from d3jax.data.loader import steps_per_epoch
from d3jax.data.prepared import Prepared
from d3jax.disk import writing
from d3jax.evaluate import Evaluated, trainer_for
from d3jax.journal import QuietJournal
from d3jax.owned import exclusive
from d3jax.parameters import count
from d3jax.run import Run
from d3jax.running import run_to_end
from d3jax.training.loop import total_steps
from d3jax.training.metrics import Evaluation
from d3jax.training.trainer import Trainer


@dataclass(frozen=True)
class CellResult:
    """The result of a finished cell: its test metrics and what they cost."""

    evaluation: Evaluation
    weights: int
    """Parameters without the embedding table."""
    steps: int
    best_step: int | None
    validation: float | None
    """The best value of the monitored metric."""
    seconds: float
    """Spent training and evaluating, in the attempt that finished; its share of those side by
    side."""
    attention: np.ndarray | None
    """[S N] what each field receives on average, NaN for a scenario without rows."""


def read_cell(run: Run | None) -> CellResult | None:
    """The result of a finished cell; None when it has still to be trained or evaluated."""
    if run is None:
        return None
    try:
        evaluation = json.loads((run.directory / "evaluation.json").read_text(encoding="utf-8"))
        facts = json.loads((run.directory / "cell.json").read_text(encoding="utf-8"))
        attention = facts.pop("attention")
        return CellResult(
            evaluation=Evaluation.from_json(evaluation),
            attention=None if attention is None else np.array(attention, float),
            **facts,
        )
    except (OSError, ValueError, KeyError, TypeError):
        # A run without both files, whole, is simply not finished.
        return None


def run_cells(
    runs: Sequence[Run],
    prepared: Prepared,
    trainer: Trainer,
    show: Callable[[float], None],
    should_stop: Callable[[int], bool],
    keep: bool,
) -> list[CellResult]:
    """Trains a method's cells, side by side, to their end and evaluates the best weights of each
    on the test rows.

    Their checkpoints are deleted then unless `keep`. Raises `Preempted` when it was asked to stop.
    """
    started = time.monotonic()
    last, size = expected_steps(prepared, runs[0].config), runs[0].config.train.batch_size
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(writing(run.directory))
            stack.enter_context(exclusive(run.directory))
        ended = run_to_end(
            runs,
            prepared,
            trainer,
            lambda run, start: QuietJournal(run, start, last, size, show),
            should_stop,
            Console(stderr=True),
        )
        for run, (progress, result, _) in zip(runs, ended, strict=True):
            facts = {
                "weights": count(trainer.model.declared.params.network),
                "steps": progress.step,
                "best_step": progress.best_step,
                "validation": progress.best_metric,
                "seconds": (time.monotonic() - started) / len(runs),
            }
            _write(run, result, facts)
            if not keep:
                shutil.rmtree(run.directory / "checkpoints")
    finished = [cell for run in runs if (cell := read_cell(run)) is not None]
    assert len(finished) == len(runs)
    return finished


def cell_trainer(runs: Sequence[Run]) -> Trainer:
    """Return a trainer of the runs, which differ in their seeds only."""
    return trainer_for(runs[0], models=len(runs) if len(runs) > 1 else None)


def expected_steps(prepared: Prepared, config: Config) -> int:
    """The most steps that a cell can take."""
    rows = len(prepared.rows("train").label)
    return total_steps(config.train, steps_per_epoch(rows, config.train.batch_size))


def _write(run: Run, result: Evaluated, facts: dict[str, Any]) -> None:
    """Writes both files, `evaluation.json` last: with it the cell is finished."""
    attention = None
    if result.attention is not None:
        attention = [
            [value if math.isfinite(value) else None for value in row]
            for row in result.attention.tolist()
        ]
    run.write_json("cell.json", {**facts, "attention": attention})
    run.write_json("evaluation.json", result.metrics.to_json())

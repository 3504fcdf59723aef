"""What a run tells while it trains: a progress bar, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from d3jax.checks import OVERALL
from d3jax.training.metrics import Evaluation, Metrics
from experiments.run import Run
from experiments.terminal import (
    BarColumn,
    Console,
    MofNCompleteColumn,
    Progress,
    TimeRemainingColumn,
    Words,
    styled,
)

WRITTEN = ("logloss", "auc", "gate", "weight")
"""The metrics of an evaluation that go into metrics.jsonl."""


class Journal(AbstractContextManager["Journal"]):
    """Observes a training loop, and writes down only what is the same for a resumed run."""

    def __init__(self, run: Run, console: Console, start: int, total: int, batch: int) -> None:
        self._console = console
        self._batch = batch
        self._file = _reopen(run.path("metrics.jsonl"), start).open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run.path("tensorboard")), purge_step=start + 1)
        self._progress = Progress(
            Words("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Words("{task.fields[rate]}", "cyan"),
            Words("rows/s  loss"),
            Words("{task.fields[loss]}", "cyan"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(
            "training", total=total, completed=start, rate="-", loss="-"
        )

    def __enter__(self) -> Journal:
        self._progress.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._progress.stop()
        self._file.close()
        self._events.close()

    def stepped(self, step: int) -> None:
        """Moves the bar."""
        speed = self._progress.tasks[0].speed
        rate = f"{speed * self._batch:,.0f}" if speed else "-"
        self._progress.update(self._task, completed=step, rate=rate)

    def logged(self, step: int, loss: float) -> None:
        """Writes the mean training loss."""
        self._progress.update(self._task, loss=f"{loss:.4f}")
        self._write(step, {"train/loss": loss})

    def evaluated(self, step: int, evaluation: Evaluation, improved: bool) -> None:
        """Writes the validation metrics and prints one line of them."""
        groups = {OVERALL: evaluation.overall, **evaluation.scenarios}
        self._write(step, {f"validation/{k}/{name}": v for name, k, v in _numbers(groups)})
        overall = evaluation.overall
        self._console.print(
            f"step {step}: validation AUC {_text(overall.auc)}, logloss {_text(overall.logloss)}",
            *([styled("(best so far)", "green")] if improved else []),
        )

    def skipped(self, step: int, reason: str) -> None:
        """Writes that a step was skipped, and prints why."""
        self._write(step, {"train/skipped": 1.0})
        self._console.print(styled(f"step {step} skipped: {reason}", "yellow"))

    def saving(self, step: int) -> None:
        """Puts everything up to the checkpoint on disk before the checkpoint is."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)


class Silence(AbstractContextManager["Silence"]):
    """Observes in a process that leaves the journal to another one."""

    def __exit__(self, *exception: Any) -> None:
        """Nothing was opened."""

    def stepped(self, step: int) -> None:
        """Says nothing."""

    def logged(self, step: int, loss: float) -> None:
        """Says nothing."""

    def evaluated(self, step: int, evaluation: Evaluation, improved: bool) -> None:
        """Says nothing."""

    def skipped(self, step: int, reason: str) -> None:
        """Says nothing."""

    def saving(self, step: int) -> None:
        """Says nothing."""


def _numbers(groups: dict[str, Metrics]) -> list[tuple[str, str, float]]:
    """(metric, group, value) of what is written down, where it is defined."""
    values = [
        (metric, group, getattr(metrics, metric))
        for group, metrics in groups.items()
        for metric in WRITTEN
    ]
    return [(metric, group, value) for metric, group, value in values if value is not None]


def _reopen(path: Path, start: int) -> Path:
    """Drops lines of steps after `start`, which the resumed run will take again."""
    if path.exists():
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= start]
        draft = path.with_suffix(".tmp")
        draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        draft.replace(path)
    return path


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a last one that a kill cut short."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"

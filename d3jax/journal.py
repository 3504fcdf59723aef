"""The journal of a run while it trains: a progress bar, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from d3jax.checks import OVERALL
from d3jax.console.event_file import EventFile
from d3jax.console.terminal import (
    BarColumn,
    Console,
    MofNCompleteColumn,
    Progress,
    TimeRemainingColumn,
    Words,
    styled,
)
from d3jax.owned import replacing
from d3jax.run import Run
from d3jax.training.metrics import Evaluation, Metrics

WRITTEN = ("logloss", "auc", "gate", "weight")
"""The metrics of an evaluation that go into metrics.jsonl."""


class Journal(AbstractContextManager["Journal"]):
    """Observes a training loop, and writes down only what is the same for a resumed run."""

    def __init__(self, run: Run, console: Console, start: int, total: int, batch: int) -> None:
        self._console = console
        self._batch = batch
        self._best = f"(best {run.config.train.monitor} so far)"
        path = run.path("metrics.jsonl")
        if broken := _drop_lines_after(path, start):
            console.print(styled(f"{broken} broken lines of {path} left out", "yellow"))
        self._open = ExitStack()
        self._file = self._open.enter_context(path.open("a", encoding="utf-8"))
        self._events = self._open.enter_context(EventFile(run.path("tensorboard"), start + 1))
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
        self._open.close()

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
            *([styled(self._best, "green")] if improved else []),
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
        self._events.add(step, values)


class QuietJournal(Journal):
    """A silent journal that tells its progress, a share of 1, to whoever shows it."""

    def __init__(
        self, run: Run, start: int, total: int, batch: int, show: Callable[[float], None]
    ) -> None:
        super().__init__(run, Console(quiet=True), start, total, batch)
        self._total, self._show = total, show

    def stepped(self, step: int) -> None:
        """Shows how far the run is."""
        super().stepped(step)
        self._show(step / self._total)


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


def read_journal(path: Path) -> tuple[list[dict[str, float]], int]:
    """The lines of metrics.jsonl, and how many more there are that say nothing.

    The last one isn't counted when a kill has cut it short.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [_parsed(line) for line in text.split("\n")[:-1]]
    whole = [line for line in lines if line is not None]
    return whole, len(lines) - len(whole)


def _parsed(line: str) -> dict[str, float] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    numbers = isinstance(values, dict) and all(type(v) in (int, float) for v in values.values())
    return values if numbers and type(values.get("step")) is int else None


def _drop_lines_after(path: Path, start: int) -> int:
    """Drops lines of steps after `start`, which the resumed run will take again, and broken ones,
    whose number it returns."""
    if not path.exists():
        return 0
    lines, broken = read_journal(path)
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= start]
    with replacing(path) as draft:
        draft.write_text("".join(kept), encoding="utf-8")
    return broken


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"

"""Trains a run from its start, or from where it stopped, to its evaluation and figures."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from d3jax.config import Config
from d3jax.parameters import count
from d3jax.training.checkpoint import Checkpoints
from d3jax.training.fit import Data, Progress, Trainer, build_trainer, fit, total_steps
from d3jax.training.step import TrainState
from data_pipelines.columns import Prepared, check_rows, open_prepared
from data_pipelines.loader import evaluation_batches, steps_per_epoch, training_batches
from data_pipelines.synthetic import synthetic, write
from experiments.evaluate import device_summary, evaluate_split, planted_fields, trainer_for
from experiments.figures import attention_heat_map
from experiments.journal import Journal
from experiments.report import evaluation_table
from experiments.run import Run, check_free, create_run, exclusive, fresh_directory, open_run


def start(
    data: Path | None, config: Config, out: Path | None, overwrite: bool, console: Console
) -> None:
    """A new run on a prepared directory, or on the embedded synthetic data when `data` is None."""
    name = "synthetic" if data is None else data.resolve().name
    directory = fresh_directory(Path("runs"), name) if out is None else out
    check_free(directory, overwrite)
    if data is None:
        data = directory.with_name(directory.name + "-data")
        console.print(f"making the synthetic data set in {data}")
        write(synthetic(), data, overwrite=True)
    prepared = open_prepared(data)
    # Settings that contradict each other, or the devices, are refused before a run is made.
    build_trainer(prepared.schema, config, steps_per_epoch=1)
    train(create_run(directory, config, prepared, overwrite), prepared, console)


def resume(directory: Path, console: Console) -> None:
    """Goes on with a run, with its own configuration and data."""
    run = open_run(directory)
    train(run, run.prepared(), console)


def train(run: Run, prepared: Prepared, console: Console) -> None:
    """From the newest checkpoint, or the start, to the end; then evaluates the best weights."""
    settings = run.config.train
    check_rows(prepared)
    rows = len(prepared.rows("train").label)
    trainer = trainer_for(run, rows)
    last = total_steps(settings, steps_per_epoch(rows, settings.batch_size))
    console.print(_headline(run, trainer, rows))
    with exclusive(run):
        checkpoints = run.checkpoints(writer=True)
        state, progress = newest_state(trainer, checkpoints)
        if progress.step:
            console.print(f"resuming after step {progress.step}")
        with (
            Journal(run, console, progress.step, last, settings.batch_size) as journal,
            stop_signals() as should_stop,
        ):
            state, progress = fit(
                trainer,
                settings,
                training_data(prepared, run.config),
                state,
                progress,
                checkpoints,
                journal,
                should_stop,
            )
        if progress.best_step not in (None, progress.step):
            state = checkpoints.restore(trainer.abstract, progress.best_step).state
        checkpoints.close()
        conclude(run, trainer, state, prepared, console)


def newest_state(trainer: Trainer, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    """The newest checkpoint's state and progress, or those before the first step."""
    if not checkpoints.steps():
        return trainer.init(), Progress()
    restored = checkpoints.restore(trainer.abstract)
    return restored.state, Progress(**restored.progress)


def conclude(
    run: Run, trainer: Trainer, state: TrainState, prepared: Prepared, console: Console
) -> None:
    """Evaluates on the test rows; writes evaluation.json and figures, prints the table."""
    size = run.config.train.batch_size
    result = evaluate_split(trainer, state, prepared, "test", size)
    run.write_json("evaluation.json", result.metrics.to_json())
    if result.attention is not None:
        attention_heat_map(
            run.path("figures", "attention.png"),
            result.attention,
            run.schema.scenarios,
            [field.name for field in run.schema.fields],
            planted_fields(prepared),
        )
    Console().print(evaluation_table("test rows, best weights", result.metrics, result.best))
    console.print(f"everything is in {run.directory}")


def training_data(prepared: Prepared, config: Config) -> Data:
    """Shuffled training batches and ordered validation batches of a prepared directory."""
    rows, validation = prepared.rows("train"), prepared.rows("validation")
    size = config.train.batch_size
    return Data(
        steps_per_epoch=steps_per_epoch(len(rows.label), size),
        training=lambda start, stop: training_batches(
            rows,
            batch_size=size,
            seed=config.train.seed,
            start_step=start,
            stop_step=stop,
            workers=config.train.workers,
            window_rows=config.train.window_rows or None,
        ),
        validation=lambda: evaluation_batches(validation, batch_size=size),
    )


@contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Yields a question that SIGTERM, or the first Ctrl-C, answers with yes."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            # A second Ctrl-C means now.
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _headline(run: Run, trainer: Trainer, rows: int) -> str:
    model = run.config.model
    head = f"d3 ({run.config.d3.parts})" if model.head == "d3" else model.head
    network = count(trainer.model.declared.params.network)
    table = count(trainer.model.declared.params.embedding)
    return (
        f"{model.backbone} with {head}: {network:,} weights and {table:,} in the embedding table; "
        f"{rows:,} training rows; {device_summary()}"
    )

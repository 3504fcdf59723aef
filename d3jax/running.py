"""Trains a run from its start, or from where it stopped, to its evaluation and figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from d3jax.account import Remark, account, tell_account, weighed_from, weighing_plan
from d3jax.config import Config, TrainConfig
from d3jax.configure import settled_for_run
from d3jax.console.report import evaluation_table
from d3jax.console.signals import interrupts, stop_signals
from d3jax.console.terminal import Console, styled
from d3jax.data.loader import (
    Gather,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from d3jax.data.prepared import Prepared, check_rows, open_prepared
from d3jax.data.synthetic import synthetic, write
from d3jax.disk import writing
from d3jax.errors import CheckpointError
from d3jax.evaluate import (
    Evaluated,
    device_summary,
    evaluate_split,
    planted_fields,
    trainer_for,
)
from d3jax.hosts.agreement import check_agreement, in_first_process
from d3jax.hosts.processes import agreed_stop
from d3jax.journal import Journal, Silence
from d3jax.owned import check_free, exclusive
from d3jax.parameters import count
from d3jax.parts import check_config
from d3jax.reads import lacking
from d3jax.run import (
    Run,
    check_run_free,
    create_run,
    fresh_directory,
    open_run,
    open_same_run,
    save_settings,
)
from d3jax.training import loop
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.loop import Data, Member, Observer, Progress, total_steps
from d3jax.training.step import TrainState
from d3jax.training.trainer import Trainer


def start(
    data: Path | None,
    config: Config,
    out: Path | None,
    overwrite: bool,
    console: Console,
    debug: bool = False,
) -> None:
    """A new run on a prepared directory, or on the embedded synthetic data when `data` is None.

    Of several processes, which must see the same files, the first makes it.
    """
    directory = Path(in_first_process(lambda: free_directory(data, out, overwrite)))
    if data is None:
        made = data = synthetic_place(directory)
        in_first_process(lambda: make_synthetic(made, console))
    prepared = open_prepared(data)
    config = settled_for_run(config, prepared)
    # Settings that contradict each other, or the devices, are refused before a run is made.
    check_config(prepared.schema, config)
    check_agreement(_identity(config, prepared))
    in_first_process(lambda: str(create_run(directory, config, prepared, overwrite).directory))
    tell(train(open_run(directory), prepared, console, debug), console)


def free_directory(data: Path | None, out: Path | None, overwrite: bool) -> str:
    """Return the place of a new run; raises what `check_run_free` raises, also for its own data."""
    name = "synthetic" if data is None else data.resolve().name
    directory = fresh_directory(Path("runs"), name) if out is None else out
    check_run_free(directory, overwrite)
    if data is None:
        check_free(synthetic_place(directory), ("synthetic",), overwrite=True)
    return str(directory)


def synthetic_place(run: Path) -> Path:
    """Return the place of a run's embedded data set, beside it."""
    run = run if run.name not in ("", "..") else run.resolve()
    return run.with_name(f"{run.name}-data")


def make_synthetic(directory: Path, console: Console) -> None:
    """Writes the embedded data set, also where an earlier run has written it."""
    console.print(f"making the synthetic data set in {directory}")
    write(synthetic(), directory, overwrite=True, kind="synthetic")


def resume(
    directory: Path, console: Console, debug: bool = False, data: Path | None = None
) -> None:
    """Goes on with a run, with its own configuration and data; `data` is where these are now."""
    run = open_run(directory)
    prepared = run.training_data(data)
    check_agreement(_identity(run.config, prepared))
    if data is not None:
        run = replace(run, data=prepared.directory.resolve())
        in_first_process(lambda: save_settings(run))
    tell(train(run, prepared, console, debug), console)


def begin(
    directory: Path, config: Config, prepared: Prepared, arrays: dict[str, str] | None = None
) -> Run:
    """Return the run of these settings and data in `directory`; make it where there is none.

    Raises `CheckpointError` with the differences when it is another's, `OutputError` when the
    directory is no run, and `ConfigError` for settings that contradict each other.
    """
    if arrays is None:
        config = settled_for_run(config, prepared)
        check_config(prepared.schema, config)
    check_agreement({**_identity(config, prepared), "arrays": arrays})
    in_first_process(lambda: _begin(directory, config, prepared, arrays))
    return open_run(directory)


def _begin(
    directory: Path, config: Config, prepared: Prepared, arrays: dict[str, str] | None
) -> None:
    run = open_same_run(directory, config, prepared, arrays)
    if run is None:
        check_free(directory, ("run",), False, "it is no run; choose another place, or delete it")
        create_run(directory, config, prepared, overwrite=False, arrays=arrays)
    elif run.data != prepared.directory.resolve():
        save_settings(replace(run, data=prepared.directory.resolve()))


Stopping = Callable[[], AbstractContextManager[Callable[[int], bool]]]
"""A context in which a function answers, after each step, whether to save and stop."""


class Finished(NamedTuple):
    """A run that came to its end, and the test rows under its best weights.

    `weights` is what to call these (`best_state`), `account` what is to be said of the run.
    """

    run: Run
    result: Evaluated
    weights: str
    account: list[Remark]


def tell(finished: Finished, console: Console) -> None:
    """Print the metrics on standard output and say where all is, in the first process."""
    if jax.process_index():
        return
    result = finished.result
    title = f"test rows, {finished.weights}"
    Console().print(evaluation_table(title, result.metrics, result.best))
    tell_account(finished.account, console)
    console.print(f"everything is in {finished.run.directory}")


def train(
    run: Run,
    prepared: Prepared,
    console: Console,
    debug: bool = False,
    stopping: Stopping | None = None,
    own: Trainer | None = None,
) -> Finished:
    """From the newest checkpoint, or the start, to the end; then evaluates the best weights.

    All processes of a run do the same; only the first locks and writes it, and speaks.
    """
    settings = run.config.train
    first = jax.process_index() == 0
    console = console if first else Console(quiet=True)
    # Locked before anything that takes time, so that nobody replaces it meanwhile.
    with writing(run.directory), exclusive_to_all(run):
        check_rows(prepared)
        rows = len(prepared.rows("train").label)
        trainer = own or trainer_for(run, debug)
        per_epoch = steps_per_epoch(rows, settings.batch_size)
        last = total_steps(settings, per_epoch)
        console.print(headline(run, trainer, rows))
        weighed = None if own else weighed_from(run.config, last)
        if weighed is not None:
            console.print(weighing_plan(weighed, last, per_epoch))
        with (stopping or telling_to_stop)() as should_stop:
            [ended] = run_to_end(
                [run],
                prepared,
                trainer,
                lambda run, start: observing(run, console, start, last),
                should_stop,
                console,
            )
        if first:
            conclude(run, ended.result, prepared)
    fields = [field.name for field in run.schema.fields]
    told = account(settings, weighed, per_epoch, ended.progress, ended.result, fields)
    return Finished(run, ended.result, ended.weights, told)


class Ended(NamedTuple):
    """A run that came to its end: how far it went, the test rows under its best weights, and
    what to call these (`best_state`)."""

    progress: Progress
    result: Evaluated
    weights: str


Observing = Callable[[Run, int], AbstractContextManager[Observer]]
"""Observes the steps of a run after a step."""


def run_to_end(
    runs: Sequence[Run],
    prepared: Prepared,
    trainer: Trainer,
    observing: Observing,
    should_stop: Callable[[int], bool],
    console: Console,
) -> list[Ended]:
    """Trains runs side by side from where they are to their end, and evaluates each.

    They are this process' own. Raises what `train` of the loop raises.
    """
    settings = runs[0].config.train
    with ExitStack() as opened:
        kept = [opened.enter_context(run.checkpoints(writer=True)) for run in runs]
        seeds = [run.config.train.seed for run in runs]
        state, progress = newest_state(trainer, kept, seeds, settings, console)
        with ExitStack() as observed:
            members = [
                Member(
                    training_data(prepared, run.config),
                    each,
                    checkpoints,
                    observed.enter_context(observing(run, each.step)),
                    run.directory.name if len(runs) > 1 else "",
                )
                for run, each, checkpoints in zip(runs, progress, kept, strict=True)
            ]
            state, progress = loop.train(trainer, settings, members, state, should_stop)
        ended, alone = [], trainer.alone()
        for checkpoints, each in zip(kept, progress, strict=True):
            checkpoints.prove(each.step)
            # The state of a model among others has gone on after its patience ran out.
            newest = state if len(runs) == 1 else None
            best, weights = best_state(alone, checkpoints, newest, each, console)
            result = evaluate_split(alone, best, prepared, "test", settings.batch_size)
            ended.append(Ended(each, result, weights))
    return ended


def newest_state(
    trainer: Trainer,
    kept: Sequence[Checkpoints],
    seeds: Sequence[int],
    settings: TrainConfig,
    console: Console,
) -> tuple[TrainState, list[Progress]]:
    """The state and progress at the newest step that all checkpoints have, but for those of runs
    whose patience has run out, which have ended; or those before the first step.

    Tells of damaged ones on the console.
    """
    if not all(checkpoints.steps() for checkpoints in kept):
        return trainer.init(seeds), [Progress() for _ in kept]
    restored = [checkpoints.restore(trainer.abstract) for checkpoints in kept]
    for message in (message for each in restored for message in each.damaged):
        console.print(styled("damaged:", "bold red"), message)
    progress = [Progress.from_json(each.progress) for each in restored]
    going = [i for i, each in enumerate(progress) if not loop.out_of_patience(settings, each)]
    common = min((progress[index].step for index in going), default=0)
    for index in going:
        if progress[index].step > common:
            restored[index] = kept[index].restore(trainer.abstract, common)
            progress[index] = Progress.from_json(restored[index].progress)
    return trainer.together([each.state for each in restored]), progress


def best_state(
    trainer: Trainer,
    checkpoints: Checkpoints,
    state: TrainState | None,
    progress: Progress,
    console: Console,
) -> tuple[TrainState, str]:
    """The state of the best evaluation, and "best weights" to call it by.

    The newest `state`, or its checkpoint where that is None, stands in, as "newest weights", when
    the best one's checkpoint is damaged.
    """
    if state is None:
        state = checkpoints.restore(trainer.abstract).state
    if progress.best_step in (None, progress.step):
        return state, "best weights"
    try:
        return checkpoints.restore(trainer.abstract, progress.best_step).state, "best weights"
    except CheckpointError as error:
        console.print(
            styled("damaged:", "bold red"),
            f"{error}. The weights of step {progress.step}, the newest, are evaluated instead of "
            f"the best, those of step {progress.best_step}.",
        )
        return state, "newest weights"


def observing(run: Run, console: Console, start: int, last: int) -> Journal | Silence:
    """The journal, in the process that keeps it; says where the run goes on."""
    if start:
        console.print(f"resuming after step {start}")
    if jax.process_index():
        return Silence()
    return Journal(run, console, start, last, run.config.train.batch_size)


@contextmanager
def exclusive_to_all(run: Run) -> Iterator[None]:
    """`exclusive`, by a lock that the first process holds for all."""
    with ExitStack() as stack:
        in_first_process(lambda: stack.enter_context(exclusive(run.directory)))
        yield


def conclude(run: Run, result: Evaluated, prepared: Prepared) -> None:
    """Writes evaluation.json and figures of the test rows."""
    run.write_json("evaluation.json", result.metrics.to_json())
    if result.attention is not None:
        # Matplotlib takes a while to import, and a run draws at its end only.
        from d3jax.pictures.figures import attention_heat_map

        attention_heat_map(
            run.path("figures", "attention.png"),
            result.attention,
            run.schema.scenarios,
            [field.name for field in run.schema.fields],
            planted_fields(prepared),
        )


def training_data(prepared: Prepared, config: Config) -> Data:
    """Shuffled training batches and ordered validation batches of a prepared directory.

    Of each batch this process' share.
    """
    index, processes = jax.process_index(), jax.process_count()
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
            process_index=index,
            process_count=processes,
        ),
        validation=lambda: evaluation_batches(
            validation, batch_size=size, process_index=index, process_count=processes
        ),
        locate=lambda step, position: _locate(prepared, config, step, position),
    )


def _locate(prepared: Prepared, config: Config, step: int, position: int) -> str:
    """Name the training row that the batch of a step (the first is 1) has at a position."""
    rows, train = prepared.rows("train"), config.train
    window = train.window_rows or None
    row = Gather(rows, train.batch_size, train.seed, 0, 1, window).row(step - 1, position)
    scenario = prepared.schema.scenarios[rows.scenario[row]]
    return f"row {row:,} of {prepared.directory / 'train'}, of scenario {scenario}"


def telling_to_stop() -> AbstractContextManager[Callable[[int], bool]]:
    """`stop_signals`, which several processes answer together."""
    return agreed_stop() if jax.distributed.is_initialized() else stop_signals()


def interrupting() -> AbstractContextManager[Callable[[int], bool]]:
    """`interrupts`, for a program of the user's own, which several processes answer together."""
    return agreed_stop() if jax.distributed.is_initialized() else interrupts()


def _identity(config: Config, prepared: Prepared) -> dict[str, Any]:
    """Return the facts that must be the same in all processes of a run."""
    sums = prepared.directory / "checksums.json"
    return {
        "config": config.to_json(),
        "schema": prepared.schema.to_json(),
        "data": json.loads(sums.read_text(encoding="utf-8")) if sums.is_file() else None,
        "jax": jax.__version__,
    }


def headline(run: Run, trainer: Trainer, rows: int) -> str:
    """Return in words what is trained, on how many rows and which devices."""
    network = count(trainer.model.declared.params.network)
    table = count(trainer.model.declared.params.embedding)
    model = run.config.model
    terms = f" and {model.wide}" if model.wide != "none" else ""
    divided = ""
    if not run.arrays and lacking(run.config, "model.domain") is None:
        values = f"the values of {' and '.join(model.domain)}" if model.domain else "the scenarios"
        divided = f" domains are {values};"
    return (
        f"{run.called}{terms}:{divided} {network:,} weights and {table:,} in the embedding table; "
        f"{rows:,} training rows; {device_summary()}"
    )

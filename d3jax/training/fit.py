"""The loop: steps, evaluation, checkpoints, early stopping, and a way out that loses nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from d3jax.base import LossAdapter, Model, ModelParams
from d3jax.batch import Batch, Schema
from d3jax.config import Config, TrainConfig
from d3jax.errors import CheckpointError, ConfigError, Preempted, TrainingError
from d3jax.models import build_model
from d3jax.parameters import named_leaves
from d3jax.training.adapters import dtp, dwa, equal
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.learned_weights import find_watched, gradnorm, uncertainty
from d3jax.training.loss import d3_balance, unweighted
from d3jax.training.metrics import Evaluation, evaluate_scores
from d3jax.training.optimizer import Optimizer, build_optimizer
from d3jax.training.scoring import collect_scores, score_batches
from d3jax.training.sharding import (
    check_batch_size,
    check_table,
    local_rows,
    make_mesh,
    place,
    place_batch,
)
from d3jax.training.step import (
    PLAIN_STEP,
    ScoreStep,
    StepInfo,
    StepOptions,
    TrainState,
    TrainStep,
    init_state,
    make_score_step,
    make_train_step,
    make_weights,
    state_specs,
)
from d3jax.typed import from_json


def _by_position(step: int, row: int) -> str:
    return f"row {row} of the batch"


class Data(NamedTuple):
    """Where batches come from. `training(start, stop)` gives those of steps start to stop - 1,
    the same ones whenever it is asked; `validation()` gives each validation row once;
    `locate(step, row)` says in words which row the batch of `step` has at a position."""

    steps_per_epoch: int
    training: Callable[[int, int], Iterator[Batch]]
    validation: Callable[[], Iterator[Batch]]
    locate: Callable[[int, int], str] = _by_position


@runtime_checkable
class Observer(Protocol):
    """Told what happens; nothing it does changes the run."""

    def stepped(self, step: int) -> None:
        """A step was dispatched."""

    def logged(self, step: int, loss: float) -> None:
        """The mean loss since the last time this was called."""

    def evaluated(self, step: int, evaluation: Evaluation, improved: bool) -> None:
        """The validation rows were scored."""

    def skipped(self, step: int, reason: str) -> None:
        """A step changed nothing, for its loss or gradient wasn't finite."""

    def saving(self, step: int) -> None:
        """A checkpoint of this step is about to be written."""


@dataclass(frozen=True)
class Progress:
    """What the loop, beside the train state, must remember to go on exactly as before."""

    step: int = 0
    best_step: int | None = None
    best_metric: float | None = None
    stale: int = 0
    """Evaluations since the best one."""
    loss_sum: float = 0.0
    """Sum of the losses not yet logged, and their number."""
    loss_count: int = 0
    skipped: int = 0
    """Steps skipped in a row, up to now."""

    def after(self, step: int, metric: float, lower_is_better: bool) -> Progress:
        """With one more evaluation, whose result was `metric`."""
        best = self.best_metric
        better = best is None or (metric < best if lower_is_better else metric > best)
        if better:
            return replace(self, best_step=step, best_metric=metric, stale=0)
        return replace(self, stale=self.stale + 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values, exact for floats."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Progress:
        """The inverse of `to_json`; raises `CheckpointError` naming what it didn't write."""
        return from_json(cls, value, "progress", CheckpointError)


class Trainer(NamedTuple):
    """A model and its compiled steps on a mesh."""

    model: Model
    mesh: Mesh
    train_step: TrainStep
    score_step: ScoreStep
    weights: Callable[[TrainState], ModelParams]
    """Return the parameters of a state to score with."""
    init: Callable[[], TrainState]
    abstract: TrainState
    """The state's shapes and places, to restore a checkpoint into."""
    options: StepOptions = PLAIN_STEP


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """The most steps a run can take."""
    return config.epochs * steps_per_epoch


def build_adapter(config: Config, model: Model, steps_per_epoch: int) -> LossAdapter:
    """The loss adapter that the configuration names.

    Raises `ConfigError` when D3's balance and another adapter would both weigh rows, or when
    there is no parameter that gradnorm could watch.
    """
    steps = total_steps(config.train, steps_per_epoch)
    if config.has_balance:
        return _build_balance(config, steps)
    scenarios = model.schema.num_scenarios
    match config.adapter.adapter:
        case "dwa":
            return dwa(config.adapter, scenarios, steps_per_epoch, steps)
        case "dtp":
            return dtp(config.adapter, scenarios, steps_per_epoch, steps)
        case "uncertainty":
            return uncertainty(config.adapter, scenarios, config.optimizer.learning_rate)
        case "gradnorm":
            watched = find_watched(model.declared.params.network, config.adapter.watched)
            return gradnorm(config.adapter, scenarios, watched)
        case "none":
            return equal(config.adapter, scenarios)


def _build_balance(config: Config, steps: int) -> LossAdapter:
    adapter, aggregation = config.adapter.adapter, config.adapter.aggregation
    if adapter != "none" or aggregation != "row":
        other = f"adapter {adapter}" if adapter != "none" else f"aggregation {aggregation}"
        raise ConfigError(f"{other} and D3's balance (parts d3) both weigh rows; use --parts d2")
    start = balance_start(config, steps)
    # A ratio of 1 means never, also when the last step would be the first weighted one.
    return d3_balance(config.balance, start) if config.balance.start_ratio < 1 else unweighted()


def balance_start(config: Config, steps: int) -> int:
    """How many steps of a run that takes at most `steps` D3 leaves unweighed."""
    return math.floor(config.balance.start_ratio * steps)


def balance_of(config: Config) -> LossAdapter | None:
    """D3's weighing of rows as it is once it has started; None for a model without."""
    never = config.balance.start_ratio == 1
    return d3_balance(config.balance, start_step=0) if config.has_balance and not never else None


class Parts(NamedTuple):
    """What a configuration's steps are made of."""

    model: Model
    adapter: LossAdapter
    optimizer: Optimizer
    options: StepOptions


def check_config(schema: Schema, config: Config) -> None:
    """Raises `ConfigError` for settings that contradict each other, the data or the devices."""
    build_parts(schema, config, 1, make_mesh())


def build_parts(
    schema: Schema, config: Config, steps_per_epoch: int, mesh: Mesh, debug: bool = False
) -> Parts:
    """Checks the configuration against the data and the devices, and builds its parts."""
    train = config.train
    check_batch_size(train.batch_size, mesh, train.slices)
    check_monitor(train, schema.scenarios)
    model = build_model(schema, config)
    check_table(model.declared.params.embedding.table, mesh)
    return Parts(
        model=model,
        adapter=build_adapter(config, model, steps_per_epoch),
        optimizer=build_optimizer(config.optimizer, model, total_steps(train, steps_per_epoch)),
        options=StepOptions(train.slices, train.on_nonfinite == "skip", debug, train.deterministic),
    )


def build_trainer(
    schema: Schema,
    config: Config,
    steps_per_epoch: int,
    mesh: Mesh | None = None,
    debug: bool = False,
) -> Trainer:
    """Everything `fit` runs, for all devices or those of `mesh`.

    `debug` makes every step wait, and raise at the operation that first gives a NaN.
    """
    mesh = make_mesh() if mesh is None else mesh
    model, adapter, optimizer, options = build_parts(schema, config, steps_per_epoch, mesh, debug)

    def create() -> TrainState:
        return init_state(model, adapter, optimizer, config.train.seed)

    shapes = jax.eval_shape(create)
    places = place(mesh, state_specs(model, optimizer), shapes)
    return Trainer(
        model=model,
        mesh=mesh,
        train_step=make_train_step(model, adapter, optimizer, mesh, options),
        score_step=make_score_step(model, mesh, balance_of(config), options),
        weights=make_weights(optimizer),
        init=jax.jit(create, out_shardings=places),
        abstract=jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            places,
        ),
        options=options,
    )


def evaluate(trainer: Trainer, state: TrainState, batches: Iterable[Batch]) -> Evaluation:
    """Metrics of the given rows under the state's parameters."""
    scored = score_batches(
        trainer.score_step, trainer.weights(state), state.model_state, batches, trainer.mesh
    )
    schema = trainer.model.schema
    return evaluate_scores(collect_scores(scored, schema.user_slot), schema.scenarios)


def fit(
    trainer: Trainer,
    config: TrainConfig,
    data: Data,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    observer: Observer,
    should_stop: Callable[[int], bool] = lambda step: False,
) -> tuple[TrainState, Progress]:
    """Trains from `progress.step` to the end, or to the point where patience runs out.

    A checkpoint is written at each evaluation, every `checkpoint_every` steps, and when
    `should_stop(step)` says so, which then raises `Preempted`. A loss that is not finite raises
    `TrainingError` before anything of it is saved.
    """
    last = total_steps(config, data.steps_per_epoch)
    every = max(1, round(config.evaluate_every * data.steps_per_epoch))
    pending: list[StepInfo] = []
    if finished(config, progress, last):
        return state, progress
    batches = place_ahead(trainer.mesh, data.training(progress.step, last))
    for step, batch in enumerate(batches, start=progress.step + 1):
        if trainer.options.debug:
            _check_indices(trainer, step, batch)
        state, info = trainer.train_step(state, batch)
        pending.append(info)
        observer.stepped(step)
        evaluating = step % every == 0 or step == last
        stopping = should_stop(step)
        saving = evaluating or stopping or step % config.checkpoint_every == 0
        logging = step % config.log_every == 0 or step == last
        if not (saving or logging):
            continue
        progress = _account(replace(progress, step=step), pending, trainer, data, observer)
        pending = []
        if logging:
            if progress.loss_count:
                observer.logged(step, progress.loss_sum / progress.loss_count)
            progress = replace(progress, loss_sum=0.0, loss_count=0)
        if evaluating:
            evaluation = evaluate(trainer, state, data.validation())
            before = progress.best_step
            progress = progress.after(step, *monitored(config, evaluation))
            observer.evaluated(step, evaluation, progress.best_step != before)
        if saving:
            observer.saving(step)
            checkpoints.save(step, state, progress.to_json())
        if finished(config, progress, last):
            break
        if stopping:
            checkpoints.wait()
            raise Preempted(f"stopped after step {step}, which is saved; resume to go on")
    checkpoints.wait()
    return state, progress


def finished(config: TrainConfig, progress: Progress, last: int) -> bool:
    """Whether all steps are taken or patience has run out."""
    return progress.step >= last or 0 < config.patience <= progress.stale


def monitored(config: TrainConfig, evaluation: Evaluation) -> tuple[float, bool]:
    """The number that decides which weights are best, and whether lower is better."""
    scenario = config.monitor_scenario
    group = evaluation.scenarios[scenario] if scenario else evaluation.overall
    values = {
        "logloss": group.logloss,
        "auc": group.auc,
        "macro_auc": evaluation.macro_auc(),
        "worst_auc": evaluation.worst_auc(),
    }
    value = values[config.monitor]
    if value is None:
        rows = f"the validation rows of {scenario!r}" if scenario else "the validation rows"
        raise TrainingError(
            f"{config.monitor} isn't defined on {rows}, which hold one class only; "
            "use --monitor logloss, or more validation rows"
        )
    return value, config.monitor == "logloss"


def check_monitor(config: TrainConfig, scenarios: Sequence[str]) -> None:
    """Raises `ConfigError` when the scenario to monitor is none of the data's."""
    if config.monitor_scenario and config.monitor_scenario not in scenarios:
        raise ConfigError(
            f"monitor_scenario is {config.monitor_scenario!r}; the data has {', '.join(scenarios)}"
        )


def place_ahead(mesh: Mesh, batches: Iterable[Batch], ahead: int = 2) -> Iterator[Batch]:
    """Batches on the devices, the next `ahead` of them placed before they are needed."""
    placed: deque[Batch] = deque()
    for batch in batches:
        placed.append(place_batch(mesh, batch))
        if len(placed) > ahead:
            yield placed.popleft()
    yield from placed


MOST_SKIPPED = 10
"""Steps in a row that may be skipped; more than that is no accident of the data."""


def _account(
    progress: Progress,
    pending: list[StepInfo],
    trainer: Trainer,
    data: Data,
    observer: Observer,
) -> Progress:
    """Adds the pending losses; at one that isn't finite, raises `TrainingError` or skips it."""
    first = progress.step - len(pending) + 1
    skips = trainer.options.skip_bad
    for step, info in enumerate(jax.device_get(pending), start=first):
        if math.isfinite(info.loss) and math.isfinite(info.gradient_norm):
            total = progress.loss_sum + float(info.loss)
            count = progress.loss_count + 1
            progress = replace(progress, loss_sum=total, loss_count=count, skipped=0)
            continue
        reason = _diagnosis(step, info, trainer.model, data)
        progress = replace(progress, skipped=progress.skipped + 1)
        if not skips or progress.skipped > MOST_SKIPPED:
            more = f" It was the {progress.skipped}th in a row." if skips else ""
            raise TrainingError(
                f"{reason}{more} Nothing of it was saved. Look at those rows, try a smaller "
                "--learning-rate, or start again with --debug to see the operation"
                + ("" if skips else " or --on-nonfinite skip to leave such batches out")
            )
        observer.skipped(step, reason)
    return progress


def _check_indices(trainer: Trainer, step: int, batch: Batch) -> None:
    """Raises `DataError` for an id or scenario out of range among this process' rows."""
    ids, scenario = (local_rows(array) for array in (batch.ids, batch.scenario))
    trainer.model.schema.check(ids, scenario, where=f"the batch of step {step}")


def _diagnosis(step: int, info: StepInfo, model: Model, data: Data) -> str:
    """What isn't finite in a step, and where it shows first."""
    told = f"the loss at step {step} is {info.loss} and the gradient's norm {info.gradient_norm}."
    trouble = info.trouble
    if trouble is None:
        return told
    if trouble.rows:
        told += (
            f" {trouble.rows} of the batch's rows have such a loss, the first is "
            f"{data.locate(step, int(trouble.first_row))}."
        )
    names = [*named_leaves(model.declared.params.network), "embedding.table"]
    if trouble.parameter < len(names):
        told += f" The first parameter whose gradient isn't finite is {names[trouble.parameter]}."
    return told

"""The loop: steps, evaluation, checkpoints, early stopping, and a way out that loses nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from d3jax.base import LossAdapter, Model
from d3jax.batch import Batch, Schema
from d3jax.config import Config, TrainConfig
from d3jax.errors import ConfigError, Preempted, TrainingError
from d3jax.model import build_model
from d3jax.training.adapters import dtp, dwa, equal
from d3jax.training.checkpoint import Checkpoints
from d3jax.training.learned_weights import find_watched, gradnorm, uncertainty
from d3jax.training.loss import d3_balance, unweighted
from d3jax.training.metrics import Evaluation, evaluate_scores
from d3jax.training.optimizer import adamw
from d3jax.training.scoring import collect_scores, score_batches
from d3jax.training.sharding import check_batch_size, make_mesh, place_batch
from d3jax.training.step import (
    ScoreStep,
    StepInfo,
    TrainState,
    TrainStep,
    init_state,
    make_score_step,
    make_train_step,
)


class Data(NamedTuple):
    """Where batches come from. `training(start, stop)` gives those of steps start to stop - 1,
    the same ones whenever it is asked; `validation()` gives each validation row once."""

    steps_per_epoch: int
    training: Callable[[int, int], Iterator[Batch]]
    validation: Callable[[], Iterator[Batch]]


@runtime_checkable
class Observer(Protocol):
    """Told what happens; nothing it does changes the run."""

    def stepped(self, step: int) -> None:
        """A step was dispatched."""

    def logged(self, step: int, loss: float) -> None:
        """The mean loss since the last time this was called."""

    def evaluated(self, step: int, evaluation: Evaluation, improved: bool) -> None:
        """The validation rows were scored."""

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


class Trainer(NamedTuple):
    """A model and its compiled steps on a mesh."""

    model: Model
    mesh: Mesh
    train_step: TrainStep
    score_step: ScoreStep
    init: Callable[[], TrainState]
    abstract: TrainState
    """The state's shapes and places, to restore a checkpoint into."""


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """The most steps a run can take."""
    return config.epochs * steps_per_epoch


def build_adapter(config: Config, model: Model, steps_per_epoch: int) -> LossAdapter:
    """The loss adapter that the configuration names.

    Raises `ConfigError` when D3's balance and another adapter would both weigh rows, or when
    there is no parameter that gradnorm could watch.
    """
    steps = total_steps(config.train, steps_per_epoch)
    if config.model.head == "d3" and config.d3.parts == "d3":
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
    start = math.floor(config.balance.start_ratio * steps)
    # A ratio of 1 means never, also when the last step would be the first weighted one.
    return d3_balance(config.balance, start) if config.balance.start_ratio < 1 else unweighted()


def build_trainer(
    schema: Schema, config: Config, steps_per_epoch: int, mesh: Mesh | None = None
) -> Trainer:
    """Everything `fit` runs, for all devices or those of `mesh`."""
    mesh = make_mesh() if mesh is None else mesh
    check_batch_size(config.train.batch_size, mesh)
    model = build_model(schema, config)
    adapter = build_adapter(config, model, steps_per_epoch)
    optimizer = adamw(config.optimizer)
    place = NamedSharding(mesh, P())

    def create() -> TrainState:
        return init_state(model, adapter, optimizer, config.train.seed)

    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(create),
    )
    return Trainer(
        model=model,
        mesh=mesh,
        train_step=make_train_step(model, adapter, optimizer, mesh),
        score_step=make_score_step(model, mesh),
        init=jax.jit(create, out_shardings=place),
        abstract=abstract,
    )


def evaluate(trainer: Trainer, state: TrainState, batches: Iterable[Batch]) -> Evaluation:
    """Metrics of the given rows under the state's parameters."""
    scored = score_batches(
        trainer.score_step, state.params, state.model_state, batches, trainer.mesh
    )
    return evaluate_scores(collect_scores(scored), trainer.model.schema.scenarios)


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
        state, info = trainer.train_step(state, batch)
        pending.append(info)
        observer.stepped(step)
        evaluating = step % every == 0 or step == last
        stopping = should_stop(step)
        saving = evaluating or stopping or step % config.checkpoint_every == 0
        logging = step % config.log_every == 0 or step == last
        if not (saving or logging):
            continue
        progress = _account(replace(progress, step=step), pending)
        pending = []
        if logging:
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
    lower = config.monitor == "logloss"
    value = evaluation.overall.logloss if lower else evaluation.overall.auc
    if value is None:
        raise TrainingError(
            f"{config.monitor} isn't defined on the validation rows, which hold one class only; "
            "use --monitor logloss, or more validation rows"
        )
    return value, lower


def place_ahead(mesh: Mesh, batches: Iterable[Batch], ahead: int = 2) -> Iterator[Batch]:
    """Batches on the devices, the next `ahead` of them placed before they are needed."""
    placed: deque[Batch] = deque()
    for batch in batches:
        placed.append(place_batch(mesh, batch))
        if len(placed) > ahead:
            yield placed.popleft()
    yield from placed


def _account(progress: Progress, pending: list[StepInfo]) -> Progress:
    """Adds the pending losses; raises `TrainingError` at the first that isn't finite."""
    first = progress.step - len(pending) + 1
    total = progress.loss_sum
    for step, info in enumerate(jax.device_get(pending), start=first):
        if not (math.isfinite(info.loss) and math.isfinite(info.gradient_norm)):
            raise TrainingError(
                f"the loss at step {step} is {info.loss} and the gradient's norm "
                f"{info.gradient_norm}; nothing of it was saved. Start a new run with a smaller "
                "--learning-rate, or look at the rows of that step"
            )
        total += float(info.loss)
    return replace(progress, loss_sum=total, loss_count=progress.loss_count + len(pending))

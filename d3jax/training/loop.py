"""The loop: steps, evaluation, checkpoints, early stopping, and a way out that loses nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from d3jax.base import Model
from d3jax.batch import Batch
from d3jax.config import TrainConfig
from d3jax.errors import CheckpointError, ConfigError, Preempted, TrainingError
from d3jax.parameters import named_leaves
from d3jax.training.checkpoint.checkpoints import Checkpoints
from d3jax.training.metrics import Evaluation, Scores, evaluate_scores, undefined
from d3jax.training.scoring import gather_scores, score_batches, scores_of
from d3jax.training.sharding import local_rows
from d3jax.training.step import StepInfo, TrainState
from d3jax.training.trainer import Trainer
from d3jax.typed import from_json


def _by_position(step: int, row: int) -> str:
    return f"row {row} of the batch"


class Data(NamedTuple):
    """The source of batches. `training(start, stop)` gives those of steps start to stop - 1,
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
    """The memory that the loop needs, beside the train state, to go on exactly as before."""

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


class Member(NamedTuple):
    """One of the models that are trained: its rows, how far it is, where it is kept and who is
    told of it. Models side by side have names, for messages."""

    data: Data
    progress: Progress
    checkpoints: Checkpoints
    observer: Observer
    name: str = ""


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """The most steps a run can take."""
    return config.epochs * steps_per_epoch


def evaluate(trainer: Trainer, state: TrainState, batches: Iterable[Batch]) -> list[Evaluation]:
    """Return each model's metrics of the given rows."""
    schema, weights = trainer.model.schema, trainer.weights(state)
    pieces: list[list[Scores]] = [[] for _ in range(trainer.parts.models or 1)]
    for batch, scored in score_batches(
        trainer.score_step, weights, state.model_state, batches, trainer.mesh
    ):
        for index, piece in enumerate(pieces):
            piece.append(scores_of(batch, trainer.one(scored, index, axis=1), schema.user_slot))
    return [evaluate_scores(gather_scores(piece), schema.scenarios) for piece in pieces]


Stop = Callable[[int], bool]


def never(step: int) -> bool:
    """Return that training goes on."""
    return False


def train(
    trainer: Trainer,
    config: TrainConfig,
    members: Sequence[Member],
    state: TrainState,
    should_stop: Stop = never,
) -> tuple[TrainState, list[Progress]]:
    """Trains all members from where they are to the end, or until each one's patience runs out.

    A member whose patience has run out is trained along, but neither evaluated nor saved any more.
    A checkpoint is written at each evaluation, every `checkpoint_every` steps, and when
    `should_stop(step)` says so, which then raises `Preempted`. A loss that is not finite raises
    `TrainingError` before anything of it is saved.
    """
    first, loop = members[0].data, _Loop(trainer, config, members)
    every = max(1, round(config.evaluate_every * first.steps_per_epoch))
    if not loop.going:
        return state, loop.progress
    start = loop.progress[loop.going[0]].step
    streams = [each.data.training(start, loop.last) for each in members]
    for step, batch in enumerate(place_ahead(trainer, zip(*streams, strict=True)), start + 1):
        if trainer.options.debug:
            _check_indices(trainer, step, batch)
        state, info = trainer.train_step(state, batch)
        loop.stepped(step, info)
        evaluating = step % every == 0 or step == loop.last
        stopping = should_stop(step)
        saving = evaluating or stopping or step % config.checkpoint_every == 0
        logging = step % config.log_every == 0 or step == loop.last
        if not (saving or logging):
            continue
        loop.account(step)
        if logging:
            loop.log(step)
        if evaluating:
            loop.evaluated(step, evaluate(trainer, state, first.validation()))
        if saving:
            loop.save(step, state)
        if loop.ended():
            break
        if stopping:
            loop.wait()
            raise Preempted(f"stopped after step {step}, which is saved; resume to go on")
    loop.wait()
    return state, loop.progress


class _Loop:
    """The progress of each member; those whose patience hasn't run out are `going`."""

    def __init__(self, trainer: Trainer, config: TrainConfig, members: Sequence[Member]) -> None:
        self._trainer, self._config, self._members = trainer, config, members
        self._pending: list[StepInfo] = []
        self.last = total_steps(config, members[0].data.steps_per_epoch)
        self.progress = [member.progress for member in members]
        self.going = list(range(len(members)))
        self.ended()

    def stepped(self, step: int, info: StepInfo) -> None:
        """A step was dispatched."""
        self._pending.append(info)
        for index in self.going:
            self._members[index].observer.stepped(step)

    def account(self, step: int) -> None:
        """Fetches what the steps since the last time reported."""
        pending, self._pending = jax.device_get(self._pending), []
        for index in self.going:
            infos = [self._trainer.one(info, index) for info in pending]
            reached = replace(self.progress[index], step=step)
            self.progress[index] = _account(reached, infos, self._trainer, self._members[index])

    def log(self, step: int) -> None:
        """Tells the mean loss since the last time."""
        for index in self.going:
            progress = self.progress[index]
            if progress.loss_count:
                loss = progress.loss_sum / progress.loss_count
                self._members[index].observer.logged(step, loss)
            self.progress[index] = replace(progress, loss_sum=0.0, loss_count=0)

    def evaluated(self, step: int, evaluations: Sequence[Evaluation]) -> None:
        """Compares each member's metrics with its best."""
        for index in self.going:
            before, evaluation = self.progress[index], evaluations[index]
            after = before.after(step, *monitored(self._config, evaluation))
            self.progress[index] = after
            improved = after.best_step != before.best_step
            self._members[index].observer.evaluated(step, evaluation, improved)

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing each member's checkpoint."""
        for index in self.going:
            member = self._members[index]
            member.observer.saving(step)
            mine = self._trainer.one(state, index)
            member.checkpoints.save(step, mine, self.progress[index].to_json())

    def ended(self) -> bool:
        """Leaves out those that are finished; returns whether all are."""
        self.going = [
            index
            for index in self.going
            if not finished(self._config, self.progress[index], self.last)
        ]
        return not self.going

    def wait(self) -> None:
        """Until all checkpoints are on disk."""
        for member in self._members:
            member.checkpoints.wait()


def finished(config: TrainConfig, progress: Progress, last: int) -> bool:
    """Return whether all steps are taken or patience has run out."""
    return progress.step >= last or out_of_patience(config, progress)


def out_of_patience(config: TrainConfig, progress: Progress) -> bool:
    """Return whether too many evaluations brought nothing better."""
    return 0 < config.patience <= progress.stale


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
        raise undefined(config.monitor, scenario)
    return value, config.monitor == "logloss"


def check_monitor(config: TrainConfig, scenarios: Sequence[str]) -> None:
    """Raises `ConfigError` when the scenario to monitor is none of the data's."""
    if config.monitor_scenario and config.monitor_scenario not in scenarios:
        raise ConfigError(
            f"monitor_scenario is {config.monitor_scenario!r}; the data has {', '.join(scenarios)}"
        )


def place_ahead(
    trainer: Trainer, batches: Iterable[Sequence[Batch]], ahead: int = 2
) -> Iterator[Batch]:
    """Each model's batches on the devices, the next `ahead` placed before they are needed."""
    placed: deque[Batch] = deque()
    for each in batches:
        placed.append(trainer.placed(each))
        if len(placed) > ahead:
            yield placed.popleft()
    yield from placed


MOST_SKIPPED = 10
"""Steps in a row that may be skipped; more than that is no accident of the data."""


def _account(
    progress: Progress,
    pending: list[StepInfo],
    trainer: Trainer,
    member: Member,
) -> Progress:
    """Adds the pending losses; at one that isn't finite, raises `TrainingError` or skips it."""
    first = progress.step - len(pending) + 1
    skips = trainer.options.skip_bad
    for step, info in enumerate(pending, start=first):
        if math.isfinite(info.loss) and math.isfinite(info.gradient_norm):
            total = progress.loss_sum + float(info.loss)
            count = progress.loss_count + 1
            progress = replace(progress, loss_sum=total, loss_count=count, skipped=0)
            continue
        reason = _diagnosis(step, info, trainer.model, member)
        progress = replace(progress, skipped=progress.skipped + 1)
        if not skips or progress.skipped > MOST_SKIPPED:
            more = f" It was the {progress.skipped}th in a row." if skips else ""
            raise TrainingError(
                f"{reason}{more} Nothing of it was saved. Look at those rows, try a smaller "
                "--learning-rate, or start again with --debug to see the operation"
                + ("" if skips else " or --on-nonfinite skip to leave such batches out")
            )
        member.observer.skipped(step, reason)
    return progress


def _check_indices(trainer: Trainer, step: int, batch: Batch) -> None:
    """Raises `DataError` for an id or scenario out of range among this process' rows."""
    ids, scenario = (local_rows(array) for array in (batch.ids, batch.scenario))
    trainer.model.schema.check(ids, scenario, where=f"the batch of step {step}")


def _diagnosis(step: int, info: StepInfo, model: Model, member: Member) -> str:
    """Name what isn't finite in a step, and where it shows first."""
    whose = f" of {member.name}" if member.name else ""
    norm = info.gradient_norm
    told = f"the loss{whose} at step {step} is {info.loss} and the gradient's norm {norm}."
    trouble = info.trouble
    if trouble is None:
        return told
    if trouble.rows:
        told += (
            f" {trouble.rows} of the batch's rows have such a loss, the first is "
            f"{member.data.locate(step, int(trouble.first_row))}."
        )
    names = [*named_leaves(model.declared.params.network), "embedding.table"]
    if trouble.parameter < len(names):
        told += f" The first parameter whose gradient isn't finite is {names[trouble.parameter]}."
    return told

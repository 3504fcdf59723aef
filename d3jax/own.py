"""Train a model of one's own, made of parts, in the loop that d3jax trains its own in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from d3jax.account import tell_account
from d3jax.batch import Schema
from d3jax.checks import as_path, is_a
from d3jax.choice import chosen
from d3jax.config import Config, TrainConfig
from d3jax.console.log import voice
from d3jax.data.loader import steps_per_epoch
from d3jax.data.prepared import Prepared, open_prepared
from d3jax.errors import ConfigError
from d3jax.evaluate import EXPORTED
from d3jax.export import export_run
from d3jax.parameters import named_leaves
from d3jax.running import begin, interrupting
from d3jax.running import train as train_run
from d3jax.trained import TrainedRun, open_trained
from d3jax.training.loop import check_monitor, total_steps
from d3jax.training.sharding import check_batch_size
from d3jax.training.trainer import Trainer

OF_THE_TRAINER = ("seed", "slices", "on_nonfinite", "deterministic")
"""Settings of a run that a trainer has already."""


def fit(
    trainer: Trainer, data: Prepared | Path | str, out: Path | str, **settings: Any
) -> TrainedRun:
    """Train a trainer's model on prepared data to its end, and return the run in `out`.

    It is trained as `d3jax.train` trains: checkpoints, early stopping, metrics, and where `out` is
    a run of the same arrays, settings and data, it goes on from where that stopped. `settings` are
    those of the loop, such as `epochs=10`, `batch_size=2048`, `patience=2`, `evaluate_every=1.0`,
    `monitor="auc"`. At the end the best weights are exported into the run, so that
    `d3jax.load(out)` predicts without the model's code.

    Raises `ConfigError` for a setting that is unknown, out of range or the trainer's own, and for
    data of another schema than the model's; `CheckpointError` with the differences when `out` is
    another run; `Preempted` when SIGTERM stopped it.
    """
    is_a("trainer", trainer, Trainer, "what d3jax.trainer returns")
    out = as_path("out", out, "the run's directory")
    prepared = data if isinstance(data, Prepared) else open_prepared(data)
    config = Config(train=_loop_settings(trainer, settings))
    _check(trainer, prepared.schema, config.train)
    per_epoch = steps_per_epoch(len(prepared.rows("train").label), config.train.batch_size)
    trainer = trainer.with_steps(total_steps(config.train, per_epoch))
    run = begin(out, config, prepared, _arrays(trainer))
    finished = train_run(run, prepared, voice(), stopping=interrupting, own=trainer)
    tell_account(finished.account, voice())
    trained = open_trained(run.directory, trainer)
    if jax.process_index() == 0:
        export_run(trained, run.directory / EXPORTED, trained.best, overwrite=True)
    return trained


def _loop_settings(trainer: Trainer, settings: dict[str, Any]) -> TrainConfig:
    for name in OF_THE_TRAINER:
        if name in settings:
            raise ConfigError(f"{name} is a setting of the trainer; give it to d3jax.trainer")
    return chosen(TrainConfig, None, {**settings, "seed": trainer.seed})


def _check(trainer: Trainer, schema: Schema, config: TrainConfig) -> None:
    """Raise `ConfigError` when model, data and settings don't go together."""
    if trainer.parts.models is not None:
        raise ConfigError("fit trains one model; make the trainer without models=")
    if changed := trainer.model.schema.differences(schema):
        raise ConfigError(
            f"the data have another schema than the model: {'; '.join(changed)}; make the model of "
            "data.schema"
        )
    check_batch_size(config.batch_size, trainer.mesh, trainer.options.slices)
    check_monitor(config, schema.scenarios)


def _arrays(trainer: Trainer) -> dict[str, str]:
    """Return type and shape of each array of the train state, by name."""
    named = named_leaves(trainer.abstract)
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named.items()}

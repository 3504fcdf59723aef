"""A configuration becomes the parts of a trainer."""

from __future__ import annotations

from jax.sharding import Mesh

from d3jax.batch import Schema
from d3jax.config import Config
from d3jax.parts import build_adapter, build_model
from d3jax.training.loop import check_monitor, total_steps
from d3jax.training.optimizer import build_optimizer
from d3jax.training.sharding import check_batch_size, make_mesh
from d3jax.training.step import StepOptions
from d3jax.training.trainer import Parts, Trainer, build


def check_config(schema: Schema, config: Config) -> None:
    """Raises `ConfigError` for settings that contradict each other, the data or the devices."""
    build_trainer(schema, config, 1)


def build_parts(
    schema: Schema, config: Config, steps_per_epoch: int, mesh: Mesh, debug: bool = False
) -> Parts:
    """Checks the configuration against the data and the devices, and builds its parts."""
    train, steps = config.train, total_steps(config.train, steps_per_epoch)
    check_batch_size(train.batch_size, mesh, train.slices)
    check_monitor(train, schema.scenarios)
    model = build_model(schema, config)
    return Parts(
        model=model,
        optimizer=build_optimizer(config.optimizer, model, steps),
        loss=build_adapter(config, model, steps_per_epoch),
        options=StepOptions(train.slices, train.on_nonfinite == "skip", debug, train.deterministic),
        steps=steps,
    )


def build_trainer(
    schema: Schema,
    config: Config,
    steps_per_epoch: int,
    mesh: Mesh | None = None,
    debug: bool = False,
    models: int | None = None,
) -> Trainer:
    """The trainer that the configuration names, for all devices or those of `mesh`.

    `debug` makes every step wait, and raise at the operation that first gives a NaN. `models` are
    trained side by side, from the configuration's seed and those after it.
    """
    mesh = make_mesh() if mesh is None else mesh
    parts = build_parts(schema, config, steps_per_epoch, mesh, debug)
    return build(parts._replace(models=models), mesh, config.train.seed)

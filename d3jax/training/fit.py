"""A configuration becomes the parts of a trainer."""

from __future__ import annotations

import math
from dataclasses import asdict

from jax.sharding import Mesh

from d3jax.base import LossAdapter, Model
from d3jax.batch import Schema
from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.models import build_model
from d3jax.training.adapters import dtp, dwa, equal
from d3jax.training.learned_weights import find_watched, gradnorm, uncertainty
from d3jax.training.loop import check_monitor, total_steps
from d3jax.training.loss import d3_balance
from d3jax.training.optimizer import build_optimizer
from d3jax.training.sharding import check_batch_size, make_mesh
from d3jax.training.step import StepOptions
from d3jax.training.trainer import Parts, Trainer, build


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
    settings = asdict(config.balance)
    balance = d3_balance(settings.pop("start_ratio"), **settings)
    if balance.planned is None:
        return balance
    return balance.planned(steps)._replace(planned=balance.planned)


def balance_start(config: Config, steps: int) -> int:
    """How many steps of a run that takes at most `steps` D3 leaves unweighed."""
    return math.floor(config.balance.start_ratio * steps)


def balance_of(config: Config) -> LossAdapter | None:
    """D3's weighing of rows as it is once it has started; None for a model without."""
    if not config.has_balance:
        return None
    planned = _build_balance(config, 0).planned
    return None if planned is None else planned(0)


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

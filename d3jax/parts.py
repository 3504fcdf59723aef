"""From a configuration to the parts it names, and to the trainer that is made of them."""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh

from d3jax.adapters.d3 import d3_balance
from d3jax.base import Backbone, Head, LossAdapter, Model
from d3jax.batch import Schema
from d3jax.choice import AdapterChoice, BackboneChoice, HeadChoice
from d3jax.config import Config
from d3jax.errors import ConfigError
from d3jax.layers.prior_gates import prior_fields
from d3jax.models import assemble, shards_table
from d3jax.needs import GATED, generates_inside
from d3jax.registry import ADAPTERS, BACKBONES, HEADS
from d3jax.training.loop import check_monitor, total_steps
from d3jax.training.optimizer import build_optimizer
from d3jax.training.sharding import check_batch_size, make_mesh
from d3jax.training.step import StepOptions
from d3jax.training.trainer import Parts, Trainer, build


def build_model(schema: Schema, config: Config) -> Model:
    """Return the model that the configuration names, for rows of `schema`.

    Raises `ConfigError`, with the reason, for a backbone and head that don't go together.
    """
    return assemble(schema, build_backbone(schema, config), config.model)


def build_backbone(schema: Schema, config: Config) -> Backbone:
    """Return the backbone with its head, as the configuration names them.

    Raises `ConfigError`, with the reason, for a pair that makes no sense.
    """
    if reason := refusal(schema, config):
        raise ConfigError(reason)
    name, head = config.model.backbone, config.model.head

    def make_head(own: Head, width: int, tail: Head | None) -> Head:
        part = HEADS.find(head)
        options = None if part.options is None else getattr(config, head)
        return part.build(HeadChoice(schema, options, own, width, tail))

    part = BACKBONES.find(name)
    choice = BackboneChoice(
        schema=schema,
        options=None if part.options is None else getattr(config, name),
        bottom_layers=config.model.bottom_layers,
        tower_layers=config.model.tower_layers,
        head_name=head,
        make_head=make_head,
        d3=config.d3 if head == "d3" else None,
    )
    return part.build(choice)


def refusal(schema: Schema, config: Config) -> str | None:
    """Return why this backbone and head don't go together, and what to use; None when they do."""
    backbone, head = config.model.backbone, config.model.head
    if backbone in GATED and head not in ("own", "d3"):
        return (
            f"{backbone} has no tower or generated layer that {head} could replace; "
            "use --head own or --head d3"
        )
    if backbone in GATED and head == "d3" and config.d3.parts == "d1":
        return (
            f"{backbone} takes D3's fusion gate and loss weight only, and d1 has neither; "
            "use --parts d2 or --parts d3"
        )
    if backbone == "m2m" and head not in ("own", "d3"):
        return (
            f"m2m generates its layers by its own meta unit, which {head} does not replace; "
            "use --head own or --head d3"
        )
    if head == "d3" and config.d3.form != "text" and _takes_generator(config):
        return (
            f"the {config.d3.form} form of D3 is a head, and {backbone} takes none; "
            "use --form text, or the plain backbone"
        )
    if head == "pepnet_wg" and backbone == "pepnet":
        return "pepnet gates its layers already; use --head own or --head d3"
    if "pepnet" in (backbone, head.removesuffix("_wg")) and not prior_fields(schema):
        return (
            "PEPNet reads the user's and the item's field, and the schema names neither; "
            "use --head d3 on another backbone, or name the fields when preparing the data"
        )
    return None


def _takes_generator(config: Config) -> bool:
    """Return whether D3 goes inside the backbone instead of on top of it."""
    return generates_inside(config) or config.model.backbone in GATED


def build_adapter(config: Config, model: Model, steps_per_epoch: int) -> LossAdapter:
    """Return the loss adapter that the configuration names, for a run of `config.train.epochs`.

    Raises `ConfigError` when D3's balance and another adapter would both weigh rows, or when
    there is no parameter that gradnorm could watch.
    """
    steps = config.train.epochs * steps_per_epoch
    if config.has_balance:
        return _build_balance(config, steps)
    name = config.adapter.adapter
    part = ADAPTERS.find(name)
    choice = AdapterChoice(
        schema=model.schema,
        options=None if part.options is None else getattr(config, name),
        aggregation=config.adapter.aggregation,
        network=model.declared.params.network,
        learning_rate=config.optimizer.learning_rate,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps,
    )
    return part.build(choice)


def _build_balance(config: Config, steps: int) -> LossAdapter:
    adapter, aggregation = config.adapter.adapter, config.adapter.aggregation
    if adapter != "none" or aggregation != "row":
        other = f"adapter {adapter}" if adapter != "none" else f"aggregation {aggregation}"
        raise ConfigError(f"{other} and D3's balance (parts d3) both weigh rows; use --parts d2")
    settings = dataclasses.asdict(config.balance)
    balance = d3_balance(settings.pop("start_ratio"), **settings)
    if balance.planned is None:
        return balance
    return balance.planned(steps)._replace(planned=balance.planned)


def balance_start(config: Config, steps: int) -> int:
    """Return how many steps of a run that takes at most `steps` D3 leaves unweighed."""
    return int(config.balance.start_ratio * steps)


def balance_of(config: Config) -> LossAdapter | None:
    """Return D3's weighing of rows as it is once it has started; None for a model without."""
    if not config.has_balance:
        return None
    planned = _build_balance(config, 0).planned
    return None if planned is None else planned(0)


def is_faster_side_by_side(schema: Schema, config: Config) -> bool:
    """Return whether several seeds train faster in one program than one after another.

    They do on an accelerator, which one model of this size leaves idle, as long as the table is
    whole. On two CPU cores one program takes .9 to 1.1 of the time.
    """
    if jax.default_backend() == "cpu":
        return False
    return jax.device_count() == 1 or not shards_table(schema, config.model)


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

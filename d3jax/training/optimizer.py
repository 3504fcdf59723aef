"""Any optax optimizer for the network; the table's own update may touch the batch's rows alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from d3jax.base import Model
from d3jax.checks import within
from d3jax.config import OptimizerConfig
from d3jax.embedding import LARGE_TABLE
from d3jax.parameters import REPLICATED, Tree
from d3jax.training.table.updates import (
    Rate,
    TableUpdate,
    dense,
    lazy_adamw,
    row_wise_adagrad,
    with_plain_keys,
)


class Optimizer(NamedTuple):
    """The updates of the network and of the table's rows.

    `clip_norm` bounds the norm of both together (0: no bound). `average` is the decay of the
    exponential average of the weights that rows are scored with (0: the weights themselves).
    """

    network: optax.GradientTransformation
    table: TableUpdate
    clip_norm: float = 0.0
    average: float = 0.0


class OptimizerState(NamedTuple):
    """The memory of both, and the scratch of `sum_by_row`, an integer a row; () when dense."""

    network: Tree
    table: Tree
    slot: Tree = ()


def optimizer(
    network: optax.GradientTransformation,
    table: TableUpdate | None = None,
    clip_norm: float = 0.0,
    average: float = 0.0,
) -> Optimizer:
    """Return the optimizer of a trainer; the whole table follows `network` unless `table` is given.

    Raises `ConfigError` for a norm below 0 or an average outside [0, 1).
    """
    within("clip_norm", clip_norm, 0, 1e30)
    within("average", average, 0, 0.9999999)
    table = dense(network) if table is None else table
    return Optimizer(with_plain_keys(network), table, clip_norm, average)


def adamw(
    learning_rate: Rate, weight_decay: float, own_decay: float = 0.0, own: Tree = None
) -> optax.GradientTransformation:
    """Adam's moments, decoupled weight decay (Loshchilov and Hutter, 2019), the learning rate.

    Where `own`, a tree of the parameters' shape, is true, a parameter decays by `own_decay`.
    """
    decays = [optax.add_decayed_weights(weight_decay)]
    if own is not None and any(jax.tree.leaves(own)):
        others = jax.tree.map(lambda mine: not mine, own)
        decays = [
            optax.add_decayed_weights(weight_decay, others),
            optax.add_decayed_weights(own_decay, own),
        ]
    return optax.chain(optax.scale_by_adam(), *decays, optax.scale_by_learning_rate(learning_rate))


def learning_rate(config: OptimizerConfig, steps: int) -> Rate:
    """Return the learning rate of a run of at most `steps` steps, a function of the step unless
    it is constant."""
    peak = config.learning_rate
    warmup, cooldown = round(config.warmup * steps), round(config.cooldown * steps)
    rising = optax.linear_schedule(0.0, peak, warmup)
    match config.schedule:
        case "constant" if not warmup:
            return peak
        case "constant":
            return optax.join_schedules([rising, optax.constant_schedule(peak)], [warmup])
        case "cosine":
            falling = optax.cosine_decay_schedule(peak, max(1, steps - warmup))
            return optax.join_schedules([rising, falling], [warmup])
        case "wsd":
            stable, falling = (
                optax.constant_schedule(peak),
                optax.linear_schedule(peak, 0, cooldown),
            )
            return optax.join_schedules([rising, stable, falling], [warmup, steps - cooldown])


def build_optimizer(config: OptimizerConfig, model: Model, steps: int) -> Optimizer:
    """The optimizer that `config` names, for a run of at most `steps` steps."""
    rate = learning_rate(config, steps)
    table = _table_update(config, rate, model.declared.params.embedding.table.shape[0])
    own = jax.tree.map(lambda parameter: parameter.own_decay, model.declared.params.network)
    network = adamw(rate, config.weight_decay, config.own_decay, own)
    return optimizer(network, table, config.clip_norm, config.average)


def _table_update(config: OptimizerConfig, rate: Rate, rows: int) -> TableUpdate:
    name = config.embedding_update
    if name == "auto":
        name = "lazy_adamw" if rows >= LARGE_TABLE else "dense"
    match name:
        case "dense":
            return dense(adamw(rate, config.embedding_decay))
        case "adagrad":
            return row_wise_adagrad(rate, config.embedding_decay)
        case _:
            return lazy_adamw(rate, config.embedding_decay)


def init_optimizer(optimizer: Optimizer, network: Tree, table: Array) -> OptimizerState:
    """Return the memory of the optimizer before the first step."""
    slot = jnp.zeros(table.shape[:1], jnp.int32) if optimizer.table.row_wise else ()
    return OptimizerState(optimizer.network.init(network), optimizer.table.init(table), slot)


def optimizer_specs(optimizer: Optimizer, model: Model) -> OptimizerState:
    """Return the places of that memory on the mesh; the network's is a prefix of its tree.

    Whatever has an entry for each row of the table lies where the row does.
    """
    declared = model.declared.params.embedding.table
    shapes = jax.eval_shape(
        optimizer.table.init, jax.ShapeDtypeStruct(declared.shape, declared.dtype)
    )

    def spec(leaf: Any) -> Any:
        return declared.spec if leaf.shape[:1] == declared.shape[:1] else REPLICATED

    everywhere: Any = REPLICATED
    slot = declared.spec if optimizer.table.row_wise else ()
    return OptimizerState(everywhere, jax.tree.map(spec, shapes), slot)


def clip_factor(clip_norm: float, norm: Float[Array, ""]) -> Float[Array, ""]:
    """Return what a gradient of this norm is multiplied with, so that it is `clip_norm` at most
    (Pascanu et al., 2013)."""
    return jnp.minimum(1.0, clip_norm / norm)


def first_bad(arrays: Tree) -> tuple[Array, Array]:
    """‖·‖² of all arrays of a tree together, and the index of the first that isn't finite; their
    number when all are."""
    squares = [jnp.square(leaf).sum() for leaf in jax.tree.leaves(arrays)]
    if not squares:
        return jnp.zeros(()), jnp.zeros((), jnp.int32)
    stacked = jnp.stack([*squares, jnp.array(jnp.nan)])
    bad = jnp.argmin(jnp.isfinite(stacked)).astype(jnp.int32)
    return stacked[:-1].sum(), bad

"""AdamW for the network, and the table's own update, which may touch the batch's rows alone."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from d3jax.base import Model
from d3jax.config import OptimizerConfig
from d3jax.embedding import LARGE_TABLE
from d3jax.parameters import REPLICATED, Parameter, Tree, initialize, specs
from d3jax.training.table.updates import TableUpdate, dense, lazy_adamw, row_wise_adagrad


class Optimizer(NamedTuple):
    """What becomes of the network's gradients, and of those of the table's rows."""

    network: optax.GradientTransformation
    table: TableUpdate
    sharded: bool
    """Whether the table's rows are spread over the devices."""


class OptimizerState(NamedTuple):
    """What both remember."""

    network: Tree
    table: Tree


def adamw(config: OptimizerConfig, decay: float) -> optax.GradientTransformation:
    """Adam moments, decoupled weight decay, then the learning rate."""
    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(config.learning_rate),
    )


def build_optimizer(config: OptimizerConfig, model: Model, steps: int) -> Optimizer:
    """The optimizer that `config` names, for a run of at most `steps` steps."""
    table: Parameter = model.declared.params.embedding.table
    sharded = table.spec != REPLICATED
    return Optimizer(
        network=adamw(config, config.weight_decay),
        table=_table_update(config, table.shape[0], sharded),
        sharded=sharded,
    )


def _table_update(config: OptimizerConfig, rows: int, sharded: bool) -> TableUpdate:
    name = config.embedding_update
    if name == "auto":
        name = "lazy_adamw" if rows >= LARGE_TABLE else "dense"
    match name:
        case "dense":
            return dense(adamw(config, config.embedding_decay), sharded)
        case "adagrad":
            return row_wise_adagrad(config, sharded)
        case _:
            return lazy_adamw(config, sharded)


def init_optimizer(optimizer: Optimizer, model: Model, network: Tree) -> OptimizerState:
    """What the optimizer remembers before the first step."""
    declared = optimizer.table.declare(model.declared.params.embedding.table)
    return OptimizerState(
        network=optimizer.network.init(network),
        table=initialize(declared, jax.random.key(0)),
    )


def optimizer_specs(optimizer: Optimizer, model: Model) -> OptimizerState:
    """Where that lives on the mesh; the network's is a prefix of its tree."""
    declared = optimizer.table.declare(model.declared.params.embedding.table)
    return OptimizerState(REPLICATED, specs(declared))


def first_bad(arrays: Tree) -> tuple[Array, Array]:
    """‖·‖² of all arrays of a tree together, and the index of the first that isn't finite; their
    number when all are."""
    squares = [jnp.square(leaf).sum() for leaf in jax.tree.leaves(arrays)]
    if not squares:
        return jnp.zeros(()), jnp.zeros((), jnp.int32)
    stacked = jnp.stack([*squares, jnp.array(jnp.nan)])
    bad = jnp.argmin(jnp.isfinite(stacked)).astype(jnp.int32)
    return stacked[:-1].sum(), bad

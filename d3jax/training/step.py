"""One training step and one scoring step, each a per-device program mapped over the mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt32

from d3jax.balance import weighted_loss
from d3jax.base import EVALUATION, Feedback, LossAdapter, Mode, Model, ModelParams
from d3jax.batch import Batch
from d3jax.embedding import EmbeddingParams, lookup, table_gradient, table_rows
from d3jax.parameters import Tree, initialize
from d3jax.training.learned_weights import scenario_gradient_norms
from d3jax.training.loss import binary_cross_entropy
from d3jax.training.sharding import DATA_AXIS


class TrainState(NamedTuple):
    """All that the next step needs, and all that a checkpoint must hold.

    `key` is the run's PRNG key as raw data; a step folds its number into it.
    """

    params: ModelParams
    model_state: Tree
    optimizer_state: Tree
    adapter_state: Tree
    step: Int[Array, ""]
    key: UInt32[Array, " words"]


class StepInfo(NamedTuple):
    """What a step reports; nothing here is needed by the next."""

    loss: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    gradient_norm: Float[Array, ""]


class Scored(NamedTuple):
    """What evaluation keeps of a row: its logit and, where the model has them, the attention
    that each field receives on average (it sums to 1) and the gate."""

    logits: Float[Array, " B"]
    attention: Float[Array, "B N"] | None
    gate: Float[Array, "B 2"] | None


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepInfo]]
ScoreStep = Callable[[ModelParams, Tree, Batch], Scored]


def init_state(
    model: Model, adapter: LossAdapter, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before the first step; jit it with output shardings to create it in place."""
    key = jax.random.key(seed)
    params = initialize(model.declared.params, jax.random.fold_in(key, 0))
    return TrainState(
        params=params,
        model_state=initialize(model.declared.state, jax.random.fold_in(key, 1)),
        optimizer_state=optimizer.init(params),
        adapter_state=initialize(adapter.state, jax.random.fold_in(key, 2)),
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.fold_in(key, 3)),
    )


def make_train_step(
    model: Model, adapter: LossAdapter, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainStep:
    """The jitted step `state, info = train_step(state, batch)`; the old state is donated.

    Older JAX spelt this `jax.pmap`: a program for one device's share of the batch, with sums
    over a named axis. `jax.shard_map` is what `pmap` is built on today, without its extra axis.
    """

    def device_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepInfo]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        mode = Mode(train=True, axis_name=DATA_AXIS, key=key)
        gradients, (feedback, model_state, info) = _gradients(model, adapter, state, batch, mode)
        if adapter.watched is not None:
            norms = _watched_norms(model, adapter, adapter.watched, state, batch, mode)
            feedback = feedback._replace(gradient_norms=norms)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        new_state = TrainState(
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            optimizer_state=optimizer_state,
            adapter_state=adapter.update(state.adapter_state, feedback, state.step, mode),
            step=state.step + 1,
            key=state.key,
        )
        return new_state, info._replace(gradient_norm=optax.tree.norm(gradients))

    mapped = jax.shard_map(
        device_step, mesh=mesh, in_specs=(P(), P(DATA_AXIS)), out_specs=(P(), P())
    )
    return jax.jit(mapped, donate_argnums=0)


def _gradients(
    model: Model, adapter: LossAdapter, state: TrainState, batch: Batch, mode: Mode
) -> tuple[ModelParams, tuple[Feedback, Tree, StepInfo]]:
    """The batch's gradient, summed over devices, with what the forward pass gave.

    Each device differentiates its share of the loss; the shares add up to the loss of the whole
    batch, so their gradients are summed. The parameters are made device-varying first: left
    replicated, `shard_map` would already have summed their gradients, and a second sum would
    multiply them by the number of devices.
    """
    ids = table_rows(model.schema, batch.ids)
    network = lax.pcast(state.params.network, DATA_AXIS, to="varying")

    def share(network: Tree, rows: Array) -> tuple[Array, tuple[Feedback, Tree, StepInfo]]:
        output, model_state = model.forward(network, state.model_state, rows, batch, mode)
        losses = adapter.row_losses(output.logits, batch.label)
        weights = adapter.row_weights(state.adapter_state, output, batch, state.step, mode)
        loss = weighted_loss(losses, weights, batch.mask, axis_name=DATA_AXIS)
        plain = binary_cross_entropy(output.logits, batch.label)
        plain = weighted_loss(plain, jnp.ones_like(plain), batch.mask, axis_name=DATA_AXIS)
        info = StepInfo(mode.total(loss), mode.total(plain), jnp.zeros(()))
        return loss, (Feedback(output, batch, losses), model_state, info)

    rows = lookup(state.params.embedding, ids)
    differentiate = jax.grad(share, argnums=(0, 1), has_aux=True)
    (network_gradient, row_gradient), auxiliary = differentiate(network, rows)
    table = table_gradient(state.params.embedding, ids, row_gradient)
    gradients = ModelParams(EmbeddingParams(table), network_gradient)
    return lax.psum(gradients, DATA_AXIS), auxiliary


def _watched_norms(
    model: Model, adapter: LossAdapter, watched: str, state: TrainState, batch: Batch, mode: Mode
) -> Float[Array, " S"]:
    """The gradient norm, by scenario, that the adapter asks for; XLA shares the forward pass."""
    rows = lookup(state.params.embedding, table_rows(model.schema, batch.ids))

    def row_losses(network: Tree) -> Array:
        output, _ = model.forward(network, state.model_state, rows, batch, mode)
        return adapter.row_losses(output.logits, batch.label)

    scenarios = model.schema.num_scenarios
    return scenario_gradient_norms(
        row_losses, state.params.network, watched, batch, scenarios, mode
    )


def make_score_step(model: Model, mesh: Mesh) -> ScoreStep:
    """The jitted `scored = score_step(params, model_state, batch)` of evaluation mode."""

    def device_score(params: ModelParams, model_state: Tree, batch: Batch) -> Scored:
        output, _ = model.apply(params, model_state, batch, EVALUATION)
        received = None
        if output.attention is not None:
            received = jax.nn.softmax(output.attention).mean(-2)
        return Scored(output.logits, received, output.gate)

    mapped = jax.shard_map(
        device_score, mesh=mesh, in_specs=(P(), P(), P(DATA_AXIS)), out_specs=P(DATA_AXIS)
    )
    return jax.jit(mapped)

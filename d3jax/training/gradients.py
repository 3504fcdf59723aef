"""The gradient of a batch's loss: with respect to the network, and to the table's rows it read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from d3jax.adapters.d3 import binary_cross_entropy
from d3jax.adapters.scenarios import scenario_rows, scenario_totals
from d3jax.balance import weighted_loss
from d3jax.base import Feedback, LossAdapter, Mode, Model
from d3jax.batch import Batch
from d3jax.parameters import DATA_AXIS, Tree, named_leaves


class Before(NamedTuple):
    """The start of a step: the network, this device's rows of the table, and both states."""

    network: Tree
    rows: Float[Array, "B K D"]
    model_state: Tree
    adapter_state: Tree
    step: Array


class Losses(NamedTuple):
    """The loss that is minimised, and the plain cross-entropy, of the whole batch."""

    loss: Float[Array, ""]
    cross_entropy: Float[Array, ""]


class Gradients(NamedTuple):
    """The network's gradient, summed over devices, and that of this device's rows."""

    network: Tree
    rows: Float[Array, "B K D"]


class Forward(NamedTuple):
    """The results of the forward pass beside the gradient."""

    feedback: Feedback
    model_state: Tree
    losses: Losses


def batch_gradients(
    model: Model, adapter: LossAdapter, before: Before, batch: Batch, mode: Mode, slices: int
) -> tuple[Gradients, Forward]:
    """One device's program for the gradient of the batch's loss.

    Each device differentiates its share of the loss; the shares add up to the loss of the whole
    batch, so their gradients are summed. The parameters are made device-varying first: left
    replicated, `shard_map` would already have summed their gradients, and a second sum would
    multiply them by the number of devices.
    """
    network = lax.pcast(before.network, DATA_AXIS, to="varying")
    before = before._replace(network=network)
    if slices == 1:
        gradients, forward = _slice(model, adapter, before, batch, mode, jnp.ones(()))
    else:
        gradients, forward = _slices(model, adapter, before, batch, mode, slices)
    return gradients._replace(network=lax.psum(gradients.network, DATA_AXIS)), forward


def _slice(
    model: Model,
    adapter: LossAdapter,
    before: Before,
    batch: Batch,
    mode: Mode,
    fraction: Float[Array, ""],
) -> tuple[Gradients, Forward]:
    """Return the gradients of one slice, whose loss counts as `fraction` of the batch's."""

    def share(network: Tree, rows: Array) -> tuple[Array, Forward]:
        output, model_state = model.forward(network, before.model_state, rows, batch, mode)
        losses = adapter.row_losses(output.logits, batch.label)
        weights = adapter.row_weights(before.adapter_state, output, batch, before.step, mode)
        loss = weighted_loss(losses, weights, batch.mask, axis_name=DATA_AXIS) * fraction
        plain = binary_cross_entropy(output.logits, batch.label)
        plain = weighted_loss(plain, jnp.ones_like(plain), batch.mask, axis_name=DATA_AXIS)
        totals = Losses(mode.total(loss), mode.total(plain * fraction))
        return loss, Forward(Feedback(output, batch, losses), model_state, totals)

    differentiate = jax.grad(share, argnums=(0, 1), has_aux=True)
    gradients, forward = differentiate(before.network, before.rows)
    return Gradients(*gradients), forward


def _slices(
    model: Model, adapter: LossAdapter, before: Before, batch: Batch, mode: Mode, slices: int
) -> tuple[Gradients, Forward]:
    """Slice after slice, so that only one slice's activations are alive at a time.

    A slice takes every `slices`-th row, the same rows on any number of devices. What a model or
    an adapter takes over "the batch" it takes over the slice.
    """
    real = jnp.maximum(mode.total(batch.mask.sum()), 1)

    def one(carry: tuple[Tree, Tree], item: tuple[Array, Batch, Array]) -> tuple[Tree, Tree]:
        total, model_state = carry
        rows, part, index = item
        key = None if mode.key is None else jax.random.fold_in(mode.key, index)
        start = before._replace(rows=rows, model_state=model_state)
        fraction = mode.total(part.mask.sum()) / real
        gradients, forward = _slice(
            model, adapter, start, part, mode._replace(key=key), fraction.astype(rows.dtype)
        )
        total = jax.tree.map(jnp.add, total, gradients.network)
        return (total, forward.model_state), (gradients.rows, forward)

    zeros = jax.tree.map(jnp.zeros_like, before.network)
    items = (*_split((before.rows, batch), slices), jnp.arange(slices))
    (network, model_state), (rows, forward) = lax.scan(one, (zeros, before.model_state), items)
    feedback = _join(forward.feedback)
    losses = jax.tree.map(lambda parts: parts.sum(), forward.losses)
    return Gradients(network, _join(rows)), Forward(feedback, model_state, losses)


def _split(tree: Tree, slices: int) -> Tree:
    """[B ...] -> [slices, B / slices, ...], every `slices`-th row together."""
    return jax.tree.map(lambda a: a.reshape(-1, slices, *a.shape[1:]).swapaxes(0, 1), tree)


def _join(tree: Tree) -> Tree:
    """The inverse of `_split`."""
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), tree)


def watched_norms(
    model: Model, adapter: LossAdapter, watched: str, before: Before, batch: Batch, mode: Mode
) -> Float[Array, " S"]:
    """The gradient norm, by scenario, that the adapter asks for; XLA shares the forward pass."""

    def row_losses(network: Tree) -> Array:
        output, _ = model.forward(network, before.model_state, before.rows, batch, mode)
        return adapter.row_losses(output.logits, batch.label)

    scenarios = model.schema.num_scenarios
    return scenario_gradient_norms(row_losses, before.network, watched, batch, scenarios, mode)


def scenario_gradient_norms(
    row_losses: Callable[[Tree], Float[Array, " B"]],
    network: Tree,
    watched: str,
    batch: Batch,
    num_scenarios: int,
    mode: Mode,
) -> Float[Array, " S"]:
    """The norm of each scenario's mean loss' gradient with respect to the watched parameter.

    One backward pass a scenario. As for the loss itself, devices differentiate their shares by a
    parameter that is made device-varying, and the gradients are summed.
    """
    rows = jnp.maximum(scenario_rows(batch, num_scenarios, mode), 1.0)
    leaves, structure = jax.tree.flatten(network)
    place = list(named_leaves(network)).index(watched)

    def shares(parameter: Array) -> Array:
        losses = row_losses(jax.tree.unflatten(structure, [*before, parameter, *after]))
        return scenario_totals(losses, batch, num_scenarios, Mode()) / rows

    if mode.axis_name is not None:
        leaves = lax.pcast(leaves, mode.axis_name, to="varying")
    before, parameter, after = leaves[:place], leaves[place], leaves[place + 1 :]
    means, backward = jax.vjp(shares, parameter)
    # A cotangent must vary over the devices as the means do.
    each = jnp.eye(num_scenarios) + jnp.zeros_like(means)[None]
    gradients = mode.total(lax.map(lambda cotangent: backward(cotangent)[0], each))
    return jnp.sqrt((gradients**2).sum(range(1, gradients.ndim)))

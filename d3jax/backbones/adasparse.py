"""AdaSparse: one network, of which each scenario uses the neurons that a pruner leaves it.

Yang et al., "AdaSparse: Learning Adaptively Sparse Structures for Multi-Domain Click-Through Rate
Prediction" (CIKM 2022). Assumed where the paper leaves room or this library differs: what a row's
domain is known by is an embedding of its scenario, apart from the fields; a pruner is one dense
layer; the pruned neurons are not rewarded by a sparsity term in the loss.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense
from d3jax.meta import declare_scenarios
from d3jax.options import AdaSparseOptions
from d3jax.parameters import Tree, constant, declare_array


class AdaSparseParams(NamedTuple):
    """Scenario embeddings; the network; a pruner of its input and of each layer; the head."""

    scenario: Float[Array, "S D"]
    layers: tuple[Dense, ...]
    pruners: tuple[Dense, ...]
    head: Tree


class AdaSparseState(NamedTuple):
    """The present steepness of the pruners' sigmoid, and the head's state."""

    sharpness: Float[Array, ""]
    head: Tree


def adasparse(head: Head, options: AdaSparseOptions) -> Backbone:
    """The head reads the last layer's neurons, each weighed by its pruner."""

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        dim = sizes.embedding_dim
        params = AdaSparseParams(
            scenario=declare_scenarios(sizes),
            layers=declare_mlp(sizes.flat + dim, options.layers),
            pruners=tuple(
                declare_dense(width + dim, width) for width in (sizes.flat, *options.layers)
            ),
            head=declared.params,
        )
        sharpness = declare_array((), constant(options.sharpness))
        return Declared(params, AdaSparseState(sharpness, declared.state))

    def apply(
        params: AdaSparseParams, state: AdaSparseState, inputs: Inputs, mode: Mode
    ) -> tuple[Output, AdaSparseState]:
        hidden = pruned_network(params, state.sharpness, inputs, options)
        output, head_state = head.apply(params.head, state.head, hidden, inputs, mode)
        sharpness = state.sharpness
        if mode.train:
            sharpness = jnp.minimum(sharpness + options.growth, options.sharpest)
        return output, AdaSparseState(sharpness, head_state)

    return Backbone(declare, apply)


def pruned_network(
    params: AdaSparseParams,
    sharpness: Float[Array, ""],
    inputs: Inputs,
    options: AdaSparseOptions,
) -> Float[Array, "B W"]:
    """Dense layers over the scenario's embedding and the fields; fields and neurons are pruned."""
    known = params.scenario[inputs.scenario]

    def prune(pruner: Dense, hidden: Array) -> Array:
        scores = dense(pruner, jnp.concatenate([hidden, known], axis=1))
        return hidden * neuron_weights(scores, sharpness, options)

    hidden = jnp.concatenate([known, prune(params.pruners[0], inputs.flat)], axis=1)
    for layer, pruner in zip(params.layers, params.pruners[1:], strict=True):
        hidden = prune(pruner, jax.nn.relu(dense(layer, hidden)))
    return hidden


def neuron_weights(
    scores: Float[Array, "B W"], sharpness: Float[Array, ""], options: AdaSparseOptions
) -> Float[Array, "B W"]:
    """Return each neuron's weight: β σ(v), [σ(α v) > ε], or β σ(α v) where that is above ε.

    A step has no slope, so `binary` learns from the sigmoid's (straight through; Bengio et al.,
    2013). A neuron that `fusion` prunes for a row learns nothing from that row.
    """
    if options.form == "scaling":
        return options.scale * jax.nn.sigmoid(scores)
    soft = jax.nn.sigmoid(sharpness * scores)
    if options.form == "binary":
        kept = (soft > options.threshold).astype(soft.dtype)
        return soft + lax.stop_gradient(kept - soft)
    weights = options.scale * soft
    return jnp.where(weights > options.threshold, weights, 0.0)

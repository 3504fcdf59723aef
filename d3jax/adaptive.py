"""The adaptive form of D3: its three ideas, made so that each has something to do.

Measured, the paper's form of D3 is idle: attention stays even, and the generated kernel becomes a
second shared one (`experiments/results/README.md`). Here selection asks by scenario and by row, and
its weights keep out of the network's weight decay; a row's layers are the shared ones, whose units
are scaled by factors 2σ(·) that start at exactly 1 and leave there only where that helps. What the
factors' distance from 1 says is the gate, so that domain balance (Eq. 15-19) reads both as before.

Of the paper it keeps: attention over a row's fields (Eq. 6-8 with other logits), a linear layer of
each selected field and the residual that mixes them (Eq. 9-10), own weights fused with shared ones
(Eq. 13, where what is fused are factors of the shared kernel's columns).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from d3jax.base import Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.generation import HiddenParams, declare_hidden, feature_hidden
from d3jax.heads import D3Options
from d3jax.layers.dense import Dense, declare_dense, dense, sum_rows
from d3jax.layers.normalization import renewed
from d3jax.parameters import Tree, declare_array, normal, ones

SPREAD = 0.3
"""Standard deviation of the first queries and keys."""
TINY = 1e-12
"""Added to a mean square before its root is taken."""


class SelectionParams(NamedTuple):
    """A query for each scenario, a key for each field, and what a row's own values add."""

    query: Float[Array, "S D"]
    key: Float[Array, "N D"]
    value: Float[Array, "N D"]


class AdaptedLayer(NamedTuple):
    """A shared layer, and the scores of its units' factors: from the row's selected fields, and
    (None for D1) of each scenario."""

    shared: Dense
    row: Dense
    scenario: Float[Array, "S O"] | None


class AdaptiveParams(NamedTuple):
    """All that is learned; `entry` are the scores of the head's inputs by scenario, None for D1."""

    selection: SelectionParams
    hidden: HiddenParams
    entry: Float[Array, "S I"] | None
    layers: tuple[AdaptedLayer, ...]
    output: Dense


def d3_adaptive(config: D3Options) -> Head:
    """Return the adaptive head; of `config` it reads parts, width, head layers and field width."""

    def declare(sizes: Sizes, inputs: int) -> Declared:
        shape = (sizes.num_scenarios, sizes.embedding_dim)
        fields = (sizes.num_fields, sizes.embedding_dim)
        own = config.parts != "d1"
        units = sizes.num_fields * config.field_hidden

        def scores(width: int) -> Array | None:
            return declare_array((shape[0], width), own_decay=True) if own else None

        layers, width = [], inputs
        for output in (config.outputs, *config.head_layers):
            shared = declare_dense(width, output)
            row = Dense(declare_array((units, output)), declare_array((output,)))
            layers.append(AdaptedLayer(shared, row, scores(output)))
            width = output
        params = AdaptiveParams(
            selection=SelectionParams(
                declare_array(shape, normal(SPREAD), own_decay=True),
                declare_array(fields, normal(SPREAD), own_decay=True),
                declare_array(fields, own_decay=True),
            ),
            hidden=declare_hidden(*fields, config.field_hidden),
            entry=scores(inputs),
            layers=tuple(layers),
            output=declare_dense(width, 1),
        )
        return Declared(params, declare_array(fields[:1], ones))

    def apply(
        params: AdaptiveParams,
        state: Float[Array, " N"],
        hidden: Float[Array, "B I"],
        inputs: Inputs,
        mode: Mode,
    ) -> tuple[Output, Tree]:
        x, state = scaled(state, inputs, mode)
        logits = selection_logits(params.selection, x, inputs.scenario)
        attention = jax.nn.softmax(logits)
        selected = x * (attention * attention.shape[1])[..., None]
        units = feature_hidden(params.hidden, selected)
        distances = []
        if params.entry is not None:
            hidden = hidden * 2 * jax.nn.sigmoid(params.entry[inputs.scenario])
        for layer in params.layers:
            factors = unit_factors(layer, units, inputs.scenario)
            distances.append(jnp.abs(factors - 1).mean(-1))
            hidden = jax.nn.relu(dense(layer.shared, hidden)) * factors
        own = jnp.stack(distances).mean(0)
        gate = None if config.parts == "d1" else jnp.stack([own, 1 - own], axis=-1)
        asking = jnp.broadcast_to(logits[:, None], (*logits.shape, logits.shape[1]))
        return Output(dense(params.output, hidden).squeeze(-1), asking, gate), state

    return Head(declare, apply)


def scaled(
    mean_square: Float[Array, " N"], inputs: Inputs, mode: Mode
) -> tuple[Float[Array, "B N D"], Float[Array, " N"]]:
    """Return the embeddings without gradient over the root mean square of their field, and its
    new running mean; of the batch's real rows in training, the running one in evaluation."""
    x, used = lax.stop_gradient(inputs.x), mean_square
    if mode.train:
        real = inputs.mask.astype(x.dtype)
        rows, squares = mode.total(real.sum()), mode.total(sum_rows(real, jnp.square(x).mean(-1)))
        used = jnp.where(rows > 0, squares / jnp.maximum(rows, 1), mean_square)
        mean_square = renewed(mean_square, used)
    return x * lax.rsqrt(used + TINY)[None, :, None], mean_square


def selection_logits(
    params: SelectionParams, x: Float[Array, "B N D"], scenario: Int[Array, " B"]
) -> Float[Array, "B N"]:
    """Return q_s·k_f + x_f·v_f for each field f of a row of scenario s."""
    return (params.query @ params.key.T)[scenario] + jnp.einsum("bnd,nd->bn", x, params.value)


def unit_factors(
    layer: AdaptedLayer, units: Float[Array, "B M"], scenario: Int[Array, " B"]
) -> Float[Array, "B O"]:
    """Return 2 σ(h G + c + C_s), the factor of each of the layer's units, in (0, 2)."""
    scores = dense(layer.row, units)
    if layer.scenario is not None:
        scores = scores + layer.scenario[scenario]
    return 2 * jax.nn.sigmoid(scores)

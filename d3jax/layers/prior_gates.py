"""PEPNet's gates: features and hidden units scaled by what is known of scenario, user and item.

Chang et al., "PEPNet: Parameter and Embedding Personalized Network for Infusing with Personalized
Prior Information" (KDD 2023). D3 is compared with these gates, as PEPNet-WG, in a head of their
own; `backbones.pepnet` puts them under any head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from d3jax.base import Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.batch import Schema
from d3jax.errors import ConfigError
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense
from d3jax.meta import declare_scenarios
from d3jax.parameters import Tree


class GateUnit(NamedTuple):
    """Two dense layers; the second is as wide as what it scales."""

    hidden: Dense
    output: Dense


class PersonalizedParams(NamedTuple):
    """EPNet's gate over the scenario's embedding, the dense layers, and PPNet's gate for each
    (none when only EPNet is wanted)."""

    scenario: Float[Array, "S D"]
    embedding_gate: GateUnit
    layers: tuple[Dense, ...]
    layer_gates: tuple[GateUnit, ...]


class PEPNetHeadParams(NamedTuple):
    """The gated layers and the logit."""

    body: PersonalizedParams
    output: Dense


def declare_gate_unit(inputs: int, outputs: int) -> GateUnit:
    """A gate whose hidden layer is as wide as its output."""
    return GateUnit(declare_dense(inputs, outputs), declare_dense(outputs, outputs))


def gate_unit(params: GateUnit, prior: Float[Array, "B P"]) -> Float[Array, "B O"]:
    """Factors in (0, 2): 2 σ(dense(relu(dense(prior)))); 1 where the last layer is zero."""
    hidden = jax.nn.relu(dense(params.hidden, prior))
    return 2.0 * jax.nn.sigmoid(dense(params.output, hidden))


def declare_personalized(
    sizes: Sizes, inputs: int, layers: Sequence[int], prior_fields: Sequence[int], epnet_only: bool
) -> PersonalizedParams:
    """Gated layers over `inputs` features.

    Raises `ConfigError` for a prior field that the rows don't have, which a device would take
    for the last one in silence.
    """
    if not prior_fields and not epnet_only:
        raise ConfigError("PPNet's gates need a prior field; name one, or use epnet_only")
    if wrong := [field for field in prior_fields if not 0 <= field < sizes.num_fields]:
        raise ConfigError(f"prior field {wrong[0]} is outside [0, {sizes.num_fields})")
    prior = len(prior_fields) * sizes.embedding_dim
    gates = () if epnet_only else pairwise((inputs, *layers))
    return PersonalizedParams(
        scenario=declare_scenarios(sizes),
        embedding_gate=declare_gate_unit(sizes.embedding_dim + inputs, inputs),
        layers=declare_mlp(inputs, layers),
        layer_gates=tuple(declare_gate_unit(prior + inputs, output) for _, output in gates),
    )


def personalized(
    params: PersonalizedParams,
    hidden: Float[Array, "B I"],
    inputs: Inputs,
    prior_fields: Sequence[int],
) -> Float[Array, "B O"]:
    """Features scaled by the scenario (EPNet), then each layer by user and item (PPNet).

    Inside a gate the features pass no gradient; what the gate scales does.
    """
    scenario = params.scenario[inputs.scenario]
    scale = gate_unit(params.embedding_gate, _beside(scenario, hidden))
    features = hidden = scale * hidden
    prior = inputs.x[:, jnp.asarray(prior_fields, int)].reshape(hidden.shape[0], -1)
    for index, layer in enumerate(params.layers):
        hidden = jax.nn.relu(dense(layer, hidden))
        if params.layer_gates:
            hidden = gate_unit(params.layer_gates[index], _beside(prior, features)) * hidden
    return hidden


def pepnet(prior_fields: Sequence[int], width: int = 128, epnet_only: bool = False) -> Head:
    """PEPNet-WG: one personalised layer of `width` units over the representation, then the logit.

    `prior_fields` are the positions of the user's and the item's field.
    """

    def declare(sizes: Sizes, inputs: int) -> Declared:
        body = declare_personalized(sizes, inputs, (width,), prior_fields, epnet_only)
        return Declared(PEPNetHeadParams(body, declare_dense(width, 1)))

    def apply(
        params: PEPNetHeadParams, state: Tree, hidden: Array, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        outputs = personalized(params.body, hidden, inputs, prior_fields)
        return Output(dense(params.output, outputs).squeeze(-1)), state

    return Head(declare, apply)


def _beside(prior: Float[Array, "B P"], features: Float[Array, "B I"]) -> Float[Array, "B Q"]:
    """Prior and features side by side, the features without gradient."""
    return jnp.concatenate([prior, lax.stop_gradient(features)], axis=-1)


def prior_fields(schema: Schema) -> tuple[int, ...]:
    """Return the fields that tell who and what: the user's and the item's, where there are such."""
    names = (schema.user_field, schema.item_field)
    return tuple(schema.index(name) for name in names if name is not None)

"""A network with a residual for each scenario: z = head(mlp(x)) + Σ_f x_f · δ_{s,f}."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from d3jax.base import Backbone, Declared
from d3jax.heads import dense_head
from d3jax.layers.dense import Dense, declare_mlp, mlp
from d3jax.parameters import Tree, declare_array
from d3jax.registry import Part


@dataclass(frozen=True)
class Options:
    """A network with a linear residual by scenario."""

    layers: tuple[int, ...] = (64, 32)
    """Widths of the network."""


class Params(NamedTuple):
    """The network, the residuals [S N D] and the head."""

    network: tuple[Dense, ...]
    residual: Array
    head: Tree


def residual_backbone(head, options):
    """Return the backbone; the head reads the network's output."""

    def declare(sizes):
        declared = head.declare(sizes, options.layers[-1])
        shape = (sizes.num_scenarios, sizes.num_fields, sizes.embedding_dim)
        network = declare_mlp(sizes.flat, options.layers)
        return Declared(Params(network, declare_array(shape), declared.params), declared.state)

    def apply(params, state, inputs, mode):
        hidden = mlp(params.network, inputs.flat)
        output, state = head.apply(params.head, state, hidden, inputs, mode)
        own = jnp.sum(params.residual[inputs.scenario] * inputs.x, axis=(1, 2))
        return output._replace(logits=output.logits + own), state

    return Backbone(declare, apply)


PART = Part(lambda choice: residual_backbone(choice.head(dense_head()), choice.options), Options)

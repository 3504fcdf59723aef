"""M2M (Zhang et al., WSDM 2022): experts mixed and refined by meta units.

The paper's transformer encodes behaviour sequences; the data here have none, so it is left out.
With D3 in its place, the meta units' layers are generated from the row's selected fields.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.base import Backbone, Declared, Generated, Generator, Head, Inputs, Mode, Output, Sizes
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense, mlp, stacked_dense
from d3jax.options import M2MOptions
from d3jax.parameters import Tree, declare_array, normal


class M2MParams(NamedTuple):
    """Stacked experts, the task's vector and its view, the generated layers, the attention's
    last vector, and the dense layers to the logit."""

    experts: Dense
    task: Float[Array, " D"]
    view: Dense
    generator: Tree
    score: Dense
    tail: tuple[Dense, ...]


class M2MHeadParams(NamedTuple):
    """Stacked experts, the attention over them, and the head."""

    experts: Dense
    score: Dense
    head: Tree


def m2m(generator: Generator, options: M2MOptions) -> Backbone:
    """Meta attention over the experts, then the meta tower; `generator` makes their layers."""
    width, depth = options.width, options.meta_layers

    def declare(sizes: Sizes) -> Declared:
        attention = [(2 * width, 2 * width)] * depth
        tower = [(width, width)] * (depth * options.tower_blocks)
        params = M2MParams(
            experts=declare_dense(sizes.flat, width, stack=(options.experts,)),
            task=declare_array((sizes.embedding_dim,), normal(0.05)),
            view=declare_dense(sizes.embedding_dim, width),
            generator=generator.declare(sizes, attention + tower),
            score=declare_dense(2 * width, 1, bias=None),
            tail=declare_mlp(width, (*options.layers, 1)),
        )
        return Declared(params)

    def apply(params: M2MParams, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        made = generator.generate(params.generator, inputs, mode)
        mixed = meta_attention(params, made, inputs, depth)
        for block in range(options.tower_blocks):
            first = depth * (1 + block)
            refined = meta_unit(made, mixed, first, depth, options.inner_activation)
            mixed = jax.nn.leaky_relu(refined + mixed)
        logits = dense(params.tail[-1], mlp(params.tail[:-1], mixed))
        return Output(logits.squeeze(-1), made.attention, made.gate), state

    return Backbone(declare, apply)


def meta_unit(
    made: Generated, hidden: Float[Array, "B W"], first: int, depth: int, last_activation: bool
) -> Float[Array, "B W"]:
    """`depth` generated layers from site `first` on, leaky rectifiers between them."""
    for index in range(first, first + depth):
        hidden = made.layer(index, hidden)
        if last_activation or index < first + depth - 1:
            hidden = jax.nn.leaky_relu(hidden)
    return hidden


def meta_attention(
    params: M2MParams, made: Generated, inputs: Inputs, depth: int
) -> Float[Array, "B W"]:
    """Σ_k α_k E_k, with α the softmax of what a meta unit makes of expert and task."""
    experts = jax.nn.leaky_relu(stacked_dense(params.experts, inputs.flat))
    view = jax.nn.leaky_relu(dense(params.view, params.task[None]))
    view = jnp.broadcast_to(view, experts[:, 0].shape)
    scores = [
        dense(params.score, meta_unit(made, jnp.concatenate([expert, view], -1), 0, depth, True))
        for expert in jnp.unstack(experts, axis=1)
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1))
    return jnp.einsum("bk,bkw->bw", weights, experts)


def m2m_head(head: Head, options: M2MOptions) -> Backbone:
    """M2M's experts under a plain attention that knows no scenario, then the head."""

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.width)
        params = M2MHeadParams(
            experts=declare_dense(sizes.flat, options.width, stack=(options.experts,)),
            score=declare_dense(options.width, 1, bias=None),
            head=declared.params,
        )
        return Declared(params, declared.state)

    def apply(
        params: M2MHeadParams, state: Tree, inputs: Inputs, mode: Mode
    ) -> tuple[Output, Tree]:
        experts = jax.nn.leaky_relu(stacked_dense(params.experts, inputs.flat))
        weights = jax.nn.softmax(dense(params.score, jnp.tanh(experts)).squeeze(-1))
        mixed = jnp.einsum("bk,bkw->bw", weights, experts)
        return head.apply(params.head, state, mixed, inputs, mode)

    return Backbone(declare, apply)

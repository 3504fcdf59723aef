"""M2M (Zhang et al., WSDM 2022): experts mixed and refined by meta units.

The paper's transformer encodes behaviour sequences; the data here have none, so it is left out.
With D3 in its place, the meta units' layers are generated from the row's selected fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.base import Backbone, Declared, Generated, Generator, Head, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.heads import d3_generator, dense_head
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense, mlp, stacked_dense
from d3jax.meta import meta_generator
from d3jax.needs import D3_HEAD, NOT_ON_TOP, OWN_HEAD
from d3jax.parameters import Tree, declare_array, normal
from d3jax.registry import Part
from d3jax.typed import check_types

D3Place = Literal["site", "head"]


@dataclass(frozen=True)
class M2MOptions:
    """M2M."""

    experts: int = 4
    """Number of experts."""
    width: int = 16
    """Output width of an expert."""
    knowledge: int = 16
    """Width of the scenario knowledge that weights are generated from."""
    meta_layers: int = 1
    """Generated layers in each meta unit, at least 1."""
    tower_blocks: int = 1
    """Residual blocks in the meta tower."""
    layers: tuple[int, ...] = (64, 32)
    """Dense layers between the meta tower and the logit."""
    inner_activation: bool = False
    """Apply the activation inside the tower's meta unit as well."""
    d3_place: D3Place = "site"
    """D3 generates each meta unit (site), or stands after a plain attention as the head."""

    def __post_init__(self) -> None:
        check_types(self, "m2m.")
        within("m2m.experts", self.experts, 1, 4096)
        within("m2m.width", self.width, 1, 4096)
        within("m2m.knowledge", self.knowledge, 1, 4096)
        within("m2m.meta_layers", self.meta_layers, 1, 4096)
        within("m2m.tower_blocks", self.tower_blocks, 1, 4096)
        widths("m2m.layers", self.layers)


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


def m2m(generator: Generator, options: M2MOptions | None = None, **settings: Any) -> Backbone:
    """Meta attention over the experts, then the meta tower; `generator` makes their layers."""
    options = chosen(M2MOptions, options, settings)
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


def _build(choice: BackboneChoice) -> Backbone:
    if choice.head_name == "own":
        return m2m(meta_generator(choice.options.knowledge), choice.options)
    if choice.options.d3_place == "site":
        return m2m(d3_generator(choice.d3), choice.options)
    return m2m_head(choice.head(dense_head()), choice.options)


_NEEDS = {
    "knowledge": (OWN_HEAD,),
    **{
        name: (NOT_ON_TOP,)
        for name in ("meta_layers", "tower_blocks", "layers", "inner_activation")
    },
    "d3_place": (D3_HEAD,),
}

_SPACE = {
    "experts": (2, 4, 8),
    "width": (8, 16, 32),
    "knowledge": (8, 16, 32),
    "layers": ((32,), (64, 32), (128, 64)),
}

PART = Part(_build, M2MOptions, needs=_NEEDS, space=_SPACE)

"""Terms of a domain alone, added to a model's logit: the wide part beside the deep one.

Shared weights learn a domain of 1 % of the rows from 1 % of the gradient; weights of its own
have a scale of their own in the optimizer. Both terms start at exactly zero, so that a model with
one begins as the model without. The idea of a wide part: Cheng et al., "Wide & Deep Learning for
Recommender Systems" (DLRS 2016).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from d3jax.base import Backbone, Declared, Inputs, Mode, Model, Output, Sizes
from d3jax.batch import EMPTY, Batch, Schema
from d3jax.domains import Domains
from d3jax.embedding import padded_rows, slot_shares, table_rows
from d3jax.parameters import Tree, declare_array
from d3jax.training.table.rows import sums_of


class ResidualParams(NamedTuple):
    """A weight for each number of the field embeddings, and an offset, by domain."""

    weight: Float[Array, "S N D"]
    offset: Float[Array, " S"]


class WithResidual(NamedTuple):
    """The parameters of a backbone and of its residual."""

    backbone: Tree
    residual: ResidualParams


def with_residual(backbone: Backbone) -> Backbone:
    """Return the backbone with Σ_f x_f·δ_sf + c_s added to its logit, linear in the embeddings."""

    def declare(sizes: Sizes) -> Declared:
        declared = backbone.declare(sizes)
        shape = (sizes.num_scenarios, sizes.num_fields, sizes.embedding_dim)
        residual = ResidualParams(
            declare_array(shape, own_decay=True), declare_array(shape[:1], own_decay=True)
        )
        return Declared(WithResidual(declared.params, residual), declared.state)

    def apply(params: WithResidual, state: Tree, inputs: Inputs, mode: Mode) -> tuple[Output, Tree]:
        output, state = backbone.apply(params.backbone, state, inputs, mode)
        logits = output.logits + residual(params.residual, inputs)
        return output._replace(logits=logits), state

    return Backbone(declare, apply)


def residual(params: ResidualParams, inputs: Inputs) -> Float[Array, " B"]:
    """Return Σ_f x_f·δ_sf + c_s of each row, s its domain (`Inputs.scenario`)."""
    own = params.weight[inputs.scenario]
    return jnp.einsum("bnd,bnd->b", inputs.x, own) + params.offset[inputs.scenario]


MOST_CROSSES = 1 << 20
"""Pairs of a domain and a value that have a weight of their own; more share them by hashing."""
CROSSES_RATE = 0.05
"""The learning rate of a cross' Adagrad."""
SHRINKAGE = 0.05
"""The pull of a cross' weight to zero, in rows of error 1 and a weight of 1."""


class CrossesState(NamedTuple):
    """A weight for each value of a field in each domain, and one in all of them; the sum of its
    squared gradients, and the scratch of `sums_of`."""

    weight: Float[Array, " C"]
    squares: Float[Array, " C"]
    slot: Int[Array, " C"]


class WithCrosses(NamedTuple):
    """The states of a model and of its crosses."""

    model: Tree
    crosses: CrossesState


def with_crosses(model: Model, domains: Domains) -> Model:
    """Return the model with two weights of each field's value added to its logit: one of the value
    in the row's domain, and one that all domains share.

    So a domain's weight has to learn only how the value differs there (Daumé, "Frustratingly Easy
    Domain Adaptation", ACL 2007). They are learnt by a rule of their own, row by row, from the
    errors of the batch's logits: g = Σ (σ(z) - y) + .05 w, G += g², w -= .05 g / (1 + √G) (Adagrad,
    Duchi et al., 2011, with a pull to zero). So they are state, not parameters: no optimizer and no
    row's loss weight sees them, and what no row has stays zero.
    """
    schema = model.schema
    size = min((domains.number + 1) * padded_rows(schema), MOST_CROSSES)
    zero = declare_array((size,))
    crosses = CrossesState(zero, zero, declare_array((size,), dtype=jnp.int32))

    def forward(
        params: Tree, state: WithCrosses, rows: Float[Array, "B K D"], batch: Batch, mode: Mode
    ) -> tuple[Output, Tree]:
        output, inner = model.forward(params, state.model, rows, batch, mode)
        places = cross_places(schema, domains, batch, size)
        shares = jnp.tile(slot_shares(schema, batch.ids), 2)
        weights = state.crosses.weight.at[places].get(mode="fill", fill_value=0.0)
        logits = output.logits + (weights * shares).sum(-1)
        learnt = state.crosses
        if mode.train:
            error = lax.stop_gradient(jax.nn.sigmoid(logits) - batch.label)
            learnt = learn_crosses(learnt, places, error[:, None] * shares, mode)
        return output._replace(logits=logits), WithCrosses(inner, learnt)

    state = WithCrosses(model.declared.state, crosses)
    return Model(schema, Declared(model.declared.params, state), forward)


def learn_crosses(
    crosses: CrossesState, places: Int[Array, "B L"], gradient: Float[Array, "B L"], mode: Mode
) -> CrossesState:
    """Return the crosses after a batch whose loss has this gradient by their weights."""
    flat = (places.reshape(-1), gradient.reshape(-1, 1))
    if mode.axis_name is not None:
        flat = lax.all_gather(flat, mode.axis_name, tiled=True, to="invarying")
    sums = sums_of(crosses.slot, *flat)
    weight = sums.at(crosses.weight)
    total = sums.gradient[:, 0] + SHRINKAGE * weight
    squares = sums.at(crosses.squares) + jnp.square(total)
    weight -= CROSSES_RATE * total / (1 + jnp.sqrt(squares))
    return CrossesState(
        sums.put(crosses.weight, weight), sums.put(crosses.squares, squares), sums.slot
    )


def cross_places(schema: Schema, domains: Domains, batch: Batch, size: int) -> Int[Array, "B L"]:
    """Return the places among `size` of each slot's value in the row's domain [B K], and then in
    all domains [B K]; `size`, past the end, where there is none."""
    rows, values = table_rows(schema, batch.ids), padded_rows(schema)
    own = jnp.broadcast_to(domains.of(batch)[:, None], rows.shape)
    domain = jnp.concatenate([own, jnp.full_like(own, domains.number)], axis=1)
    rows = jnp.tile(rows, 2)
    if (domains.number + 1) * values <= size:
        places = domain * values + rows
    else:
        places = (_mixed(domain, rows) % size).astype(jnp.int32)
    used = jnp.tile((batch.ids != EMPTY) & batch.mask[:, None], 2)
    return jnp.where(used, places, size)


def _mixed(domain: Int[Array, "B L"], rows: Int[Array, "B L"]) -> Array:
    """Return a hash of both (the finalizer of MurmurHash3, Appleby, 2011)."""
    mixed = rows.astype(jnp.uint32) + domain.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return mixed ^ (mixed >> 16)

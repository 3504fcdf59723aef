"""AdaptDHM: rows are routed to clusters of like rows, and each cluster has a network of its own.

Li et al., "AdaptDHM: Adaptive Distribution Hierarchical Model for Multi-Domain CTR Prediction"
(2022). Assumed where the paper leaves room: rows are compared with the centres by cosine; in
training a batch's rows are routed after the centres have moved; a centre moves towards the mean
direction of its rows, so that the size of the batch doesn't matter; the clusters' factors start
near 1. The last layer is the head's. The scenario is known through the row's fields alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from d3jax.backbones.star import StarDense, declare_star_dense, star_blocks
from d3jax.base import Backbone, Declared, Head, Inputs, Mode, Output, Sizes
from d3jax.checks import widths, within
from d3jax.choice import BackboneChoice, chosen
from d3jax.heads import dense_head
from d3jax.layers.grouping import collect, group_rows, spread
from d3jax.parameters import Tree, declare_array, normal
from d3jax.registry import LAYERS, Part
from d3jax.typed import check_types


@dataclass(frozen=True)
class AdaptDHMOptions:
    """AdaptDHM, distribution routing."""

    clusters: int = 3
    """Number of clusters."""
    layers: tuple[int, ...] = (128, 64)
    """Widths of the clusters' networks."""
    rounds: int = 3
    """Moves of the centres in a training step."""
    decay: float = 0.9
    """Beta, the share of a centre that a move keeps."""
    sharpness: float = 10.0
    """Factor on the cosines before the softmax; at 1 the centres drift into one."""

    def __post_init__(self) -> None:
        check_types(self, "adaptdhm.")
        within("adaptdhm.clusters", self.clusters, 1, 4096)
        widths("adaptdhm.layers", self.layers, empty=False)
        within("adaptdhm.rounds", self.rounds, 1, 4096)
        within("adaptdhm.decay", self.decay, 0, 1000)
        within("adaptdhm.sharpness", self.sharpness, 0, 1000)


class AdaptDHMParams(NamedTuple):
    """Layers in two factors, one that all clusters share and one of each, and the head."""

    layers: tuple[StarDense, ...]
    head: Tree


class AdaptDHMState(NamedTuple):
    """The clusters' centres, rows of length 1, and the head's state."""

    centres: Float[Array, "C I"]
    head: Tree


def adaptdhm(head: Head, options: AdaptDHMOptions | None = None, **settings: Any) -> Backbone:
    """The head reads the last layer of the network of the row's cluster.

    The centres are state, not parameters: they follow the embeddings in training, all rows of
    the batch on all devices together, and stand still in evaluation.
    """
    options = chosen(AdaptDHMOptions, options, settings)

    def declare(sizes: Sizes) -> Declared:
        declared = head.declare(sizes, options.layers[-1])
        layers = tuple(
            declare_star_dense(options.clusters, inputs, outputs)
            for inputs, outputs in pairwise((sizes.flat, *options.layers))
        )
        centres = declare_array((options.clusters, sizes.flat), unit_rows)
        return Declared(
            AdaptDHMParams(layers, declared.params), AdaptDHMState(centres, declared.state)
        )

    def apply(
        params: AdaptDHMParams, state: AdaptDHMState, inputs: Inputs, mode: Mode
    ) -> tuple[Output, AdaptDHMState]:
        directions = unit(lax.stop_gradient(inputs.flat))
        centres = state.centres
        if mode.train:
            centres = follow(centres, directions, inputs.mask, mode, options)
        groups = group_rows(nearest(centres, directions), options.clusters)
        blocks = spread(groups, inputs.flat)
        for layer in params.layers:
            blocks = jax.nn.relu(star_blocks(layer, blocks, groups))
        hidden = collect(groups, blocks)
        output, head_state = head.apply(params.head, state.head, hidden, inputs, mode)
        return output, AdaptDHMState(centres, head_state)

    return Backbone(declare, apply)


def unit(rows: Float[Array, "R I"]) -> Float[Array, "R I"]:
    """Each row at length 1; a row of zeros stays one."""
    squares = jnp.square(rows).sum(1, keepdims=True)
    return rows * lax.rsqrt(jnp.maximum(squares, jnp.finfo(rows.dtype).tiny))


def unit_rows(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Directions drawn evenly, to start the centres from."""
    return unit(normal(1.0)(key, shape, dtype))


def nearest(centres: Float[Array, "C I"], directions: Float[Array, "B I"]) -> Int[Array, " B"]:
    """The cluster whose centre makes the smallest angle with each row."""
    return jnp.argmax(directions @ centres.T, axis=1)


def follow(
    centres: Float[Array, "C I"],
    directions: Float[Array, "B I"],
    mask: Bool[Array, " B"],
    mode: Mode,
    options: AdaptDHMOptions,
) -> Float[Array, "C I"]:
    """The centres after some rounds of moving averages over the whole batch's real rows.

    In a round every row is shared out among the clusters by a softmax over the angles' cosines,
    and each centre moves by `1 - decay` of the way to the mean of its share. Centres that no
    real row reaches stay as they are.
    """
    for _ in range(options.rounds):
        cosines = directions @ centres.T
        shares = jax.nn.softmax(options.sharpness * cosines) * mask[:, None].astype(cosines.dtype)
        mass = mode.total(shares.sum(0))[:, None]
        mean = mode.total(shares.T @ directions) / jnp.where(mass > 0, mass, 1.0)
        moved = unit(options.decay * centres + (1 - options.decay) * mean)
        centres = jnp.where(mass > 0, moved, centres)
    return centres


def _build(choice: BackboneChoice) -> Backbone:
    return adaptdhm(choice.head(dense_head()), choice.options)


_SPACE = {"clusters": (2, 3, 5, 8), "layers": LAYERS, "sharpness": (5.0, 10.0, 20.0)}

PART = Part(_build, AdaptDHMOptions, space=_SPACE)

"""Batch normalisation: over the whole batch, or scenario by scenario."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from d3jax.base import Declared, Mode
from d3jax.layers.dense import for_rows, sum_rows
from d3jax.layers.grouping import Groups, collect, group_rows, present, spread
from d3jax.parameters import Tree, declare_array, ones, zeros

MOMENTUM = 0.9
"""The share of a running moment that outlives a step."""
EPSILON = 1e-5
"""Added to a variance before its root is taken."""


class BatchNorm(NamedTuple):
    """The learned scale and offset of a normalised feature."""

    scale: Float[Array, "*F"]
    offset: Float[Array, "*F"]


class Moments(NamedTuple):
    """Running mean and variance, the state of a batch normalisation."""

    mean: Float[Array, "*F"]
    variance: Float[Array, "*F"]


def declare_batch_norm(*shape: int) -> Declared:
    """Neutral scale and offset, and the moments of a standard normal."""
    params = BatchNorm(declare_array(shape, ones), declare_array(shape, zeros))
    state = Moments(declare_array(shape, zeros), declare_array(shape, ones))
    return Declared(params, state)


def batch_norm(
    params: BatchNorm,
    moments: Moments,
    hidden: Float[Array, "B *F"],
    mask: Bool[Array, " B"],
    mode: Mode,
) -> tuple[Float[Array, "B *F"], Moments]:
    """Normalise by the moments of the batch's real rows (Ioffe and Szegedy, 2015).

    The variance is the population's. In evaluation the running moments are used, so a row's
    output never depends on its neighbours; so they are for a batch of one real row.
    """
    used = moments
    if mode.train:
        used = batch_moments(moments, hidden, mask, mode)
        moments = renewed(moments, used)
    size = hidden.shape[0]
    scale = params.scale * jax.lax.rsqrt(used.variance + EPSILON)
    centred = hidden - for_rows(used.mean, size)
    return centred * for_rows(scale, size) + for_rows(params.offset, size), moments


def scenario_batch_norm(
    params: BatchNorm,
    moments: Moments,
    hidden: Float[Array, "B F"],
    scenario: Int[Array, " B"],
    mask: Bool[Array, " B"],
    mode: Mode,
) -> tuple[Float[Array, "B F"], Moments]:
    """Each scenario's rows normalised by their own moments; `params` and `moments` are [S F].

    A scenario with fewer than two rows in the batch is normalised by its running moments, which
    stay as they are.
    """
    groups = group_rows(scenario, moments.mean.shape[0])
    blocks, moments = block_batch_norm(params, moments, spread(groups, hidden), groups, mask, mode)
    return collect(groups, blocks), moments


def block_batch_norm(
    params: BatchNorm,
    moments: Moments,
    blocks: Float[Array, "G R F"],
    groups: Groups,
    mask: Bool[Array, " B"],
    mode: Mode,
) -> tuple[Float[Array, "G R F"], Moments]:
    """`scenario_batch_norm` of rows in blocks; `mask` is that of the rows in their order."""
    used = moments
    if mode.train:
        real = present(groups, mask).astype(blocks.dtype)
        member = jax.nn.one_hot(groups.owner, moments.mean.shape[0], dtype=blocks.dtype)
        rows = mode.total(member.T @ real.sum(1))[:, None]

        def mean_of(values: Float[Array, "G R F"]) -> Float[Array, "S F"]:
            sums = jnp.einsum("gr,grf->gf", real, values)
            return mode.total(member.T @ sums) / jnp.maximum(rows, 1.0)

        mean = mean_of(blocks)
        variance = mean_of((blocks - _own(mean, groups)) ** 2)
        used = _where(rows >= 2, Moments(mean, variance), moments)
        moments = renewed(moments, used)
    scale = params.scale * jax.lax.rsqrt(used.variance + EPSILON)
    normal = (blocks - _own(used.mean, groups)) * _own(scale, groups)
    return normal + _own(params.offset, groups), moments


def batch_moments(
    moments: Moments,
    hidden: Float[Array, "B *F"],
    mask: Bool[Array, " B"],
    mode: Mode,
    offset: Float[Array, "*F"] | float = 0.0,
) -> Moments:
    """The moments of `hidden + offset` over the batch's real rows; with fewer than two, `moments`.

    Adding the offset here saves writing the sum, where `hidden` is large.
    """
    weight = mask.astype(hidden.dtype)
    rows = mode.total(mask.sum())
    divisor = jnp.maximum(rows, 1).astype(hidden.dtype)
    mean = mode.total(sum_rows(weight, hidden) + weight.sum() * offset) / divisor
    centred = hidden - for_rows(mean - offset, hidden.shape[0])
    variance = mode.total(sum_rows(weight, centred**2)) / divisor
    return _where(rows >= 2, Moments(mean, variance), moments)


def renewed(moments: Tree, used: Tree) -> Tree:
    """The running moments, a step further towards those of the batch.

    In this form moments that were used as they are stay so to the last bit.
    """
    return jax.tree.map(
        lambda running, batch: running + (1 - MOMENTUM) * (batch - running),
        moments,
        jax.lax.stop_gradient(used),
    )


def _own(stack: Float[Array, "S F"], groups: Groups) -> Float[Array, "G 1 F"]:
    return stack[groups.owner][:, None]


def _where(enough: Bool[Array, "..."], batch: Moments, running: Moments) -> Moments:
    return jax.tree.map(partial(jnp.where, enough), batch, running)

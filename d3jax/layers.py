"""The few bricks that backbones and heads share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from d3jax.base import Activation, Declared, Mode
from d3jax.parameters import Initializer, declare_array, glorot, ones, zeros


class Dense(NamedTuple):
    """`h @ kernel + bias`; stacked copies have leading axes, and `bias` may be None."""

    kernel: Float[Array, "*stack I O"]
    bias: Float[Array, "*stack O"] | None


def declare_dense(
    inputs: int,
    outputs: int,
    *,
    stack: tuple[int, ...] = (),
    bias: Initializer | None = zeros,
) -> Dense:
    """A Glorot-uniform kernel and a bias (none when `bias` is None), `stack` copies of it."""
    kernel = declare_array((*stack, inputs, outputs), glorot(inputs, outputs))
    return Dense(kernel, None if bias is None else declare_array((*stack, outputs), bias))


def dense(params: Dense, hidden: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """The affine map of unstacked parameters."""
    outputs = hidden @ params.kernel
    if params.bias is None:
        return outputs
    return outputs + jnp.expand_dims(params.bias, range(outputs.ndim - 1))


def declare_mlp(
    inputs: int, layers: Sequence[int], *, stack: tuple[int, ...] = ()
) -> tuple[Dense, ...]:
    """Dense layers of the given output widths, one after the other."""
    widths = (inputs, *layers)
    return tuple(
        declare_dense(width, output, stack=stack)
        for width, output in zip(widths, layers, strict=False)
    )


def mlp(
    params: Sequence[Dense], hidden: Float[Array, "*B I"], activation: Activation = jax.nn.relu
) -> Float[Array, "*B O"]:
    """Dense layers, each followed by the activation."""
    for layer in params:
        hidden = activation(dense(layer, hidden))
    return hidden


def stacked_dense(params: Dense, hidden: Float[Array, "B *S I"]) -> Float[Array, "B S O"]:
    """Every copy's output for every row; `hidden` is shared [B I] or one per copy [B S I].

    With the few scenarios of CTR data, computing all and selecting is cheaper than gathering a
    kernel per row, and gives exactly zero gradient to a scenario that no row belongs to.
    """
    rows = "bi" if hidden.ndim == 2 else "bsi"
    outputs = jnp.einsum(f"{rows},sio->bso", hidden, params.kernel)
    return outputs if params.bias is None else outputs + params.bias[None]


def select(outputs: Float[Array, "B S *O"], scenario: Int[Array, " B"]) -> Float[Array, "B *O"]:
    """Each row's own scenario out of all."""
    index = scenario.reshape(-1, *[1] * (outputs.ndim - 1))
    return jnp.take_along_axis(outputs, index, axis=1, mode="clip").squeeze(1)


def for_rows(vector: Float[Array, "*F"], rows: int) -> Float[Array, "B *F"]:
    """The same for every one of B = `rows` rows.

    Written as a product, so that its gradient, a sum over rows, is one too: on CPUs XLA sums wide
    arrays a column at a time, six times as slow.
    """
    return jnp.einsum("b,...->b...", jnp.ones(rows, vector.dtype), vector)


def dropout(hidden: Float[Array, "B *F"], rate: float, mode: Mode) -> Float[Array, "B *F"]:
    """In training, zeroes each number with probability `rate` and scales up the rest
    (Srivastava et al., 2014).

    A row's mask depends on the step's key and the row's place in the whole batch alone, so it is
    the same on any number of devices.
    """
    if not mode.train or rate == 0 or mode.key is None:
        return hidden
    device = 0 if mode.axis_name is None else jax.lax.axis_index(mode.axis_name)
    places = device * hidden.shape[0] + jnp.arange(hidden.shape[0])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(mode.key, places)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, hidden.shape[1:]))(keys)
    return jnp.where(kept, hidden / (1 - rate), 0.0)


class BatchNorm(NamedTuple):
    """The learned scale and offset of a normalised feature."""

    scale: Float[Array, " F"]
    offset: Float[Array, " F"]


class Moments(NamedTuple):
    """Running mean and variance, the state of a batch normalisation."""

    mean: Float[Array, " F"]
    variance: Float[Array, " F"]


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
    *,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> tuple[Float[Array, "B *F"], Moments]:
    """Normalise by the moments of the batch's real rows (Ioffe and Szegedy, 2015).

    The variance is the population's. In evaluation the running moments are used, so a row's
    output never depends on its neighbours; so they are for a batch of one real row.
    """
    used = moments
    if mode.train:
        weight = mask.astype(hidden.dtype)
        rows = mode.total(mask.sum())
        divisor = jnp.maximum(rows, 1).astype(hidden.dtype)
        mean = mode.total(_sum_rows(weight, hidden)) / divisor
        centred = hidden - for_rows(mean, hidden.shape[0])
        variance = mode.total(_sum_rows(weight, centred**2)) / divisor
        used = jax.tree.map(
            lambda batch, running: jnp.where(rows >= 2, batch, running),
            Moments(mean, variance),
            moments,
        )
        moments = jax.tree.map(
            # In this form moments that were used as they are stay so to the last bit.
            lambda running, batch: running + (1 - momentum) * (batch - running),
            moments,
            jax.lax.stop_gradient(used),
        )
    size = hidden.shape[0]
    scale = params.scale * jax.lax.rsqrt(used.variance + epsilon)
    centred = hidden - for_rows(used.mean, size)
    return centred * for_rows(scale, size) + for_rows(params.offset, size), moments


def _sum_rows(weight: Float[Array, " B"], values: Float[Array, "B *F"]) -> Float[Array, "*F"]:
    """Σ_b weight_b values_b, as a product, for the reason that `for_rows` has."""
    return jnp.einsum("b,b...->...", weight, values)


def scenario_batch_norm(
    params: BatchNorm,
    moments: Moments,
    hidden: Float[Array, "B F"],
    scenario: Int[Array, " B"],
    mask: Bool[Array, " B"],
    mode: Mode,
    *,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> tuple[Float[Array, "B F"], Moments]:
    """Each scenario's rows normalised by their own moments; `params` and `moments` are [S F].

    A scenario with fewer than two rows in the batch is normalised by its running moments, which
    stay as they are.
    """
    used = moments
    if mode.train:
        member = (scenario[:, None] == jnp.arange(moments.mean.shape[0])[None]) & mask[:, None]
        weight = member.astype(hidden.dtype)
        rows = mode.total(weight.sum(0))[:, None]
        mean = mode.total(weight.T @ hidden) / jnp.maximum(rows, 1.0)
        centred = hidden - mean[scenario]
        variance = mode.total(weight.T @ centred**2) / jnp.maximum(rows, 1.0)
        used = jax.tree.map(
            lambda batch, running: jnp.where(rows >= 2, batch, running),
            Moments(mean, variance),
            moments,
        )
        moments = jax.tree.map(
            lambda running, batch: running + (1 - momentum) * (batch - running),
            moments,
            jax.lax.stop_gradient(used),
        )
    scale = jax.lax.rsqrt(used.variance + epsilon)
    normal = (hidden - used.mean[scenario]) * scale[scenario]
    return normal * params.scale[scenario] + params.offset[scenario], moments

"""Domain balance: the attention's entropy and the gate become each row's loss weight.

Equations 15-19 of Jia et al. (AAAI 2024).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

EntropyForm = Literal["rows", "mean_row"]


def complexity(logits: Float[Array, "B N N"], *, form: EntropyForm = "rows") -> Float[Array, " B"]:
    """How evenly a row's attention is spread: its entropy minus ln N, in [-ln N, 0] (Eq. 15).

    `rows` averages the entropies of the N attention rows, `mean_row` takes the entropy of their
    average, as the authors' code does. Eq. 15 is printed without the minus that entropy has; the
    text around it calls the value entropy, which is what this is.

    With small embeddings attention is all but uniform: entropies differ by 1e-12 around ln N,
    far below the rounding of ln N itself, and Eq. 16 would magnify that rounding into weights.
    The distance from uniform keeps those digits, and Eq. 16 doesn't change when a constant is
    subtracted. Add ln N for nats.
    """
    fields = logits.shape[-1]
    centred = logits - logits.mean(-1, keepdims=True)
    near = jnp.abs(centred).max(-1, keepdims=True) < 1.0
    # Both branches stay finite everywhere, for gradients go through both.
    small = jnp.where(near, centred, 0.0)
    excess = jnp.expm1(small - jnp.log1p(jnp.expm1(small).mean(-1, keepdims=True)))
    log_ratio = jax.nn.log_softmax(logits) + jnp.log(jnp.asarray(fields, logits.dtype))
    ratio = jnp.where(near, 1.0 + excess, jnp.exp(log_ratio))
    if form == "mean_row":
        excess = jnp.where(near, excess, ratio - 1.0).mean(-2)
        return -_divergence(excess).mean(-1)
    far = jnp.exp(log_ratio) * log_ratio
    return -jnp.where(near, _divergence(excess), far).mean((-2, -1))


def _divergence(excess: Array) -> Array:
    """(1 + e) ln(1 + e) - e for e > -1, whose mean is ln N - H when 1 + e is N times a
    probability; a series where the closed form would cancel. At e = -1 it is 1."""
    small = jnp.abs(excess) < 0.1
    e = jnp.where(small, excess, 0.0)
    series = e**2 * (1 / 2 - e * (1 / 6 - e * (1 / 12 - e * (1 / 20 - e / 30))))
    ratio = jnp.where(small | (excess <= -1.0), 1.0, 1.0 + excess)
    return jnp.where(small, series, ratio * jnp.log(ratio) - excess)


def naive_complexity(logits: Float[Array, "B N N"]) -> Float[Array, " B"]:
    """The entropy of the average attention row as the authors' code computes it, in nats.

    Kept to reproduce that code: where attention is nearly uniform its digits are rounding.
    """
    attention = jax.nn.softmax(logits).mean(-2)
    return -(attention * jnp.log(attention + 1e-9)).sum(-1)


def normalized_complexity(
    complexity: Float[Array, " B"],
    mask: Bool[Array, " B"],
    *,
    lower: float = 0.1,
    upper: float = 1.0,
    minimum_std: float = 1e-20,
    axis_name: Hashable | None = None,
) -> Float[Array, " B"]:
    """`clip((c - mean) / (2 std) + ½, lower, upper)` over the batch's real rows (Eq. 16).

    Mean and population standard deviation are those of the whole batch, all scenarios together
    and all devices along `axis_name`. Where the deviation is at most `minimum_std`, ½.
    """

    def total(value: Array) -> Array:
        return value if axis_name is None else lax.psum(value, axis_name)

    # Measured from a row of the batch, equal complexities give a deviation of exactly zero.
    highest = jnp.max(jnp.where(mask, lax.stop_gradient(complexity), -jnp.inf))
    highest = highest if axis_name is None else lax.pmax(highest, axis_name)
    offset = jnp.where(mask, complexity - highest, 0.0)
    rows = jnp.maximum(total(mask.sum()), 1).astype(complexity.dtype)
    centred = jnp.where(mask, offset - total(offset.sum()) / rows, 0.0)
    variance = total((centred**2).sum()) / rows
    varies = variance > minimum_std**2
    std = jnp.sqrt(jnp.where(varies, variance, 1.0))
    return jnp.clip(jnp.where(varies, centred / (2 * std), 0.0) + 0.5, lower, upper)


def complexity_weights(
    complexity: Float[Array, " B"],
    mask: Bool[Array, " B"],
    *,
    lower: float = 0.1,
    upper: float = 1.0,
    shift: float = 0.5,
    scale: float = 1.0,
    minimum_std: float = 1e-20,
    axis_name: Hashable | None = None,
) -> Float[Array, " B"]:
    """`shift + scale · c'`: rows of complex domains count for more (Eq. 16-17)."""
    normalized = normalized_complexity(
        complexity,
        mask,
        lower=lower,
        upper=upper,
        minimum_std=minimum_std,
        axis_name=axis_name,
    )
    return shift + scale * normalized


def specificity_weights(
    gate: Float[Array, "B 2"], *, shift: float = 0.5, scale: float = 1.0
) -> Float[Array, " B"]:
    """`shift + scale · g₀`: rows that lean on their own weights count for more (Eq. 18)."""
    return shift + scale * gate[:, 0]


def scheduled_weights(
    weights: Float[Array, " B"], step: Int[Array, ""] | int, start_step: Int[Array, ""] | int
) -> Float[Array, " B"]:
    """1 before `start_step`, the weights from it on; never differentiated.

    A model free to move its weights would lower its loss by calling every row simple.
    """
    return lax.stop_gradient(jnp.where(step >= start_step, weights, 1.0))


def unit_mean_weights(
    weights: Float[Array, " B"],
    mask: Bool[Array, " B"],
    *,
    axis_name: Hashable | None = None,
) -> Float[Array, " B"]:
    """Weights over their mean on the batch's real rows, so that they move no learning rate."""
    sums = jnp.stack([jnp.where(mask, weights, 0.0).sum(), mask.sum().astype(weights.dtype)])
    total, rows = sums if axis_name is None else lax.psum(sums, axis_name)
    return weights * (rows / jnp.maximum(total, jnp.finfo(weights.dtype).tiny))


def weighted_loss(
    losses: Float[Array, " B"],
    weights: Float[Array, " B"],
    mask: Bool[Array, " B"],
    *,
    axis_name: Hashable | None = None,
) -> Float[Array, ""]:
    """Σ w · loss / (number of real rows) (Eq. 19).

    With `axis_name` this is one device's share: the sum over devices is the loss of the batch,
    however unevenly the real rows are spread.
    """
    rows = mask.sum() if axis_name is None else lax.psum(mask.sum(), axis_name)
    share = jnp.where(mask, weights * jnp.where(mask, losses, 0.0), 0.0).sum()
    return share / jnp.maximum(rows, 1).astype(losses.dtype)

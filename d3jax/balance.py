"""Domain balance: the attention's entropy and the gate become each row's loss weight.

Equations 15-19 of Jia et al. (AAAI 2024).
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import reduce
from operator import mul
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from d3jax.checks import check_weighing, one_of, within
from d3jax.errors import ShapeError
from d3jax.floats import widened
from d3jax.shapes import check_floats, check_mask, check_rows

EntropyForm = Literal["rows", "mean_row"]
BalanceEntropy = Literal["rows", "mean_row", "naive"]


def row_weights(
    attention: ArrayLike | None,
    gate: ArrayLike | None,
    mask: ArrayLike | None = None,
    *,
    complexity_shift: float = 0.5,
    complexity_scale: float = 1.0,
    specificity_shift: float = 0.5,
    specificity_scale: float = 1.0,
    lower: float = 0.1,
    upper: float = 1.0,
    entropy: BalanceEntropy = "rows",
    literal_sign: bool = False,
    minimum_std: float = 1e-20,
    normalize: bool = False,
    axis_name: Hashable | None = None,
) -> Array:
    """Return how much each row counts in the loss [B]: its complexity times its specificity
    (Eq. 15-18).

    `attention` [B N N] holds the attention's logits, not their softmax, and `gate` [B 2] the
    fusion gate, specific first; without one of them (None) the other weighs alone. `mask` [B] is
    False for rows that fill the batch up, whose weights mean nothing; None: all rows are real.
    `entropy` and `literal_sign` choose the form of Eq. 15, `normalize` divides the weights by
    their mean. Inside `shard_map` the batch is that of all devices along `axis_name`.

    Weights are float32, or float64 for such arguments, and never differentiated: a model free to
    move them would lower its loss by calling every row simple.

    Raises `ShapeError` naming the array, or `ConfigError` the setting, that can't be.

    >>> import jax.numpy as jnp
    >>> even, sharp = jnp.zeros((2, 2)), jnp.array([[9.0, 0.0], [9.0, 0.0]])
    >>> weights = row_weights(jnp.stack([even, sharp]), jnp.full((2, 2), 0.5))
    >>> [round(float(weight), 3) for weight in weights]
    [1.5, 0.6]
    """
    check_weighing("complexity", complexity_shift, complexity_scale)
    check_weighing("specificity", specificity_shift, specificity_scale)
    within("lower", lower, 0, upper)
    within("minimum_std", minimum_std, 0, math.inf)
    attention, gate, mask = _checked_rows(attention, gate, mask)
    factors = []
    if attention is not None:
        factors.append(
            complexity_weights(
                row_complexity(attention, entropy=entropy, literal_sign=literal_sign),
                mask,
                lower=lower,
                upper=upper,
                shift=complexity_shift,
                scale=complexity_scale,
                minimum_std=minimum_std,
                axis_name=axis_name,
            )
        )
    if gate is not None:
        factors.append(specificity_weights(gate, shift=specificity_shift, scale=specificity_scale))
    weights = reduce(mul, widened(*factors))
    if normalize:
        weights = unit_mean_weights(weights, mask, axis_name=axis_name)
    return lax.stop_gradient(weights)


def _checked_rows(
    attention: ArrayLike | None, gate: ArrayLike | None, mask: ArrayLike | None
) -> tuple[Array | None, Array | None, Array]:
    """Return the arguments of `row_weights` as arrays of as many rows."""
    arrays = {}
    if attention is not None:
        arrays["attention"] = jnp.asarray(attention)
        fields = arrays["attention"].shape[-1] if arrays["attention"].ndim else None
        check_floats("attention", arrays["attention"], rows=None, fields=fields, others=fields)
    if gate is not None:
        arrays["gate"] = jnp.asarray(gate)
        check_floats("gate", arrays["gate"], rows=None, sides=2)
    if not arrays:
        raise ShapeError("attention and gate are both None; row_weights needs one of them")
    rows = next(iter(arrays.values())).shape[0]
    arrays["mask"] = jnp.ones(rows, bool) if mask is None else jnp.asarray(mask)
    check_mask("mask", arrays["mask"])
    check_rows(**arrays)
    return arrays.get("attention"), arrays.get("gate"), arrays["mask"]


def row_complexity(
    attention: Float[Array, "B N N"],
    *,
    entropy: BalanceEntropy = "rows",
    literal_sign: bool = False,
) -> Float[Array, " B"]:
    """Return the complexity of Eq. 15 in one of its forms, as printed if `literal_sign`."""
    one_of("entropy", entropy, get_args(BalanceEntropy))
    if entropy == "naive":
        value = naive_complexity(attention)
    else:
        value = complexity(attention, form=entropy)
    return -value if literal_sign else value


def complexity(logits: Float[Array, "B N N"], *, form: EntropyForm = "rows") -> Float[Array, " B"]:
    """Return how evenly a row's attention is spread: entropy minus ln N, in [-ln N, 0] (Eq. 15).

    `rows` averages the entropies of the N attention rows, `mean_row` takes the entropy of their
    average, as the authors' code does. Eq. 15 is printed without the minus that entropy has; the
    text around it calls the value entropy, which is what this is.

    With small embeddings attention is all but uniform: entropies differ by 1e-12 around ln N,
    far below the rounding of ln N itself, and Eq. 16 would magnify that rounding into weights.
    The distance from uniform keeps those digits, and Eq. 16 doesn't change when a constant is
    subtracted. Add ln N for nats.
    """
    (logits,) = widened(logits)
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
    # Where the series' first missing term and the closed form's cancellation are both rounding.
    small = jnp.abs(excess) < (0.003 if excess.dtype == jnp.float64 else 0.1)
    e = jnp.where(small, excess, 0.0)
    series = e**2 * (1 / 2 - e * (1 / 6 - e * (1 / 12 - e * (1 / 20 - e / 30))))
    ratio = jnp.where(small | (excess <= -1.0), 1.0, 1.0 + excess)
    return jnp.where(small, series, ratio * jnp.log(ratio) - excess)


def naive_complexity(logits: Float[Array, "B N N"]) -> Float[Array, " B"]:
    """The entropy of the average attention row as the authors' code computes it, in nats.

    Kept to reproduce that code: where attention is nearly uniform its digits are rounding.
    """
    (logits,) = widened(logits)
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

    (complexity,) = widened(complexity)

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
    (gate,) = widened(gate)
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
    (weights,) = widened(weights)
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
    losses, weights = widened(losses, weights)
    rows = mask.sum() if axis_name is None else lax.psum(mask.sum(), axis_name)
    share = jnp.where(mask, weights * jnp.where(mask, losses, 0.0), 0.0).sum()
    return share / jnp.maximum(rows, 1).astype(losses.dtype)

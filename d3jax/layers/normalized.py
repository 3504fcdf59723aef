"""The generated layer of the authors' code: kernels normalised over the batch, rectified, fused.

The kernels of a batch [B I O] are the largest array of a step. Derived from its parts, the layer's
gradient would write a dozen arrays as large; the one here keeps the kernels alone and writes three.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from d3jax.base import Mode
from d3jax.layers.dense import sum_rows
from d3jax.layers.normalization import EPSILON, BatchNorm, Moments, batch_moments, renewed

SLOPE = 0.01
"""The leaky rectifier's slope for negative numbers."""


class NormalizedLayer(NamedTuple):
    """The parameters that the rows' kernels are added to, normalised with and multiplied by."""

    offset: Float[Array, "I O"]
    norm: BatchNorm
    shared: Float[Array, "I O"]


def normalized_layer(
    params: NormalizedLayer,
    moments: Moments,
    kernel: Float[Array, "B I O"],
    inputs: Float[Array, "B I"],
    mask: Bool[Array, " B"],
    mode: Mode,
) -> tuple[Float[Array, "B O"], Moments]:
    """`inputs · (leaky_relu(batch_norm(kernel + offset)) ⊙ shared)` for every row.

    Returns the new moments too, which are those of `kernel + offset`. The same values as with
    `normalization.batch_norm`; there is no forward-mode derivative.
    """
    if not mode.train:
        return _outputs(params, moments, kernel, inputs), moments
    over = Mode(train=True, axis_name=mode.axis_name)
    outputs, used = _layer(over, params, moments, kernel, inputs, mask)
    return outputs, renewed(moments, used)


class _Saved(NamedTuple):
    """The values that the gradient starts from."""

    params: NormalizedLayer
    used: Moments
    kernel: Array
    inputs: Array
    mask: Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer(
    mode: Mode, params: NormalizedLayer, moments: Moments, kernel: Array, inputs: Array, mask: Array
) -> tuple[Array, Moments]:
    """The outputs in training, and the moments that the kernels were normalised by."""
    return _forward(mode, params, moments, kernel, inputs, mask)[0]


def _forward(
    mode: Mode, params: NormalizedLayer, moments: Moments, kernel: Array, inputs: Array, mask: Array
) -> tuple[tuple[Array, Moments], _Saved]:
    used = batch_moments(moments, kernel, mask, mode, params.offset)
    return (_outputs(params, used, kernel, inputs), used), _Saved(
        params, used, kernel, inputs, mask
    )


def _backward(
    mode: Mode, saved: _Saved, gradients: tuple[Array, Moments]
) -> tuple[NormalizedLayer, None, Array, Array, None]:
    """With x̂ the normal kernels, r = (σ² + ε)^-½, u = γ x̂ + β and t = ∂L/∂u / shared: β gets
    shared Σ t, γ gets shared Σ t x̂, shared gets Σ t u, and the kernel of a real row
    shared γ r (t - (Σ t + x̂ Σ t x̂) / rows)."""
    params, used, kernel, inputs, mask = saved
    centred, rectified, slope = _rectified(params, used, kernel)
    root = jax.lax.rsqrt(used.variance + EPSILON)
    passed = slope * (inputs[:, :, None] * gradients[0][:, None, :])
    every = jnp.ones(inputs.shape[0], inputs.dtype)
    total = sum_rows(every, passed)
    product = sum_rows(every, passed * centred) * root
    rows = mode.total(mask.sum())
    enough = rows >= 2
    # Where the running moments were used, no row has a part in another's.
    share = jnp.where(mask & enough, 1 / jnp.maximum(rows, 1), 0.0).astype(kernel.dtype)
    common = mode.total(total)[None] + centred * (root * mode.total(product))[None]
    scale = params.shared * params.norm.scale * root
    own = NormalizedLayer(
        offset=jnp.where(enough, 0.0, scale * total),
        norm=BatchNorm(params.shared * product, params.shared * total),
        shared=params.norm.scale * product + params.norm.offset * total,
    )
    to_kernel = scale[None] * (passed - share[:, None, None] * common)
    to_inputs = jnp.einsum("bo,bio->bi", gradients[0], rectified * params.shared[None])
    return own, None, to_kernel, to_inputs, None


_layer.defvjp(_forward, _backward)


def _rectified(params: NormalizedLayer, used: Moments, kernel: Array) -> tuple[Array, Array, Array]:
    """The kernels less their mean; normalised and rectified; the rectifier's slope at each."""
    scale = params.norm.scale * jax.lax.rsqrt(used.variance + EPSILON)
    centred = kernel - (used.mean - params.offset)[None]
    normal = centred * scale[None] + params.norm.offset[None]
    slope = jnp.where(normal >= 0, 1.0, SLOPE)
    return centred, slope * normal, slope


def _outputs(params: NormalizedLayer, used: Moments, kernel: Array, inputs: Array) -> Array:
    _, rectified, _ = _rectified(params, used, kernel)
    return jnp.einsum("bi,bio->bo", inputs, rectified * params.shared[None])

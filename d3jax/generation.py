"""Per-feature weight generation: the selected fields of a row become a layer's weights.

Equations 9-10 of Jia et al. (AAAI 2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.base import Activation
from d3jax.floats import wide_type, widened
from d3jax.layers.dense import (
    Dense,
    declare_dense,
    dense,
    explicit_place,
    for_rows,
    sum_outer,
    varying_alike,
)
from d3jax.parameters import Initializer, declare_array, glorot, zeros


class HiddenParams(NamedTuple):
    """One linear layer per field, then the residual block that mixes them."""

    field_kernel: Float[Array, "N D H"]
    field_bias: Float[Array, "N H"]
    mix: Dense


class GeneratorParams(NamedTuple):
    """Two linear maps from a row's hidden vector: to a kernel [I O] and to a bias [O].

    The generated kernel is a sum of R shared matrices, `kernel` [R I O], weighed by R numbers of
    the row: its M hidden units themselves (R = M, the paper's form), or as many mixtures of them
    as `mixing` has columns (the factored form). The row-major reshape of `kernel` to a matrix
    [R, I·O] puts the input index slowest.
    """

    kernel: Float[Array, "R I O"]
    kernel_offset: Float[Array, "I O"]
    bias: Dense
    mixing: Float[Array, "M R"] | None = None


def declare_hidden(num_fields: int, dim: int, width: int) -> HiddenParams:
    """H = `width` hidden units for each of N fields of width D = `dim`."""
    return HiddenParams(
        field_kernel=declare_array((num_fields, dim, width), glorot(dim, width)),
        field_bias=declare_array((num_fields, width), zeros),
        mix=declare_dense(num_fields * width, num_fields * width),
    )


def declare_generator(
    hidden: int, inputs: int, outputs: int, offset: Initializer, rank: int = 0
) -> GeneratorParams:
    """A generator of an [inputs, outputs] layer from `hidden` = M units; R = `rank`, or M for 0.

    Its kernel starts at a tenth of Glorot's scale, so the first generated weights are `offset`
    (1 where they will multiply shared weights, Glorot where they stand alone) plus a little of
    the row's own: a product of two freshly drawn matrices would all but vanish.
    """
    terms = rank or hidden
    return GeneratorParams(
        kernel=declare_array((terms, inputs, outputs), glorot(terms, outputs, gain=0.1)),
        kernel_offset=declare_array((inputs, outputs), offset),
        bias=declare_dense(hidden, outputs),
        mixing=declare_array((hidden, rank), glorot(hidden, rank)) if rank else None,
    )


def field_hidden(params: HiddenParams, selected: Float[Array, "B N D"]) -> Float[Array, "B M"]:
    """Each selected field through a linear layer of its own, side by side (Eq. 9)."""
    params, selected = widened(params, selected)
    hidden = jnp.einsum("bnd,ndh->bnh", selected, params.field_kernel)
    return (hidden + params.field_bias[None]).reshape(selected.shape[0], -1)


def feature_hidden(
    params: HiddenParams,
    selected: Float[Array, "B N D"],
    activation: Activation = jax.nn.relu,
    *,
    outer: bool = True,
    dtype: Any = None,
) -> Float[Array, "B M"]:
    """Return what a row's weights are generated from: φ(h + φ(h W + b)), h by Eq. 9 (Eq. 10).

    `outer=False` leaves out the activation around the sum, as the authors' code does. The
    factors of the mixing product are rounded to `dtype`; None rounds none.
    """
    hidden = field_hidden(params, selected)
    mixed = hidden + activation(dense(params.mix, hidden, dtype))
    return activation(mixed) if outer else mixed


def mixture(params: GeneratorParams, hidden: Float[Array, "B M"]) -> Float[Array, "B R"]:
    """Return the share of each shared matrix in a row's kernel."""
    return hidden if params.mixing is None else hidden @ params.mixing


def generate_weights(
    params: GeneratorParams, hidden: Float[Array, "B M"]
) -> tuple[Float[Array, "B I O"], Float[Array, "B O"]]:
    """A kernel and a bias for every row, linear in `hidden` (Eq. 10)."""
    params, hidden = widened(params, hidden)
    terms = mixture(params, hidden)
    kernel = mix_kernels(terms, params.kernel) + for_rows(params.kernel_offset, terms.shape[0])
    return kernel, dense(params.bias, hidden)


def mix_kernels(terms: Float[Array, "B R"], kernel: Float[Array, "R I O"]) -> Float[Array, "B I O"]:
    """Σ_r terms_r kernel_r for every row.

    Left to itself, JAX takes the gradient of the shared matrices with R last, and then turns the
    largest array of the step around.
    """
    return _mix(*varying_alike(terms, kernel))


@jax.custom_vjp
def _mix(terms: Array, kernel: Array) -> Array:
    return jnp.einsum("br,rio->bio", terms, kernel)


def _mix_forward(terms: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _mix(terms, kernel), (terms, kernel)


def _mix_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    terms, kernel = saved
    to_kernel = sum_outer(terms, gradient, place=explicit_place(kernel))
    return jnp.einsum("bio,rio->br", gradient, kernel), to_kernel


_mix.defvjp(_mix_forward, _mix_backward)


def apply_kernels(
    inputs: Float[Array, "B I"], kernels: Float[Array, "B I O"]
) -> Float[Array, "B O"]:
    """Each row through its own kernel, summed in float32 at least, whatever kernels are kept in.

    Left to itself, JAX takes the gradient of the kernels with I last, and turns it around.
    """
    return _apply(*varying_alike(inputs, kernels))


@jax.custom_vjp
def _apply(inputs: Array, kernels: Array) -> Array:
    return jnp.einsum("bi,bio->bo", inputs, kernels, preferred_element_type=wide_type(inputs))


def _apply_forward(inputs: Array, kernels: Array) -> tuple[Array, tuple[Array, Array]]:
    return _apply(inputs, kernels), (inputs, kernels)


def _apply_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    inputs, kernels = saved
    gradient = gradient.astype(inputs.dtype)
    return jnp.einsum("bo,bio->bi", gradient, kernels), inputs[:, :, None] * gradient[:, None]


_apply.defvjp(_apply_forward, _apply_backward)


BLOCK = 256
"""Rows at a time on a CPU, whose caches hold what is made of them."""


def apply_mixed(
    terms: Float[Array, "B R"], inputs: Float[Array, "B I"], kernel: Float[Array, "R I O"]
) -> Float[Array, "B O"]:
    """Σ_r terms_r (inputs kernel_r): each row through a mixture of shared matrices that is never
    made, summed in float32 at least."""
    in_blocks = jax.default_backend() == "cpu" and isinstance(inputs.shape[0], int)
    if in_blocks and explicit_place(inputs) is None:
        return _mixed_by_blocks(*varying_alike(terms, inputs, kernel))
    return apply_kernels(terms, _images(inputs, _side_by_side(kernel), len(kernel)))


def _side_by_side(kernel: Float[Array, "R I O"]) -> Float[Array, "I RO"]:
    """All shared matrices as one: this small array is turned around, so that no large one is."""
    return jnp.moveaxis(kernel, 1, 0).reshape(kernel.shape[1], -1)


def _images(inputs: Array, matrices: Float[Array, "I RO"], rank: int) -> Float[Array, "B R O"]:
    """The inputs [B I] through each of them."""
    return (inputs @ matrices).reshape(inputs.shape[0], rank, -1)


@jax.custom_vjp
def _mixed_by_blocks(
    terms: Float[Array, "B R"], inputs: Float[Array, "B I"], kernel: Float[Array, "R I O"]
) -> Float[Array, "B O"]:
    """`apply_mixed`, a block of rows after the other, of which nothing of size R is kept.

    The gradient needs no image either: sent back through every matrix, the outputs' gradient
    gives that of the inputs and that of the terms.
    """
    matrices = _side_by_side(kernel)

    def outputs(block: tuple[Array, ...]) -> Array:
        terms, inputs = block
        return apply_kernels(terms, _images(inputs, matrices, len(kernel)))

    return jax.lax.map(outputs, _blocks(terms, inputs)).reshape(-1, kernel.shape[2])


def _mixed_forward(terms: Array, inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, ...]]:
    return _mixed_by_blocks(terms, inputs, kernel), (terms, inputs, kernel)


def _mixed_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    terms, inputs, kernel = saved
    rank, width, outputs = kernel.shape
    back = _side_by_side(jnp.swapaxes(kernel, 1, 2))

    def gradients(block: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        terms, inputs, gradient = block
        sent = _images(gradient, back, rank)
        weighed = (terms[:, :, None] * gradient[:, None]).reshape(-1, rank * outputs)
        to_kernel = sum_outer(inputs, weighed, wide_type(inputs))
        to_terms = jnp.einsum("bi,bri->br", inputs, sent)
        return to_kernel, (to_terms, jnp.einsum("br,bri->bi", terms, sent))

    def add(total: Array, block: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        to_kernel, to_rows = gradients(block)
        return total + to_kernel, to_rows

    blocks = _blocks(terms, inputs, gradient.astype(inputs.dtype))
    # Zeros to start from would be the same on all devices, which a sum of each one's rows isn't.
    total, first = gradients(tuple(array[0] for array in blocks))
    total, rest = jax.lax.scan(add, total, tuple(array[1:] for array in blocks))
    to_terms, to_inputs = (
        jnp.concatenate([a, b.reshape(-1, a.shape[1])]) for a, b in zip(first, rest, strict=True)
    )
    to_kernel = jnp.moveaxis(total.reshape(width, rank, outputs), 1, 0)
    return to_terms, to_inputs, to_kernel.astype(kernel.dtype)


_mixed_by_blocks.defvjp(_mixed_forward, _mixed_backward)


def _blocks(*arrays: Array) -> tuple[Array, ...]:
    """Each [B ...] in equal blocks of at most `BLOCK` rows; in one where they would be tiny."""
    rows = arrays[0].shape[0]
    size = next(n for n in range(min(BLOCK, rows), 0, -1) if rows % n == 0)
    count = rows // size if size >= BLOCK // 4 else 1
    return tuple(array.reshape(count, -1, *array.shape[1:]) for array in arrays)

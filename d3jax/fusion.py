"""Domain modelling: a gate fuses a row's own weights with those that all rows share.

Equations 11-14 of Jia et al. (AAAI 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.base import Activation
from d3jax.floats import wide_type, widened
from d3jax.generation import (
    GeneratorParams,
    apply_kernels,
    apply_mixed,
    declare_generator,
    generate_weights,
    mix_kernels,
    mixture,
)
from d3jax.layers.dense import Dense, declare_dense, declare_mlp, dense, for_rows, mlp
from d3jax.parameters import glorot, ones, zeros

KernelFusion = Literal["multiplicative", "additive"]
BiasFusion = Literal["multiplicative", "additive", "specific"]


class GateParams(NamedTuple):
    """A small network with two scores at its end."""

    hidden: tuple[Dense, ...]
    output: Dense


class FusedParams(NamedTuple):
    """A generated layer: the generator, and the shared weights it is fused with (None: alone)."""

    generator: GeneratorParams
    shared: Dense | None


def declare_gate(inputs: int, layers: Sequence[int] = (64, 16)) -> GateParams:
    """Glorot kernels throughout: a gate whose last kernel is zero never learns."""
    return GateParams(
        hidden=declare_mlp(inputs, layers),
        output=declare_dense(layers[-1] if layers else inputs, 2),
    )


def declare_fused(
    hidden: int,
    inputs: int,
    outputs: int,
    *,
    shared: bool,
    kernel_fusion: KernelFusion = "multiplicative",
    bias_fusion: BiasFusion = "multiplicative",
    rank: int = 0,
) -> FusedParams:
    """A layer [inputs, outputs] generated from M = `hidden` units, with shared weights or without.

    What multiplies something starts at 1, so that neither factor silences the other; what stands
    alone or is added starts as a kernel or bias of its own would.
    """
    multiplies = shared and kernel_fusion == "multiplicative"
    offset = ones if multiplies else glorot(inputs, outputs)
    generator = declare_generator(hidden, inputs, outputs, offset, rank)
    if not shared:
        return FusedParams(generator, None)
    bias = {"multiplicative": ones, "additive": zeros, "specific": None}[bias_fusion]
    return FusedParams(generator, declare_dense(inputs, outputs, bias=bias))


def fusion_gate(
    params: GateParams, selected: Float[Array, "B N D"], activation: Activation = jax.nn.relu
) -> Float[Array, "B 2"]:
    """Return the shares of a layer that are the row's own and shared (Eq. 11-12).

    Returns the softmax of two scores, specific first. The fused kernel depends on their product
    alone (Eq. 13), so a gate whose last kernel is zero never learns.
    """
    flat = selected.reshape(selected.shape[0], -1)
    return jax.nn.softmax(dense(params.output, mlp(params.hidden, flat, activation)))


def fuse(
    gate: Float[Array, "B 2"],
    specific: Float[Array, "B *W"],
    shared: Float[Array, "*W"],
    *,
    additive: bool = False,
) -> Float[Array, "B *W"]:
    """The row's own weights and the shared ones as one (Eq. 13).

    `(g₀ · specific) ⊙ (g₁ · shared)`, or their sum when `additive`, which unlike the product
    tells the two gate values apart. Works on kernels [B I O] and biases [B O] alike.
    """
    gate, specific, shared = widened(gate, specific, shared)
    column = (-1, *[1] * (specific.ndim - 1))
    own = gate[:, 0].reshape(column) * specific
    common = jnp.einsum("b,...->b...", gate[:, 1], shared)
    return own + common if additive else own * common


def fused_layer_plain(
    params: FusedParams,
    gate: Float[Array, "B 2"] | None,
    hidden: Float[Array, "B M"],
    inputs: Float[Array, "B I"],
    *,
    kernel_additive: bool = False,
    bias_additive: bool = False,
) -> Float[Array, "B O"]:
    """`inputs · W + b` with W and b as Eq. 13 has them, every row's kernel stored.

    The form to read and to test against; `fused_layer` gives the same values.
    """
    params, gate, hidden, inputs = widened(params, gate, hidden, inputs)
    kernel, bias = generate_weights(params.generator, hidden)
    if params.shared is not None:
        assert gate is not None
        kernel = fuse(gate, kernel, params.shared.kernel, additive=kernel_additive)
        if params.shared.bias is not None:
            bias = fuse(gate, bias, params.shared.bias, additive=bias_additive)
    return jnp.einsum("bi,bio->bo", inputs, kernel) + bias


def fused_layer(
    params: FusedParams,
    gate: Float[Array, "B 2"] | None,
    hidden: Float[Array, "B M"],
    inputs: Float[Array, "B I"],
    *,
    bias_hidden: Float[Array, "B M"] | None = None,
    kernel_additive: bool = False,
    bias_additive: bool = False,
    budget: int | None = None,
    dtype: Any = None,
) -> Float[Array, "B O"]:
    """`fused_layer_plain` with one generated tensor alive instead of several.

    The shared kernel is folded into the generator's once a step and the gate scales the inputs,
    so the only tensor per row is the kernel itself, [B I O]; where that would pass `budget`
    numbers (None: `kernel_budget()`) it is made in slices of O of a quarter of that, and made
    again for the gradient (a slice has a few copies, and being small costs it nothing). With fewer
    terms than inputs (R < I) the inputs meet the shared matrices first, and no row has a kernel.
    `bias_hidden` generates the bias where it isn't `hidden` that does. `dtype` is what the row's
    kernel is made, kept and multiplied in (None: as all else, and the result, is: in float32, or
    in float64 where an argument has it).
    """
    params, gate, hidden, inputs, bias_hidden = widened(params, gate, hidden, inputs, bias_hidden)
    kernel, offset = params.generator.kernel, params.generator.kernel_offset
    bias = dense(params.generator.bias, hidden if bias_hidden is None else bias_hidden)
    common = jnp.zeros_like(bias)
    if params.shared is not None:
        assert gate is not None
        specific, rest = gate[:, :1], gate[:, 1:]
        if not kernel_additive:
            kernel = kernel * for_rows(params.shared.kernel, kernel.shape[0])
            offset = offset * params.shared.kernel
            inputs = inputs * (specific * rest)
        else:
            common = rest * (inputs @ params.shared.kernel)
            inputs = inputs * specific
        if params.shared.bias is not None:
            bias = fuse(gate, bias, params.shared.bias, additive=bias_additive)
    terms = mixture(params.generator, hidden)
    kernel, offset, terms, inputs = (
        array.astype(dtype or array.dtype) for array in (kernel, offset, terms, inputs)
    )
    budget = kernel_budget() if budget is None else budget
    own = _contract(kernel, offset, terms, inputs, budget)
    return own + common + bias


COMPUTER_BUDGET = 2**28
"""Numbers of generated kernels that may be alive in a computer's own memory: 1 GB of float32."""


def kernel_budget() -> int:
    """Return the most numbers of generated kernels that may be alive at a time.

    An accelerator, which has a memory of its own, gives a 32nd of its bytes; a number takes up to
    four, and the gradient needs about as much again.
    """
    memory = jax.local_devices()[0].memory_stats()
    return COMPUTER_BUDGET if memory is None else memory["bytes_limit"] // 32


def _contract(
    kernel: Float[Array, "R I O"],
    offset: Float[Array, "I O"],
    terms: Float[Array, "B R"],
    inputs: Float[Array, "B I"],
    budget: int,
) -> Float[Array, "B O"]:
    """Σ_i inputs_i (Σ_r terms_r kernel_rio + offset_io), in as many slices of O as needed."""
    rank, width, outputs = kernel.shape

    def columns(weights: tuple[Array, Array]) -> Array:
        if rank < width:
            own = apply_mixed(terms, inputs, weights[0])
        else:
            own = apply_kernels(inputs, mix_kernels(terms, weights[0]))
        # Added to the kernels instead, the offset's gradient would be a sum over all of them.
        return own + (inputs @ weights[1]).astype(wide_type(inputs))

    slices = _slices(outputs, inputs.shape[0] * min(rank, width) * outputs, budget)
    if slices == 1:
        return columns((kernel, offset))
    split = (
        jnp.moveaxis(kernel.reshape(*kernel.shape[:2], slices, -1), 2, 0),
        jnp.moveaxis(offset.reshape(offset.shape[0], slices, -1), 1, 0),
    )
    parts = jax.lax.map(jax.checkpoint(columns), split)
    return jnp.moveaxis(parts, 0, 1).reshape(terms.shape[0], outputs)


def _slices(outputs: int, size: Any, budget: int) -> int:
    """The smallest number of equal slices of `outputs` that keeps size / slices in a quarter of
    the budget; one if that keeps all of it.

    One where the size is a symbol, as in a program exported for any number of rows.
    """
    if not isinstance(size, int):
        return 1
    wanted = 1 if size <= budget else -(-4 * size // budget)
    return next((n for n in range(wanted, outputs + 1) if outputs % n == 0), outputs)
